"""What `a=…` and `b=…` of a comparison mean: a sweep's row, stored runs, an experiment, or an imported system."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from nmt.config import RunConfig, load_run_config
from nmt.config.compose import groups
from nmt.config.identity import digest, text_identity
from nmt.config.override import override
from nmt.errors import UserError, did_you_mean
from nmt.runs import runs_directory
from sweeps.chosen import of_runs
from sweeps.imported.store import ImportedSystem, digest_of, systems_called
from sweeps.plan import SweepPlan, make_plan
from sweeps.results import Replicate, read_replicate
from sweeps.sentences import references
from sweeps.spec import RowSpec, SweepSpec, load_spec


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of two things that are compared.

    replicates: those that are complete, in the order of their seeds.
    config: of the first replicate; None of an imported system, whose test set is known by `references_sha256`.
    missing: run ids that are not complete and are left out.
    """

    name: str
    replicates: tuple[Replicate, ...]
    config: RunConfig | None = None
    references_sha256: str = ""
    test_identity: str = ""
    missing: tuple[str, ...] = field(default=())

    def same_test_set(self, other: Side) -> bool:
        """Whether both were scored on the same references, as far as that is known where the corpus does not lie."""
        if self.test_identity and self.test_identity == other.test_identity:
            return True
        digests = [side.references_sha256 or _references_digest(side.config) for side in (self, other)]
        return bool(digests[0]) and digests[0] == digests[1]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a comparison looks: a sweep's name, directories of runs and of archived ones, config overrides."""

    sweep: str = ""
    runs: str = ""
    archives: tuple[Path, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The directory of runs."""
        return runs_directory(self.runs)


def find_sides(a: str, b: str, places: Places) -> tuple[Side, Side]:
    """Both sides of a comparison.

    Raises UserError where one is not known or has no complete replicate, where both are the same runs, and where they
    were scored on different test sets.
    """
    found = [_candidates(text, key, places) for key, text in (("a", a), ("b", b))]
    pairs = [(one, other) for one in found[0] for other in found[1] if one.same_test_set(other)]
    if not pairs:
        raise UserError(
            f"'{a}' and '{b}' were scored on different test sets",
            where="nmt compare",
            hint="scores compare on the same sentences only; data.test.source=... and data.test.target=... choose them",
        )
    one, other = pairs[0]
    if _outputs(one) == _outputs(other):
        raise UserError(f"'{a}' and '{b}' are the same runs", where="nmt compare", hint="there is nothing to compare")
    return one, other


def _candidates(text: str, key: str, places: Places) -> list[Side]:
    """What one word may mean; an imported system is there once for each test set."""
    if not text:
        raise UserError("is missing", where=key, hint="nmt compare a=<row, runs or experiment> b=<the other>")
    labels: list[str] = []
    if places.sweep:
        plan = _plan(load_spec(places.sweep), places)
        labels = [row.label for row in plan.rows]
        if text in labels:
            return [_complete(_of_row(plan, text), key, text)]
    if systems := systems_called(places.root, text):
        return [_imported(system) for system in systems]
    known = groups()["experiment"]
    if text in known and not labels:
        spec = SweepSpec(name=text, title=text, rows=(RowSpec(label=text, experiment=text),))
        return [_complete(_of_row(_plan(spec, places), text), key, text)]
    try:
        return [_complete(_of_run_ids(text, places), key, text)]
    except UserError as error:
        if "no such run" not in error.what:
            raise
        allowed = labels or [
            "an experiment of conf/experiment",
            "run ids",
            "an imported system",
            "a row with sweep=...",
        ]
        hint = did_you_mean(text, labels or known)
        raise UserError(f"nothing is called '{text}'", where=key, allowed=allowed, hint=hint) from error


def _plan(spec: SweepSpec, places: Places) -> SweepPlan:
    where = [f"paths.runs={places.root}"] if places.runs else []
    return make_plan(spec, [*places.overrides, *where], archives=places.archives)


def _of_row(plan: SweepPlan, label: str) -> Side:
    row = next(row for row in plan.rows if row.label == label)
    return Side(
        name=label,
        replicates=tuple(run.found for run in row.runs if run.found.complete),
        config=row.config,
        test_identity=_identity(row.config),
        missing=tuple(run.run_id for run in row.runs if not run.found.complete),
    )


def _of_run_ids(text: str, places: Places) -> Side:
    words = [word.strip() for word in text.split(",") if word.strip()]
    roots = [places.root, *places.archives]
    for number, root in enumerate(roots):
        try:
            configurations = of_runs(words, str(root), "nmt compare")
            break
        except UserError:
            if number + 1 == len(roots):
                raise
    if len(configurations) > 1:
        raise UserError(
            f"{len(configurations)} configurations: replicates of one side are trainings of one configuration",
            where=text,
            allowed=[one.label for one in configurations],
        )
    (chosen,) = configurations
    first = override(load_run_config(chosen.store.directory(chosen.run_ids[0]) / "config.yaml"), places.overrides)
    found = []
    for run_id in chosen.run_ids:  # replicates differ in their seed; all are to be decoded as the first one is
        config = dataclasses.replace(first, seed=int(run_id.rpartition("/s")[2]))
        found.append(read_replicate(chosen.store, config, run_id))
    return Side(
        name=chosen.label,
        replicates=tuple(replicate for replicate in found if replicate.complete),
        config=first,
        test_identity=_identity(first),
        missing=(*(replicate.run_id for replicate in found if not replicate.complete), *chosen.left_out),
    )


def _imported(system: ImportedSystem) -> Side:
    return Side(
        name=f"{system.system} (imported)",
        replicates=tuple(replicate for replicate in system.replicates() if replicate.complete),
        references_sha256=system.test.references_sha256,
        test_identity=system.test.identity,
    )


def _complete(side: Side, key: str, text: str) -> Side:
    if side.replicates:
        return side
    missing = f" ({len(side.missing)} asked for: {side.missing[0]}, …)" if side.missing else ""
    raise UserError(
        f"'{text}' has no complete replicate{missing}",
        where=key,
        hint="train it with nmt sweep or nmt train, or say results=<archive>, paths.runs=... or scale=...",
    )


def _identity(config: RunConfig) -> str:
    try:
        return digest(text_identity(config.data, ("test",)))
    except UserError:  # files without checksums that do not lie here
        return ""


def _references_digest(config: RunConfig | None) -> str:
    try:
        return digest_of(references(config)) if config else ""
    except UserError:
        return ""


def _outputs(side: Side) -> set[tuple[str, str]]:
    return {(one.run_id, one.decode_id) for one in side.replicates}
