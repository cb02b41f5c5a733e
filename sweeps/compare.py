"""`nmt compare`: is a better than b, and in what sense?"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nmt.archives import RESULTS_HELP, archive_directories
from nmt.arguments import option, parse
from nmt.strict_json import strict_json
from sweeps.wording import NOTHING, counted, mean_and_sd

if TYPE_CHECKING:
    from sweeps.comparison import Comparison, Configurations, Systems
    from sweeps.sides import Side
    from sweeps.statistics.contrasts import Contrast

EXAMPLES = """
A side is a row's label (with sweep=...), an experiment of conf/experiment, run ids of one configuration (one id without
a seed: all its replicates), or a system that nmt import put beside the runs. Runs are trained models; configurations
are what trained them. p values of "these configurations" ask what another training would do; those of "these systems"
take the trained models as they are and ask what other sentences would do. Other words are config overrides: scale=...,
replicates=..., data.dir=..., search.beam=...

Examples:
  nmt compare sweep=table5_attention a=Add-512 b=Mul-512 scale=cpu_table results=docs/results
  nmt compare a=5ee802290a8a b=da1d780ff1d7 results=docs/results metric=bleu,chrf
  nmt compare a=3f2a91c07be4/s1,3f2a91c07be4/s2 b=joeynmt json=true
"""
WIDTH, PLACES = 28, 9  # of the names of tests and of their p


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What `nmt compare` takes beside config overrides."""

    a: str = option("", "the one side: a row, an experiment, run ids, or an imported system")
    b: str = option("", "the other side; differences are a minus b")
    sweep: str = option("", "the sweep whose rows a and b are labels of")
    metric: list[str] = option(list, "test metrics to compare in; unset: the one that chose checkpoints")
    results: str = option("", RESULTS_HELP)
    json: bool = option(False, "as one JSON object")
    runs: str = option("", "directory of runs; unset: $NMT_RUNS, else runs", key="paths.runs")


def main(argv: Sequence[str]) -> int:
    """Compare what the command line names, and print what can be said; returns 0."""
    options, words = parse(
        CompareOptions,
        argv,
        verb="nmt compare",
        summary="Compare two rows, experiments, sets of runs or systems: the difference with its interval, and tests "
        "of two questions that are kept apart: would it hold if both were trained again, and would it hold on other "
        "sentences?",
        epilog=EXAMPLES,
        rest=True,
    )
    from sweeps.comparison import compare
    from sweeps.sides import Places, find_sides

    places = Places(
        sweep=options.sweep,
        runs=options.runs,
        archives=tuple(archive_directories(options.results)),
        overrides=tuple(words),
    )
    a, b = find_sides(options.a, options.b, places)
    metrics = options.metric or [_chosen_by(a, b)]
    found = [compare(a, b, metric) for metric in dict.fromkeys(metrics)]
    if options.json:
        sys.stdout.write(strict_json(record(a, b, found), indent=1) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines(a, b, found)))
    return 0


def lines(a: Side, b: Side, found: Sequence[Comparison]) -> Iterator[str]:
    """What is printed."""
    for key, side in (("a", a), ("b", b)):
        runs = ", ".join(one.run_id for one in side.replicates)
        yield f"{key}  {side.name}: {counted(len(side.replicates), 'replicate')} ({runs})"
        if side.missing:
            yield f"   not complete, left out: {', '.join(side.missing)}"
    for one in found:
        yield ""
        yield from _lines(one)


def record(a: Side, b: Side, found: Sequence[Comparison]) -> dict[str, Any]:
    """The same as plain data."""
    sides = {
        key: {
            "name": side.name,
            "runs": [{"run_id": one.run_id, "decode_id": one.decode_id} for one in side.replicates],
            "missing": list(side.missing),
        }
        for key, side in (("a", a), ("b", b))
    }
    metrics = [dataclasses.asdict(one) | {"better": one.better} for one in found]
    return sides | {"metrics": metrics}


def _lines(one: Comparison) -> Iterator[str]:
    from sweeps.reporting.significance import signed

    contrast = one.configurations.contrast
    yield f"{one.metric}: a {mean_and_sd(one.a)}, b {mean_and_sd(one.b)}, a − b = {signed(contrast.difference)}"
    yield ""
    yield "  These configurations: would it hold if both were trained again?"
    yield from map("    {}".format, _of_configurations(one.configurations))
    yield "  These systems: would it hold for these trained models on other sentences?"
    yield from map("    {}".format, _of_systems(one.systems))
    if one.systems.interval:
        yield "  Both at once, an interval and no test"
        told = "" if one.systems.coverage is None else f"   simulated coverage {one.systems.coverage} at this rho"
        yield f"    {'replicates, then sentences':<{WIDTH}}{_interval(one.systems.interval)}{told}"
    yield f"  Answer: {_answer(one)}"


def _of_configurations(found: Configurations) -> Iterator[str]:
    from sweeps.reporting.significance import p_value

    contrast = found.contrast
    if found.unanswerable:
        yield f"not answerable: {found.unanswerable}"
        return
    test = "paired t test" if contrast.paired else "Welch's t test"
    if contrast.p_welch is None:
        yield f"{test:<{WIDTH}}none: there is no spread to measure by"
    else:
        sizes = f"{contrast.n_a} pairs" if contrast.paired else f"{contrast.n_a} v {contrast.n_b} with these sds"
        told = "" if found.size is None else f"   simulated size {found.size} at {sizes}"
        yield f"{test:<{WIDTH}}{_p(contrast.p_welch)}{told}".rstrip()
        told = "" if found.coverage is None else f"   simulated coverage {found.coverage}"
        yield f"{'95 % interval':<{WIDTH}}{_interval(contrast.interval)}{told}"
    yield (
        f"{'exact permutation test':<{WIDTH}}{_p(contrast.p_exact)}   {_exactly(contrast)}; "
        f"the smallest it can be is {p_value(contrast.p_smallest)}"
    )
    yield f"{'replicates needed':<{WIDTH}}{_needed(found)}"
    if found.variance_ratio is not None and found.variances is not None:
        check = found.variances.p
        told = "" if check is None else f"; Brown and Forsythe's test {_p(check).rstrip()}"
        ratio = f"{contrast.sd_a:.2f}² and {contrast.sd_b:.2f}², ratio {found.variance_ratio:.2g}"
        yield f"{'variances':<{WIDTH}}{ratio}{told}"


def _of_systems(found: Systems) -> Iterator[str]:
    if found.unanswerable:
        yield f"not answerable: {found.unanswerable}"
        return
    chosen = f"of {found.runs[0]} and {found.runs[1]}"
    if found.bootstrap is not None:
        yield f"{'paired bootstrap':<{WIDTH}}{_p(found.bootstrap)}   {chosen}, simulated size {found.bootstrap_size}"
    if found.randomisation is not None:
        yield f"{'approximate randomisation':<{WIDTH}}{_p(found.randomisation)}   {chosen}"
    size = f", simulated size {found.stratified_size} for configurations at this rho" if found.stratified_size else ""
    yield f"{'stratified randomisation':<{WIDTH}}{_p(found.stratified)}   of all replicates{size}"
    if found.rho is not None and found.rho_interval is not None:
        low, high = found.rho_interval
        told = "sd of the training over that of the choice of sentences"
        yield f"{'rho':<{WIDTH}}{found.rho:.1f} ({low:.1f} to {high:.1f})   {told}"


def _p(p: float | None) -> str:
    from sweeps.reporting.significance import p_value

    text = p_value(p)
    return f"{'p ' if text.startswith('<') else 'p = '}{text}".ljust(PLACES)


def _answer(one: Comparison) -> str:
    from sweeps.statistics.power import ALPHA

    if not one.better:
        return "the means are equal, or a score is not finite"
    better, worse = (one.better, "b" if one.better == "a" else "a")
    found, ahead = one.configurations, f"undecided: {one.better} is ahead"
    trained_again, other_sentences = found.contrast.p_welch, one.systems.stratified
    if not found.unanswerable and trained_again is not None:
        if trained_again <= ALPHA:
            told = f"{_p(trained_again).rstrip()}, for one comparison that was planned"
            return f"{better} is better than {worse} as a configuration ({told})"
        needed = f"{found.needed_welch} replicates a side might tell" if found.needed_welch else "1000 would not tell"
        return f"{ahead}, but not by more than training again may change; {needed}"
    if other_sentences is None:
        return f"{ahead}, and nothing here can tell whether by more than chance"
    if other_sentences <= ALPHA:
        return f"these trained models differ, {better} ahead; of the configurations nothing can be said"
    return f"{ahead}, but not by more than other sentences may change"


def _exactly(contrast: Contrast) -> str:
    if contrast.sampled:
        return "100,000 splits drawn"
    return "signs of pairs" if contrast.paired else "exact where both are alike"


def _needed(found: Configurations) -> str:
    told = "for power 0.8, were the true difference and sds these"
    many = "more than 1000" if found.needed_welch is None else str(found.needed_welch)
    if found.contrast.paired:
        return f"{many} pairs {told}"
    exact = "more than 1000" if found.needed_exact is None else str(found.needed_exact)
    return f"{many} a side (Welch), {exact} (exact) {told}"


def _interval(interval: tuple[float, float] | None) -> str:
    from sweeps.reporting.significance import signed

    return NOTHING if interval is None else f"[{signed(interval[0])}, {signed(interval[1])}]"


def _chosen_by(a: Side, b: Side) -> str:
    config = a.config or b.config
    return config.validation.metric if config else "bleu"
