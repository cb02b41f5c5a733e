"""Imported systems as rows of a sweep: those whose test set is the sweep's."""

from __future__ import annotations

from collections.abc import Sequence

from nmt.config import RunConfig
from nmt.config.identity import digest, text_identity
from nmt.data.corpus import load_test
from nmt.errors import UserError
from sweeps.aggregate import RowResult, summarise
from sweeps.imported.store import ImportedSystem, TestSet, digest_of, imported_systems
from sweeps.plan import SweepPlan


def imported_rows(plan: SweepPlan) -> list[RowResult]:
    """A row for each imported system that was scored on the sweep's test set.

    Costs a look into a folder where nothing was imported. Where the corpus does not lie here, a test set is told by the
    identity of its files. A sweep that scores its rows on several test sets has no imported rows.
    """
    systems = imported_systems(plan.store.root)
    if not systems:
        return []
    identities = {_identity(row.config) for row in plan.rows}
    if len(identities) > 1:
        return []
    (identity,) = identities
    found = [one for one in systems if identity and one.test.identity == identity]
    if len(found) < len(systems):  # the same references may stand in other files; only then are they read
        references = plan.references_sha256 or _references_digest(plan.config)
        found = [one for one in systems if one in found or one.test.references_sha256 == references]
    labels = {row.label for row in plan.rows}
    return [as_row(one, labels) for one in found]


def as_row(system: ImportedSystem, taken: Sequence[str] | set[str] = ()) -> RowResult:
    """The system as a row, whose label is none of those `taken`."""
    label = f"{system.system} (imported)" if system.system in taken else system.system
    replicates = system.replicates()
    return RowResult(
        label=label,
        replicates=tuple(replicates),
        requested=len(replicates),
        max_steps=0,
        metrics=summarise(replicates),
        imported=system.mark,
    )


def find_test_set(config: RunConfig) -> tuple[TestSet, list[str]]:
    """The test set that a configuration is scored on, and its references.

    Raises UserError where it has none, or its files are not at hand.
    """
    from sweeps.sentences import references

    lines = references(config)
    test = TestSet(
        references_sha256=digest_of(lines),
        identity=_identity(config),
        sentences=len(lines),
        language=config.data.target_language,
        corpus=config.data.name,
    )
    return test, lines


def _identity(config: RunConfig) -> str:
    try:
        return digest(text_identity(config.data, ("test",)))
    except UserError:  # files without checksums that do not lie here: nothing is known of them
        return ""


def _references_digest(config: RunConfig) -> str:
    try:
        return digest_of(load_test(config.data).target)
    except UserError:
        return ""
