"""Training throughput beside the floor of this machine, measured in one run.

    python scripts/bench.py threads=1 scale=local experiment=t5_add_512
    python scripts/bench.py threads=2 scale=multi30k data.dir=data/multi30k experiment=t5_add_512

The floor is what a step would take if nothing but its matrix products cost time, at the best rate that a large product
reaches here: FLOPs of the products of forward and backward (counted by torch's FlopCounterMode), divided by that rate.
Steps and products are timed in turn, so that a change of the machine's load falls on both.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace

from nmt.arguments import option, parse
from nmt.config import compose
from nmt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What the script takes beside config overrides."""

    threads: int = option(1, "CPU threads", minimum=1)
    rounds: int = option(5, "rounds of steps and products; medians are printed", minimum=1)
    steps: int = option(4, "training steps a round", minimum=1)
    size: int = option(1024, "rows and columns of the product that measures the rate", minimum=64)


def product_rate(size: int, dtype: str) -> float:
    """FLOP/s of a product of two square matrices, the best of three."""
    import torch

    one, other = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    one @ other
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def measure(options: BenchOptions, overrides: list[str]) -> dict[str, float]:
    """Medians over the rounds: tokens/s, floor tokens/s, FLOPs a token, product rate, and achieved / floor."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from distributed.single import SingleStrategy
    from nmt.training.workload import workload_spec

    torch.set_num_threads(options.threads)
    config = compose(overrides)
    with tempfile.TemporaryDirectory() as cache:
        config = replace(config, paths=replace(config.paths, cache=config.paths.cache or cache))
        strategy = SingleStrategy()
        strategy.start(workload_spec(config, "cpu"))
        with FlopCounterMode(display=False) as counter:
            counted = strategy.step(1)
        flops_per_token = counter.get_total_flops() / counted.target_tokens
        dtype = "bfloat16" if config.training.precision == "bf16" else "float32"
        speeds, rates = [], []
        index = 1
        for _ in range(options.rounds):
            rates.append(product_rate(options.size, dtype))
            tokens, begin = 0, time.perf_counter()
            for _ in range(options.steps):
                index += 1
                tokens += strategy.step(index).target_tokens
            speeds.append(tokens / (time.perf_counter() - begin))
    speed, rate = statistics.median(speeds), statistics.median(rates)
    return {
        "tokens_per_second": speed,
        "slowest": min(speeds),
        "fastest": max(speeds),
        "flops_per_token": flops_per_token,
        "product_gflops": rate / 1e9,
        "floor_tokens_per_second": rate / flops_per_token,
        "achieved_over_floor": speed / (rate / flops_per_token),
    }


def main(argv: list[str]) -> int:
    """Measure and print one Markdown row."""
    options, overrides = parse(
        BenchOptions, argv, verb="python scripts/bench.py", summary="Training throughput beside its floor.", rest=True
    )
    try:
        found = measure(options, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    columns = ["overrides", "threads", "target tokens/s (spread)", "MFLOP a token", "product GFLOP/s"]
    columns += ["floor tokens/s", "achieved / floor", "load"]
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {' '.join(word for word in overrides if not word.startswith('data.dir'))} | {options.threads} "
        f"| {found['tokens_per_second']:,.0f} ({found['slowest']:,.0f} to {found['fastest']:,.0f}) "
        f"| {found['flops_per_token'] / 1e6:.1f} | {found['product_gflops']:.0f} "
        f"| {found['floor_tokens_per_second']:,.0f} | {found['achieved_over_floor']:.2f} | {os.getloadavg()[0]:.1f} |"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
