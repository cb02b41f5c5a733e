"""A step of training, beside torch's DDP on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from bench.children import Job, Report
from bench.machine import Spread
from bench.parameter_server.exchange import shown
from bench.tables import Part, table
from bench.turns import take_turns
from nmt.config import RunConfig

if TYPE_CHECKING:
    from bench.parameter_server.arm import Arm
    from bench.parameter_server.gang import Gang
    from distributed.strategy import WorkloadSpec

RIVAL = "torch's DDP"
OURS = "distribution=ddp"
LINKS = ("shm", "tcp")
# width of the recurrent model, sentences a step, words: 8M and 66M parameters
MODELS = {"8M": (256, 128, 8_000), "66M": (512, 128, 38_400), "tiny": (16, 8, 200)}


def training_config(size: str) -> RunConfig:
    """Two layers of GRUs each side, dropout, clipping and Adam; two groups of a micro-batch each."""
    from nmt.config import compose

    width, sentences, words = MODELS[size]
    return compose(
        [
            *("scale=multi30k", f"tokenizer.vocab_size={words}", "tracking=none", "threads=1"),
            *(f"batch.size={sentences}", "batch.micro_batches=2", "batch.groups=2"),
            *(f"model.embedding.units={width}", f"model.encoder.units={width // 2}", "model.encoder.layers=2"),
            *(f"model.decoder.units={width}", "model.decoder.layers=2"),
            *("model/attention=multiplicative", f"model.attention.units={width}"),
            *("model.embedding.share=false", "model.embedding.tie_output=false"),
        ]
    )


def step_jobs(sizes: Sequence[str], rounds: int, seconds: float) -> list[Job]:
    """A job for each model."""
    return [Job(f"training steps, {size}", measure_steps, (size, rounds, seconds), units=rounds) for size in sizes]


def measure_steps(report: Report, size: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds a step of DDP and of the parameter server over each kind of link, one after the other in every round.

    All take the same batches in every round. seconds: how long each is timed in a round, about.
    """
    from bench.parameter_server.arm import SERVERS, Arm
    from bench.parameter_server.workloads import translation_spec

    spec = translation_spec(training_config(size))
    with ExitStack() as running:
        arms = {link: running.enter_context(Arm(spec, link=link)) for link in LINKS}
        arms[OURS] = running.enter_context(Arm(spec, "ddp"))
        return {"size": size, "servers": SERVERS} | beside_ddp(report, spec, arms, rounds, seconds)


def beside_ddp(
    report: Report, spec: WorkloadSpec, arms: Mapping[str, Arm], rounds: int, seconds: float
) -> dict[str, Any]:
    """Steps of torch's DDP (`RIVAL`) and of arms, one after the other in every round.

    Returns `parameters`, `workers`, `steps_per_round`, and under `rounds` what `take_turns` found.
    """
    import torch

    from bench.parameter_server.arm import WORKERS
    from bench.parameter_server.gang import Gang

    torch.set_num_threads(1)
    with Gang(WORKERS, "bench.parameter_server.rivals:TorchDdp", spec) as gang:
        return {"workers": WORKERS} | beside(report, spec, RIVAL, gang, arms, rounds, seconds)


def beside(
    report: Report,
    spec: WorkloadSpec,
    rival: str,
    gang: Gang,
    arms: Mapping[str, Arm],
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Steps of a rival's processes and of arms, one after the other in every round.

    Returns `parameters`, `steps_per_round`, and under `rounds` what `take_turns` found.
    """
    runs: dict[str, Callable[[int], float]] = {rival: gang.run} | {name: arm.run for name, arm in arms.items()}
    warm = [run(1) for run in runs.values()]
    steps = max(1, min(50, round(seconds / min(warm))))
    pids = {rival: {"worker": gang.pids}} | {name: arm.pids for name, arm in arms.items()}
    return {
        "parameters": sum(one.numel() for one in spec.build().build_model().parameters()),
        "steps_per_round": steps,
        "rounds": take_turns(report, runs, pids, dict.fromkeys(runs, steps), rounds),
    }


def step_part(found: Sequence[dict[str, Any]]) -> Part:
    """Ratios to the DDP of the same round; `ps_step_vs_ddp` is that of shared memory with the first model."""
    rows = []
    ratios: dict[str, float] = {}
    for one in found:
        for name, rounds in one["rounds"].items():
            over = Spread.of([a["step"] / b["step"] for a, b in zip(rounds, one["rounds"][RIVAL], strict=True)])
            if name in LINKS:
                ratios[f"step/{one['size']}/{name}/over_ddp"] = over.median
                if name == LINKS[0]:
                    ratios.setdefault("ps_step_vs_ddp", over.median)
            workers = Spread.of([a["worker_cpu"] / one["workers"] / a["step"] for a in rounds])
            servers = [a.get("server_cpu", 0.0) / one["servers"] / a["step"] for a in rounds]
            rows.append(
                [
                    shown(one["parameters"]),
                    f"parameter server, {name}" if name in LINKS else name,
                    Spread.of([1e3 * a["step"] for a in rounds]).shown(),
                    over.shown("{:.2f}".format),
                    f"{workers.median:.0%}",
                    f"{Spread.of(servers).median:.0%}" if any(servers) else "",
                    f"{1e3 * Spread.of([a['cpu'] for a in rounds]).median:,.0f}",
                ]
            )
    heads = ["parameters", "strategy", "ms a step", "÷ DDP", "cores a worker had", "cores a server had"]
    return Part(
        "Steps of training",
        [
            "Two processes compute in each, one thread each, on the same batches of 128 synthetic sentences with the "
            "lengths of Multi30k's; dropout, clipping, Adam. The parameter server's two servers are further processes "
            "and take their share of the same cores. The bits differ: DDP sums in its engine's order. "
            f"`{RIVAL}` is the loop of the tutorials, without anything of this repository but model and batches; "
            f"`{OURS}` is the strategy made of it.",
            table([*heads, "CPU ms a step, all processes"], rows),
        ],
        list(found),
        ratios,
    )
