"""`nmt sweep`: rows × replicates of a sweep, what is missing of them, table and picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmt.archives import RESULTS_HELP, archive_directories
from nmt.arguments import option, parse
from nmt.errors import UserError
from sweeps.execution import DONE, run_sweep
from sweeps.plan import SweepPlan, make_plan
from sweeps.reporting.columns import COLUMNS_HELP, choose_columns
from sweeps.reuse import CHOICES as REUSE
from sweeps.screen import near, say, standard_output
from sweeps.spec import SweepSpec, available_sweeps, load_spec

if TYPE_CHECKING:
    from rich.console import Console


EXAMPLES = """\
Examples:
  nmt sweep sweep=quickstart                    # train what is missing, then table and picture
  nmt sweep sweep=quickstart replicates=4       # two more replicates of each row
  nmt sweep sweep=quickstart replicates='until ci<0.3 max=12'   # until each mean is known to ± 0.3
  nmt sweep sweep=quickstart dry_run=true       # what would run
  nmt sweep sweep=quickstart executor=inline training.max_steps=100
  nmt sweep search_space=rate_and_dropout trials=20     # look for a good configuration
  nmt sweep experiment=baseline grid='model.attention.units=128,256,512' replicates=4 save=my_sweep
"""


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What `nmt sweep` takes beside config overrides."""

    sweep: str = option(
        "", "name of a sweep in conf/sweep, or a YAML file of your own; without it, the sweeps are listed"
    )
    grid: tuple[str, ...] = option(
        (),
        "rows without a file: of the given experiment=..., the product of 'key=a,b;key=c,d' over config keys and "
        "groups; may stand several times",
    )
    search_space: str = option(
        "",
        "look for a good configuration: a name in conf/search_space, a YAML file, or 'key=log:1e-4..1e-2;key=a,b' with "
        "experiment=...; the best trials are trained in replicates",
    )
    trials: int | None = option(None, "configurations that a search tries; unset: as its file says, or 16", minimum=1)
    finalists: int | None = option(
        None, "best trials that are trained in replicates; unset: as its file says, or 3", minimum=0
    )
    sampler: str | None = option(
        None, "how a search proposes; unset: as its file says, or random", choices=("random", "tpe")
    )
    save: str = option(
        "",
        "name in conf/sweep, or a YAML file, that a grid or the finalists of a search are written to; sweep=<name> "
        "then runs it",
    )
    reuse: str = option(
        "any",
        "any: a run of the same configuration and numerics counts, and what other code trained is marked; same_code: "
        "such a run is set aside and trained anew",
        choices=REUSE,
    )
    results: str = option("", RESULTS_HELP)
    columns: list[str] = option(list, COLUMNS_HELP)
    dry_run: bool = option(False, "print rows, runs and what would be done, and start nothing")


def main(argv: Sequence[str]) -> int:
    """Run a sweep as the command line asks; returns the exit code."""
    options, overrides = parse(
        SweepOptions,
        argv,
        verb="nmt sweep",
        summary="Train every row of a sweep in replicates, resuming and reusing what is there, and show the table "
        "mean ± sd (max). Other words are config overrides for all rows (`nmt train --help` lists them).",
        epilog=EXAMPLES,
        rest=True,
    )

    console = standard_output()
    choose_columns(options.columns)  # a mistake is told before anything is trained
    if options.search_space:
        return _search(options, overrides, console)
    for name in ("trials", "finalists", "sampler"):
        _refuse_alone(name, str(getattr(options, name) or ""), "search_space=...")
    if not options.sweep and not options.grid:
        _refuse_alone("save", options.save, "grid=...")
        if overrides:
            what = "sweep=<name>, grid='key=a,b' or search_space=<name> with it; nmt sweep alone lists what there is"
            raise UserError("is no sweep by itself", where=overrides[0], hint=f"give {what}")
        list_sweeps(console)
        return DONE
    plan, words = _plan_of(options, overrides)
    if options.save:
        _save(plan.spec, options, overrides, console)
    if options.dry_run:
        from sweeps.dry_run import show_plan

        show_plan(plan, console)
        return DONE
    return run_sweep(plan, console, words, options.columns)


def _plan_of(options: SweepOptions, overrides: Sequence[str]) -> tuple[SweepPlan, list[str]]:
    """What the command line asks for, and the words that ask for it again, replicates apart."""
    archives = archive_directories(options.results)
    where = [f"results={options.results}"] if archives else []
    if options.grid:
        from sweeps.ad_hoc import ad_hoc_spec
        from sweeps.saved import place_of, refuse_other_file

        _refuse_alone("sweep", options.sweep, "grid=... or sweep=..., not both")
        path = place_of(options.save) if options.save else None
        spec, here = ad_hoc_spec(options.grid, overrides, path.stem if path else "")
        if path:
            refuse_other_file(path, spec, _made_by(options, overrides))
        again = [f"sweep={options.save}", *here] if path else [*_made_by(options, overrides), *here]
        plan = make_plan(spec, here, reuse=options.reuse, archives=archives)
        return plan, [*_without_replicates(again), *where]
    _refuse_alone("save", options.save, "grid=...")
    plan = make_plan(load_spec(options.sweep), overrides, reuse=options.reuse, archives=archives)
    return plan, [f"sweep={options.sweep}", *_without_replicates(overrides), *where]


def _search(options: SweepOptions, overrides: Sequence[str], console: Console) -> int:
    from sweeps.tuning.search import make_search, run_search, show_search

    for name in ("sweep", "grid"):
        _refuse_alone(name, str(getattr(options, name) or ""), f"search_space=... or {name}=..., not both")
    search = make_search(options.search_space, overrides, options.trials, options.finalists, options.sampler)
    if options.dry_run:
        show_search(search, console)
        return DONE

    def run_finalists(spec: SweepSpec, here: list[str], words: list[str]) -> int:
        archives = archive_directories(options.results)
        return run_sweep(make_plan(spec, here, reuse=options.reuse, archives=archives), console, words)

    return run_search(search, options.save, console, run_finalists)


def _refuse_alone(name: str, value: str, hint: str) -> None:
    if value:
        raise UserError("does not go with the rest of the command", where=f"{name}={value}", hint=f"give {hint}")


def _made_by(options: SweepOptions, overrides: Sequence[str]) -> list[str]:
    """The words that an ad hoc sweep consists of, without those that only say where it runs."""
    from sweeps.words import split_places

    return [*split_places(overrides)[1], *(f"grid={text}" for text in options.grid)]


def _save(spec: SweepSpec, options: SweepOptions, overrides: Sequence[str], console: Console) -> None:
    from sweeps.saved import place_of, save_spec

    path = place_of(options.save)
    new = save_spec(path, spec, _made_by(options, overrides))
    say(console, f"{'written to' if new else 'as written in'} {near(path)}: nmt sweep sweep={options.save}")


def list_sweeps(console: Console) -> None:
    """Print the checked-in sweeps and search spaces with their titles."""
    from sweeps.tuning.space import available_spaces

    for option_name, found in (("sweep", available_sweeps()), ("search_space", available_spaces())):
        width = max(map(len, found), default=0)
        console.print(f"nmt sweep {option_name}=<name>, one of", markup=False, highlight=False)
        for name, title in found.items():
            say(console, f"  {name:<{width}}  {title}")


def _without_replicates(overrides: Sequence[str]) -> list[str]:
    return [word for word in overrides if not word.startswith("replicates=")]
