"""Training: target tokens a second, what of the floor that is, and where in a step the time goes.

The floor of a step is what its real tokens need of matrix products (`nmt.profiling.operations`), divided by the best
rate of a large product of the same precision on the same threads, timed right before the step. Phases that make no
products are held against the bytes that they cannot but move, divided by the rate of a large copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.children import Job, Report
from bench.machine import REFERENCE, Clock, Spread, prepare_machine, torch_type
from bench.settings import Settings
from bench.tables import Part, table

WARM_UP = 2  # steps: the first ones meet cold caches and allocate
PRODUCTS_SHOWN = 8
PHASES = ("encoder", "decoder", "attention", "output", "update", "data")
# Bytes for each parameter: the gradient's norm reads it once; Adam reads gradient, value and two moments, and writes
# the latter three.
UPDATE_BYTES = 4 + 16 + 12
TOKEN_BYTES = 3 * 8  # source, target input and target output of a batch are int64


@dataclass
class _Arm:
    """A strategy under measurement with a number of threads."""

    precision: str
    threads: int
    strategy: Any
    watched: Any
    rounds: list[dict[str, Any]] = field(default_factory=list)


def training_jobs(settings: Settings) -> list[Job]:
    """A process for each shape, so that precisions and threads are measured in turn."""
    arms = len(settings.precisions) * len(settings.threads)
    return [
        Job(f"training {shape}", measure_training, (settings, shape), units=settings.rounds * arms)
        for shape in settings.shapes
    ]


def measure_training(report: Report, settings: Settings, shape: str) -> dict[str, Any]:
    """Rounds of one step for each precision and number of threads, all on the same batches."""
    import torch

    prepare_machine(settings)
    config = settings.config(shape)
    prepared = settings.data(config)
    arms = []
    for precision in settings.precisions:
        strategy, watched = _start(settings, settings.config(shape, precision), prepared)
        arms += [_Arm(precision, threads, strategy, watched) for threads in settings.threads]
    torch.set_num_threads(max(settings.threads))
    for arm in arms[:: len(settings.threads)]:
        for index in range(1, WARM_UP + 1):
            arm.strategy.step(index)
    useful = _useful(config, prepared)
    for index in range(WARM_UP + 1, WARM_UP + settings.rounds + 1):
        for arm in arms:
            torch.set_num_threads(arm.threads)
            arm.rounds.append(_round(settings, arm, index, useful))
            report()
    return {
        "shape": shape,
        "parameters": sum(parameter.numel() for parameter in arms[0].strategy.model.parameters()),
        "arms": [
            {
                "precision": arm.precision,
                "threads": arm.threads,
                "rounds": arm.rounds,
                "products": _products(settings, arm),
            }
            for arm in arms
        ],
    }


def _start(settings: Settings, config: Any, prepared: Any) -> tuple[Any, Any]:
    from distributed.single import SingleStrategy
    from nmt.profiling.phases import Given, WatchedWorkload
    from nmt.training.workload import TranslationWorkload

    watched = WatchedWorkload(TranslationWorkload(config, settings.device, prepared), lambda: None)
    strategy = SingleStrategy()
    strategy.start(Given("", {}, watched))
    return strategy, watched


def _useful(config: Any, prepared: Any) -> Any:
    from nmt.profiling.operations import useful_operations

    return useful_operations(config, (prepared.source_tokenizer.size, prepared.target_tokenizer.size))


def _round(settings: Settings, arm: _Arm, index: int, useful: Any) -> dict[str, Any]:
    """The floors, then one step."""
    import numpy as np

    from nmt.profiling.floors import bandwidth, square_rates

    rate = max(square_rates(torch_type(arm.precision), settings.device, (REFERENCE,), timings=3).values())
    copied = bandwidth(settings.device, timings=1)
    workload = arm.watched.inner
    numbers = np.concatenate(workload.sampler.slots(index))
    train = workload.prepared.train
    needed = useful.of(train.source_lengths[numbers] + 1, train.target_lengths[numbers] + 1)
    arm.watched.forget()
    if settings.device != "cpu":
        with Clock(settings.device) as clock:  # untouched: telling phases apart would make the GPU wait for each
            stats = arm.strategy.step(index)
        _watch_on_gpu(arm, index)
    else:
        with arm.watched.watching(), Clock(settings.device) as clock:
            stats = arm.strategy.step(index)
    parameters = arm.strategy.flat.values.numel()
    moved = {"update": UPDATE_BYTES * parameters, "data": TOKEN_BYTES * (stats.source_tokens + stats.target_tokens)}
    return {
        "index": index,
        "seconds": clock.seconds,
        "busy": clock.busy,
        "target_tokens": stats.target_tokens,
        "useful_operations": needed,
        "product_rate": rate,
        "copy_rate": copied,
        "phases": _phases(arm.watched),
        "floors": {name: count / rate for name, count in needed.items()}
        | {name: size / copied for name, size in moved.items()},
    }


def _watch_on_gpu(arm: _Arm, index: int) -> None:
    import torch

    arm.watched.synchronize = torch.cuda.synchronize
    with arm.watched.watching():
        arm.strategy.step(index)
    arm.watched.synchronize = lambda: None


def _phases(watched: Any) -> dict[str, float]:
    """Seconds of each of `PHASES`, forward and backward pass together, attention taken out of the stages it is in."""
    found = dict.fromkeys(PHASES, 0.0)
    for phase, seconds in watched.seconds.items():
        found[phase.removesuffix(" backward")] += seconds
    for phase, seconds in watched.attention.items():
        found[phase.removesuffix(" backward")] -= seconds
        found["attention"] += seconds
    return found


def _products(settings: Settings, arm: _Arm) -> list[dict[str, Any]]:
    """The products of a step that have most of its operations, and how fast each is alone."""
    import torch

    from nmt.profiling.counting import ProductCount
    from nmt.profiling.floors import product_rate

    torch.set_num_threads(arm.threads)
    with ProductCount() as counted:
        arm.strategy.step(arm.rounds[-1]["index"])
    ranked = sorted(counted.products.items(), key=lambda item: item[0].operations * item[1], reverse=True)
    return [
        {
            **product._asdict(),
            "times": times,
            "share": product.operations * times / counted.operations,
            "operations_per_second": product_rate(product, torch_type(arm.precision), settings.device),
        }
        for product, times in ranked[:PRODUCTS_SHOWN]
    ]


def training_part(settings: Settings, found: Sequence[dict[str, Any]]) -> Part:
    """Tokens a second and achieved ÷ floor of every arm, the phases, and the products."""
    speeds, phases, products = [], [], []
    ratios: dict[str, float] = {}
    for shape in found:
        for arm in shape["arms"]:
            rounds = arm["rounds"]
            tokens = Spread.of([one["target_tokens"] / one["seconds"] for one in rounds])
            achieved = Spread.of([_needed(one) / one["product_rate"] / one["seconds"] for one in rounds])
            busy = Spread.of([one["busy"] for one in rounds])
            arm["tokens_per_second"], arm["achieved_over_floor"] = asdict(tokens), asdict(achieved)
            name = f"training/{shape['shape']}/{arm['precision']}/{arm['threads']}_threads"
            ratios[f"{name}/achieved_over_floor"] = achieved.median
            where = [shape["shape"], arm["precision"], str(arm["threads"])]
            rate = Spread.of([one["product_rate"] / 1e9 for one in rounds])
            per_token = Spread.of([_needed(one) / one["target_tokens"] / 1e6 for one in rounds])
            floor = tokens.median / achieved.median
            cells = [*where, tokens.shown(), f"{per_token.median:,.0f}", rate.shown(), f"{floor:,.0f}"]
            speeds.append([*cells, achieved.shown("{:.2f}".format), f"{busy.median:.2f}"])
            phases.append([*where, *(_phase(rounds, phase) for phase in PHASES)])
            ratios |= {f"{name}/{phase}": _over_floor(rounds, phase) for phase in PHASES}
            products.append([*where, ", ".join(_product(one) for one in arm["products"])])
        _compare(shape, ratios)
    arms = ["shape", "precision", "threads"]
    heads = [*arms, "target tokens/s", "useful MFLOP a token", "product rate, GFLOP/s", "floor, tokens/s"]
    return Part(
        "Training",
        [
            table([*heads, "achieved ÷ floor", "cores got"], speeds),
            "Share of a step, and achieved ÷ floor, of each phase, forward and backward pass together. `update` and "
            "`data` are held against bytes ÷ the rate of a copy, the others against products.",
            table([*arms, *PHASES], phases),
            "Matrix products of a step as [rows × inner × columns] (and how many side by side) × how often: share of "
            "its operations, GFLOP/s alone.",
            table([*arms, "products"], products),
        ],
        list(found),
        ratios,
    )


def _needed(one: dict[str, Any]) -> float:
    return float(sum(one["useful_operations"].values()))


def _over_floor(rounds: Sequence[dict[str, Any]], phase: str) -> float:
    return Spread.of([one["floors"][phase] / max(one["phases"][phase], 1e-9) for one in rounds]).median


def _phase(rounds: Sequence[dict[str, Any]], phase: str) -> str:
    share = Spread.of([one["phases"][phase] / sum(one["phases"].values()) for one in rounds]).median
    return f"{100 * share:.1f} %, {_over_floor(rounds, phase):.2f}"


def _product(one: dict[str, Any]) -> str:
    shape = f"{one['rows']}×{one['inner']}×{one['columns']}" + (f" (×{one['batch']})" if one["batch"] > 1 else "")
    return f"[{shape}] × {one['times']}: {100 * one['share']:.0f} %, {one['operations_per_second'] / 1e9:,.0f}"


def _compare(shape: dict[str, Any], ratios: dict[str, float]) -> None:
    """bf16 by fp32 on the same threads."""
    speeds = {(arm["precision"], arm["threads"]): arm["tokens_per_second"]["median"] for arm in shape["arms"]}
    for (precision, threads), speed in speeds.items():
        if precision == "bf16" and ("fp32", threads) in speeds:
            ratios[f"training/{shape['shape']}/{threads}_threads/bf16_over_fp32"] = speed / speeds["fp32", threads]
