"""How often our tests reject where nothing is to be found, and how often our intervals hold the truth, by simulation.

    python scripts/statistics_size.py                                              # about two minutes on one core
    python scripts/statistics_size.py to=docs/benchmarks/statistics_size.json      # and keep it
    python scripts/statistics_size.py effort=0.05                                  # a first look

Everything is drawn with fixed seeds: the same code gives the same figures. docs/statistics.md says what is simulated.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from nmt.arguments import exit_code, option, parse
from nmt.environment import describe_code
from nmt.evaluation.progress import progress_bar
from sweeps.statistics import simulation
from sweeps.statistics.simulation import Rate

SD_RATIOS, RHOS = (1.0, 3.0), (0.0, 0.5, 1.0, 2.0, 4.0)
SIZES = ((2, 2), (3, 3), (4, 4), (6, 6), (8, 8), (4, 8))


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """What the script takes."""

    to: str = option("", "JSON file to write")
    effort: float = option(1.0, "how many experiments, as a multiple of the usual number", minimum=0.001)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One figure: what it is of, under which circumstances, its nominal value, and how it is simulated."""

    quantity: str
    of: str
    case: str
    nominal: float
    simulate: Callable[[int], Rate]
    experiments: int


def main(argv: Sequence[str]) -> int:
    """Simulate every case and print the table; returns the exit code."""
    options = parse(
        SizeOptions,
        argv,
        verb="python scripts/statistics_size.py",
        summary="Sizes of tests and coverages of intervals, by simulation.",
    )
    wanted, found = list(cases()), []
    with progress_bar("simulating") as progress:
        for number, one in enumerate(wanted):
            if progress:
                progress(number, len(wanted))
            found.append(one.simulate(max(20, round(options.effort * one.experiments))))
    previous = ""
    for one, rate in zip(wanted, found, strict=True):
        if one.quantity != previous:
            print(f"\n{one.quantity}, nominally {one.nominal:g}")
            previous = one.quantity
        print(f"  {one.of:<44} {one.case:<38} {rate.value:.3f} ± {rate.error:.3f}")
    if options.to:
        _write(Path(options.to), argv, wanted, found)
    return 0


def cases() -> Iterator[Case]:
    """Everything that is simulated."""
    for n_a, n_b in SIZES:
        for name in simulation.DISTRIBUTIONS:
            simulate = partial(_exact, n_a, n_b, name)
            yield _case("size", "exact permutation test, two-sided", f"{n_a} v {n_b}, {name}", simulate, 20_000)
    for ratio in SD_RATIOS:
        simulate = partial(_exact_unlike, ratio)
        yield _case("size", "exact permutation test, two-sided", f"4 v 8, sds {ratio:g} to 1", simulate, 20_000)
    for quantity, test, function in (
        ("size", "Welch's t test, two-sided", simulation.welch_size),
        ("coverage", "Welch's 95 % interval", simulation.welch_coverage),
    ):
        for n_a, n_b in SIZES:
            for ratio in SD_RATIOS:
                simulate = partial(_call, function, n_a, n_b, ratio)
                yield _case(quantity, test, f"{n_a} v {n_b}, sds {ratio:g} to 1", simulate, 100_000)
    for rows in (1, 3, 7, 15):
        simulate = partial(_call, simulation.family_error, (4,) * rows, 4)
        yield _case("family-wise error", "Welch with Holm, one baseline", f"{rows} rows of 4", simulate, 20_000)
    for ratio in (1.0, 3.0, 10.0):
        simulate = partial(_call, simulation.pooling_allowed, 8, 4, ratio)
        case = f"8 rows of 4, one sd {ratio:g} times the others"
        yield _case("variances may be pooled", "Brown and Forsythe's test", case, simulate, 4_000)
    for method in ("bootstrap", "randomisation"):
        for rho in RHOS:
            simulate = partial(_call, simulation.paired_size, method, rho)
            name = {"bootstrap": "paired bootstrap", "randomisation": "approximate randomisation"}[method]
            yield _case("size of tests of systems", name, f"1 v 1, rho {rho:g}", simulate, 1_000)
    for n_a, n_b in ((2, 2), (4, 4), (8, 8)):
        for rho in RHOS:
            simulate = partial(_call, simulation.stratified_size, n_a, n_b, rho)
            name = "stratified randomisation"
            yield _case("size of tests of systems", name, f"{n_a} v {n_b}, rho {rho:g}", simulate, 2_000)
    for n_a, n_b in ((2, 2), (4, 4), (8, 8)):
        for rho in RHOS:
            simulate = partial(_call, simulation.resampling_coverage, n_a, n_b, rho)
            name = "replicates, then sentences: 95 % interval"
            yield _case("coverage", name, f"{n_a} v {n_b}, rho {rho:g}", simulate, 2_000)


def _case(quantity: str, of: str, case: str, simulate: Callable[[int], Rate], experiments: int) -> Case:
    nominal = {"coverage": 0.95, "variances may be pooled": 0.9}.get(quantity, 0.05)
    return Case(quantity=quantity, of=of, case=case, nominal=nominal, simulate=simulate, experiments=experiments)


def _exact(n_a: int, n_b: int, distribution: str, experiments: int) -> Rate:
    return simulation.exact_size(n_a, n_b, distribution, experiments=experiments)


def _exact_unlike(ratio: float, experiments: int) -> Rate:
    return simulation.exact_size_unlike(4, 8, ratio, experiments)


def _call(function: Callable[..., Rate], *arguments: object) -> Rate:
    return function(*arguments)


def _write(path: Path, argv: Sequence[str], wanted: Sequence[Case], found: Sequence[Rate]) -> None:
    code = describe_code()
    record = {
        "command": " ".join(["python scripts/statistics_size.py", *argv]),
        "commit": code.get("commit"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {name: version(name) for name in ("numpy", "scipy", "sacrebleu")},
        "cases": [
            {name: getattr(one, name) for name in ("quantity", "of", "case", "nominal")}
            | dataclasses.asdict(rate)
            | {"error": rate.error}
            for one, rate in zip(wanted, found, strict=True)
        ],
    }
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
