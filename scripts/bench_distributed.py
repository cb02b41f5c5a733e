"""Parameter server and ring beside what they compete with, and beside the floors of this machine, all in one run.

    python scripts/bench_distributed.py                      # minutes; Markdown on stdout, everything as JSON
    python scripts/bench_distributed.py quick=true only=ps   # within 90 seconds
    python scripts/bench_distributed.py quick=true only=ring # within three minutes
    python scripts/bench_distributed.py only=memory,recovery,ray

Two workers and two servers run on this machine, one thread each. What is compared takes turns within a round, so that
the machine's load falls on all alike; a ratio is the median over rounds. The parts are in `scripts/bench/`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.children import Job, run_jobs
from bench.tables import Part

from nmt.arguments import exit_code, option, parse
from nmt.errors import UserError

FORMAT_VERSION = 1
PARTS = ("ps", "ring", "wire", "memory", "recovery", "ray")
SIZES = {"tiny": 65_536, "8M": 8_000_000, "66M": 66_000_000}  # parameters
RATIOS = (
    *("ps_shm_vs_allreduce", "ps_tcp_vs_allreduce", "ps_step_vs_ddp", "bytes_vs_formula", "link_vs_loopback"),
    *("ring_vs_gloo", "ring_tcp_vs_gloo", "ring_step_vs_ddp", "ring_tmp_vs_torch_pipelining", "ring_softmax_gain"),
)
ROUNDS, QUICK_ROUNDS = 7, 5
SECONDS, QUICK_SECONDS = 1.0, 0.4  # that one way is timed in one round, about
FLAGS = ("quick",)

_EXAMPLES = """
Parts:
  ps         links beside a plain loop; a step's communication beside an all-reduce with a local update; bytes beside
             the formula; steps of training beside torch's DDP
  ring       an all-reduce of our own beside gloo's, 32 MB and 256 MB (quick: 32 MB); steps of training with it, with
             stages and with shards round a ring beside torch's DDP; a ring of stages beside torch's pipeline with the
             same cut; what the ring softmax brings to the published baseline (its stages timed, nodes emulated)
  wire       bytes and time of each form of a gradient beside fp32 and a copy
  memory     words of a worker and of a server beside the formula
  recovery   how long a run stands still when a process is killed or stopped
  ray        a step's communication beside the parameter server of Ray's tutorials

In the JSON, `ratios` has every ratio by name, `seconds` the times of detection and recovery, and `targets` the ratios
of which it is known what they should be, met or missed:
  ps_shm_vs_allreduce, ps_tcp_vs_allreduce   seconds over those of the all-reduce: at most 0.8 and 1.3
  ps_step_vs_ddp                             seconds over those of DDP: at most 1.15
  bytes_vs_formula                           from 1.00 to 1.02
  ring_vs_gloo, ring_tcp_vs_gloo             seconds of a sum over those of gloo's, the worse size: at most 1.1
  ring_step_vs_ddp                           seconds over those of DDP: at most 1.1
  ring_tmp_vs_torch_pipelining               seconds over those of torch.distributed.pipelining (1F1B): at most 1.1
  ring_softmax_gain                          seconds of a step without over with it, emulated: at least 1.2
  link_vs_loopback                           rate over that of the plain loop: at least 0.9
  ray/…/times_faster                         than the parameter server of the tutorials: at least 5
  memory/…/over_formula                      at most 1.05

`--quick --only ps --json FILE` is understood as well.
"""


@dataclass(frozen=True, kw_only=True)
class DistributedBenchOptions:
    """What the script takes."""

    quick: bool = option(False, "8M parameters only and fewer rounds; without `only`, no more than part ps")
    only: list[str] = option(list, "parts to measure; none: all", choices=PARTS)
    sizes: list[str] = option(list, "models to measure; none: 8M and 66M (quick: 8M)", choices=tuple(SIZES))
    rounds: int | None = option(
        None, "times that all is measured, communication twice as often; unset: 7, quick 5", minimum=1
    )
    json: str = option("bench_distributed.json", "file that everything is written to")


@dataclass(frozen=True)
class _Plan:
    """What the parts are told."""

    sizes: Sequence[str]
    rounds: int
    seconds: float
    quick: bool


def main(argv: Sequence[str]) -> int:
    """Measure, print Markdown, write JSON; returns the exit code."""
    options = parse(
        DistributedBenchOptions,
        list(_without_dashes(argv)),
        verb="python scripts/bench_distributed.py",
        summary="Speed, bytes, memory and recovery of distributed training beside what it competes with.",
        epilog=_EXAMPLES,
    )
    folder = Path(options.json).absolute().parent
    if not folder.is_dir():
        raise UserError(f"there is no directory {folder}", where="json")
    try:
        Path(options.json).write_text(json.dumps(bench(options), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=f"json={options.json}") from error
    return 0


def bench(options: DistributedBenchOptions) -> dict[str, Any]:
    """Measure what is asked for and print it; everything as plain data."""
    plan = _Plan(
        sizes=options.sizes or (["8M"] if options.quick else ["8M", "66M"]),
        rounds=options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
        seconds=QUICK_SECONDS if options.quick else SECONDS,
        quick=options.quick,
    )
    os.environ["OMP_NUM_THREADS"] = "1"
    begin, load = time.monotonic(), os.getloadavg()[0]
    machine = _machine()
    asked = options.only or (["ps"] if options.quick else PARTS)
    shares = [share for name in PARTS if name in asked for share in _PARTS[name](plan)]
    found = iter(run_jobs([job for jobs, _ in shares for job in jobs]))
    parts = [show([next(found) for _ in jobs]) for jobs, show in shares]
    machine |= {"load_before": load, "load_after": os.getloadavg()[0], "seconds": time.monotonic() - begin}
    ratios = {name: value for part in parts for name, value in part.ratios.items()}
    ratios = {name: ratios.pop(name) for name in RATIOS if name in ratios} | ratios
    from bench.parameter_server.targets import judged, target_part

    print("\n\n".join([_heading(machine, plan), *(part.markdown() for part in [target_part(ratios), *parts])]))
    return {
        "format_version": FORMAT_VERSION,
        "machine": machine,
        "settings": {"sizes": list(plan.sizes), "rounds": plan.rounds, "quick": plan.quick},
        "parts": {part.title: part.figures for part in parts},
        "ratios": ratios,
        "seconds": {name: value for part in parts for name, value in part.seconds.items()},
        "targets": judged(ratios),
    }


Share = tuple[Sequence[Job], Callable[[Sequence[Any]], Part]]


def _parameter_server(plan: _Plan) -> Iterator[Share]:
    from bench.links import MIB, SIZES, link_jobs, link_part
    from bench.parameter_server import exchange, steps

    # Pieces of 8M parameters over two servers have up to 12.5 MiB.
    yield link_jobs(plan.rounds, (8 * MIB,) if plan.quick else SIZES), link_part
    clipping = [False] if plan.quick else [False, True]
    # What takes milliseconds takes more and shorter turns, so that bursts of load fall on all alike.
    jobs = exchange.exchange_jobs(_numbers(plan), clipping, 2 * plan.rounds, plan.seconds / 2)
    yield jobs, exchange.exchange_part
    yield steps.step_jobs(plan.sizes, plan.rounds, plan.seconds), steps.step_part


def _ring(plan: _Plan) -> Iterator[Share]:
    from bench.ring import exchange, pipelining, softmax_gain, steps

    sums = ["32 MB"] if plan.quick else list(exchange.SIZES)
    yield exchange.exchange_jobs(sums, 2 * plan.rounds, plan.seconds / 2), exchange.exchange_part
    yield steps.step_jobs(plan.sizes, plan.rounds, plan.seconds), steps.step_part
    yield pipelining.pipeline_jobs(plan.sizes, plan.rounds, plan.seconds), pipelining.pipeline_part
    # CPU seconds, which load hardly moves: some rounds are enough.
    yield softmax_gain.gain_jobs(plan.sizes[0], 1 if plan.quick else 3), softmax_gain.gain_part


def _wire(plan: _Plan) -> Iterator[Share]:
    from bench import wire_forms

    yield wire_forms.wire_form_jobs(plan.rounds, min(_numbers(plan))), wire_forms.wire_form_part


def _memory(plan: _Plan) -> Iterator[Share]:
    from bench.parameter_server import memory

    size = min(_numbers(plan))
    yield memory.memory_jobs((size, 3 * size)), memory.memory_part


def _recovery(plan: _Plan) -> Iterator[Share]:
    from bench.parameter_server import recovery

    yield recovery.recovery_jobs(_numbers(plan)[0], plan.rounds), recovery.recovery_part


def _ray(plan: _Plan) -> Iterator[Share]:
    from bench.parameter_server import ray_actors

    yield ray_actors.ray_jobs(_numbers(plan), plan.rounds, plan.seconds), ray_actors.ray_part


_PARTS: dict[str, Callable[[_Plan], Iterator[Share]]] = {
    "ps": _parameter_server,
    "ring": _ring,
    "wire": _wire,
    "memory": _memory,
    "recovery": _recovery,
    "ray": _ray,
}


def _numbers(plan: _Plan) -> list[int]:
    return [SIZES[name] for name in plan.sizes]


def _without_dashes(argv: Sequence[str]) -> Iterator[str]:
    """`--only ps` as `only=ps`, and `--quick` as `quick=true`."""
    words = iter(argv)
    for word in words:
        name = word.removeprefix("--")
        if name == word or "=" in word or name == "help":
            yield word
        elif name in FLAGS:
            yield f"{name}=true"
        else:
            yield f"{name}={next(words, '')}"


def _machine() -> dict[str, Any]:
    from nmt.environment import available_cores, describe_environment

    found = describe_environment("cpu")
    return {
        "processor": found["device"]["name"],
        "cpu": found["cpu"],
        "cores": available_cores(),
        "code": found["code"],
        "packages": {name: found["packages"][name] for name in ("torch", "numpy")},
        "python": found["python"],
    }


def _heading(machine: dict[str, Any], plan: _Plan) -> str:
    code = machine["code"]
    commit = (code["commit"] or code["version"])[:12] + (" with changes" if code["dirty"] else "")
    return (
        f"# Distributed benchmark of commit {commit}\n\n{machine['processor']}, {machine['cores']} cores; torch "
        f"{machine['packages']['torch']}; medians of {plan.rounds} rounds, of communication {2 * plan.rounds} "
        f"(least to most); load "
        f"{machine['load_before']:.1f} before, {machine['load_after']:.1f} after {machine['seconds']:.0f} s."
    )


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
