"""`nmt reproduce study=…`: experiments from what is missing to the verdicts on the claims, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.execution import DONE, INTERRUPTED, run_sweep
from sweeps.plan import SweepPlan, make_plan, plan_again
from sweeps.screen import near, say, standard_output
from sweeps.spec import load_spec
from sweeps.studies.claims import Verdict, judge, load_study_claims
from sweeps.studies.points import Findings
from sweeps.studies.report import StudyReport, write_study
from sweeps.studies.study import Experiment, Study, load_study

if TYPE_CHECKING:
    from rich.console import Console

RUNS_MISSING = 2


def reproduce_study(name: str, experiments: Sequence[str], words: Sequence[str], dry_run: bool) -> int:
    """Run what is missing of a study and report; returns the exit code.

    experiments: those to run and judge; without any all. words: config overrides for all runs and models.

    Exit codes: 0 every run is there, whatever the verdicts; 2 some are missing; 75 interrupted and resumable.
    """
    console = standard_output()
    study = load_study(name)
    chosen = study.of(experiments)
    claims = load_study_claims(study)  # a mistake is told before anything is trained
    plans = {one.name: make_plan(load_spec(one.sweep), words) for one in chosen if one.sweep}
    if dry_run:
        return _show(study, chosen, plans, len(claims), console)
    found: dict[str, Findings] = {}
    missing = False
    for one in chosen:
        say(console, f"{one.title}: {one.question}")
        own = Findings()
        if plan := plans.get(one.name):
            code = run_sweep(plan, console, [f"sweep={plan.name}", *words])
            if code == INTERRUPTED:
                return INTERRUPTED
            missing = missing or code != DONE
            own += _trained(plan, one)
        found[one.name] = own + _others(one, words, console)
    verdicts = [judge(claim, found.get(claim.experiment)) for claim in claims if claim.experiment in found]
    report = write_study(study, chosen, found, verdicts, _place(study, plans, words))
    _say_verdicts(verdicts, report, console)
    return RUNS_MISSING if missing else DONE


def _trained(plan: SweepPlan, experiment: Experiment) -> Findings:
    from sweeps.studies.trained import read_trained

    return read_trained(plan_again(plan), experiment.name, experiment.curves)


def _others(experiment: Experiment, words: Sequence[str], console: Console) -> Findings:
    """The parts of an experiment that are no sweep."""
    found = Findings()
    if experiment.emulated is not None:
        from sweeps.studies.emulated import emulate

        say(console, "emulated: stages are timed here, machines are not there")
        found += emulate(experiment.emulated, experiment.name, words)
    if experiment.network is not None:
        from sweeps.studies.network import run_on_hosts

        say(console, "measured: every process on a host of its own, over cables of a given rate")
        found += run_on_hosts(experiment.network, words, f"{experiment.name}.network")
    if experiment.largest is not None:
        from sweeps.studies.largest import grow

        say(console, "measured: models are grown until a node is killed")
        found += grow(experiment.largest, words, f"{experiment.name}.largest")
    return found


def _place(study: Study, plans: dict[str, SweepPlan], words: Sequence[str]) -> Path:
    """Where the report goes: beside those of sweeps."""
    from nmt.config import compose

    paths = next(iter(plans.values())).config.paths if plans else compose(list(words)).paths
    root = Path(paths.reports) if paths.reports else Path(paths.runs) / "reports"
    return root.expanduser().resolve() / f"study-{study.name}"


def _show(
    study: Study, chosen: Sequence[Experiment], plans: dict[str, SweepPlan], claims: int, console: Console
) -> int:
    """What would be run."""
    from sweeps.dry_run import show_plan

    say(console, study.title)
    for one in chosen:
        parts = [part for part in ("emulated", "largest", "network") if getattr(one, part) is not None]
        say(console, f"{one.title}: {one.question}" + (f" ({', '.join(parts)})" if parts else ""))
        if one.name in plans:
            show_plan(plans[one.name], console)
    say(console, f"{claims} claims would be judged")
    return DONE


def _say_verdicts(verdicts: Sequence[Verdict], report: StudyReport, console: Console) -> None:
    for one in verdicts:
        where = f": {one.where}" if one.where else ""
        mark = " (emulated values among them)" if one.emulated else ""
        say(console, f"{one.verdict}{mark}  {one.claim.statement}{where}")
    say(console, f"report          {near(report.page)}")
    say(console, f"document        {near(report.document)}, and {report.data.name} with every value")
