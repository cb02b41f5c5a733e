"""A step without a computation: push, sums, update and pull, beside an all-reduce with a local update."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from bench.children import Job, Report
from bench.machine import Spread
from bench.tables import Part, mega, table
from bench.turns import take_turns

BYTES = 4  # of a parameter on its way
MAX_NORM = 1e-3  # every gradient here is longer
RIVALS = "bench.parameter_server.rivals"
LINKS = ("shm", "tcp")
COPY, RIVAL = "memcpy", "all_reduce + Adam"
SHARES = ("busy", "wait_recv", "wait_barrier", "wait_send", "copy", "other")


def exchange_jobs(sizes: Sequence[int], clipping: Sequence[bool], rounds: int, seconds: float) -> list[Job]:
    """A job for each number of parameters, without clipping or with it."""
    return [
        Job(
            f"communication, {shown(size)} parameters{', clipping' if clip else ''}",
            measure_exchange,
            (size, clip, rounds, seconds),
            units=rounds,
        )
        for size in sizes
        for clip in clipping
    ]


def shown(parameters: int) -> str:
    """A number of parameters."""
    return f"{parameters / 1e6:.0f}M" if parameters >= 1e6 else str(parameters)


def measure_exchange(report: Report, parameters: int, clipping: bool, rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds a step of every way, one after the other in every round.

    clipping: whether the gradient is scaled down at every step. seconds: how long each is timed in a round, about.
    """
    import torch

    from bench.parameter_server.arm import SERVERS, WORKERS, Arm
    from bench.parameter_server.gang import Gang
    from bench.parameter_server.workloads import empty_spec

    torch.set_num_threads(1)
    max_norm = MAX_NORM if clipping else 0.0
    source, target = torch.ones(parameters), torch.zeros(parameters)

    def copy(steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            target.copy_(source)
        return (time.perf_counter() - begin) / steps

    with ExitStack() as running:
        gang = running.enter_context(Gang(WORKERS, f"{RIVALS}:AllReduce", parameters, max_norm))
        spec = empty_spec(parameters, WORKERS, max_norm)
        arms = {link: running.enter_context(Arm(spec, link=link)) for link in LINKS}
        runs: dict[str, Callable[[int], float]] = {COPY: copy, RIVAL: gang.run}
        runs |= {link: arm.run for link, arm in arms.items()}
        pids: dict[str, dict[str, list[int]]] = {COPY: {}, RIVAL: {"worker": gang.pids}}
        pids |= {link: arm.pids for link, arm in arms.items()}
        steps = {name: max(3, min(100, round(seconds / run(2)))) for name, run in runs.items()}
        begun = {link: (arm.traffic(), arm.steps) for link, arm in arms.items()}
        found = take_turns(report, runs, pids, steps, rounds)
        return {
            "parameters": parameters,
            "clipping": clipping,
            "workers": WORKERS,
            "servers": SERVERS,
            "steps_per_round": steps,
            "rounds": found,
            "traffic": {link: _traffic(arm, *begun[link], parameters, WORKERS) for link, arm in arms.items()},
            "times": {link: _shares(arm, steps[link]) for link, arm in arms.items()},
        }


def exchange_part(found: Sequence[dict[str, Any]]) -> Part:
    """Ratios to the all-reduce of the same round. The named ones are those of the first size without clipping."""
    rows, traffic_rows, time_rows = [], [], []
    ratios: dict[str, float] = {}
    for one in found:
        about = [shown(one["parameters"]), "yes" if one["clipping"] else "no"]
        label = about[0] + (", clipping" if one["clipping"] else "")
        for name, rounds in one["rounds"].items():
            over = Spread.of([a["step"] / b["step"] for a, b in zip(rounds, one["rounds"][RIVAL], strict=True)])
            if name in LINKS:
                ratios[f"exchange/{label}/{name}/over_all_reduce"] = over.median
                if not one["clipping"]:
                    ratios.setdefault(f"ps_{name}_vs_allreduce", over.median)
            cells = [_milliseconds([a["step"] for a in rounds]), over.shown("{:.2f}".format)]
            cpu = "" if name == COPY else _milliseconds([a["cpu"] for a in rounds])
            rows.append([*about, f"parameter server, {name}" if name in LINKS else name, *cells, cpu])
        for name, traffic in one["traffic"].items():
            ratios[f"exchange/{label}/{name}/bytes_over_formula"] = traffic["over_formula"]
            cells = [f"{traffic[kind]:,.0f}" for kind in ("messages", "framing_bytes")]
            cells += [mega(traffic[kind]) for kind in ("payload_bytes", "shared_bytes", "formula_bytes")]
            traffic_rows.append([*about, name, *cells, f"{traffic['over_formula']:.4f}"])
        for name, processes in one["times"].items():
            for process, shares in processes.items():
                time_rows.append([*about, name, process, *(f"{shares[kind]:.0%}" for kind in SHARES)])
    over_formula = [traffic["over_formula"] for one in found for traffic in one["traffic"].values()]
    ratios["bytes_vs_formula"] = max(over_formula, key=lambda value: abs(value - 1))
    heads = ["parameters", "clipping"]
    traffic_heads = ["frames a step", "headers, bytes", "payload, MB", "shared, MB", "formula, MB", "÷ formula"]
    return Part(
        "Communication of a step",
        [
            f"{found[0]['workers']} workers, {found[0]['servers']} servers, one thread each; nothing is computed. The "
            "parameter server's time includes writing the gradient of one parameter in eight (that of the others is "
            "zero from the buffer's last use), that of the all-reduce (gloo, two processes, the whole gradient at "
            "once, then fused Adam in each) does not. `memcpy`: one copy of as many parameters in one process.",
            table([*heads, "way", "ms a step", "÷ all-reduce", "CPU ms a step, all processes"], rows),
            "Bytes of a step, as the links count what all workers and servers send each other; formula: 2 × workers × "
            "parameters × 4.",
            table([*heads, "link", *traffic_heads], traffic_rows),
            "Where the main thread of each process was, as shares of its time during steps.",
            table([*heads, "link", "process", *SHARES], time_rows),
        ],
        list(found),
        ratios,
    )


def _milliseconds(values: Sequence[float]) -> str:
    return Spread.of([1e3 * value for value in values]).shown("{:,.1f}".format)


def _traffic(arm: Any, before: dict[str, int], first: int, parameters: int, workers: int) -> dict[str, float]:
    """What went over all links in a step, on average."""
    steps = arm.steps - first
    each = {kind: (count - before[kind]) / steps for kind, count in arm.traffic().items()}
    sent = each["framing_bytes"] + each["payload_bytes"] + each["shared_bytes"]
    formula = 2 * workers * parameters * BYTES
    return each | {"formula_bytes": formula, "over_formula": sent / formula}


def _shares(arm: Any, steps: int) -> dict[str, dict[str, float]]:
    """By process, shares of the wall time by kind, over some more steps."""
    arm.run(1)  # a wait counts when it ends: the one since the last round has ended then
    before = arm.times()
    arm.run(steps)
    found = {}
    for process, times in arm.times().items():
        wall = times["wall"] - before[process]["wall"]
        found[process] = {kind: (times[kind] - before[process][kind]) / wall for kind in SHARES[:-1]}
        found[process]["other"] = max(0.0, 1.0 - sum(found[process].values()))
    return found
