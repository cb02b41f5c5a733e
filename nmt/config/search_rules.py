"""What the keys of a search demand of each other: `search` and `validation.search` alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nmt.config.schema import RunConfig, SearchConfig
from nmt.config.widths import NO_ATTENTION
from nmt.errors import UserError

# Keys that mean something under one condition only. Elsewhere they must stand at their neutral value: a key that is set
# and does nothing is a mistake.
_CONDITIONAL: tuple[tuple[str, Callable[[SearchConfig], bool], str], ...] = (
    ("patience", lambda search: search.stop == "patience", "stop=patience"),
    ("length_penalty", lambda search: search.penalty in ("gnmt", "power"), "penalty=gnmt or penalty=power"),
    ("penalty_counts_eos", lambda search: search.penalty != "none", "a length penalty"),
    ("coverage_weight", lambda search: search.coverage != "none", "coverage=wu or coverage=summary"),
    ("diverse_strength", lambda search: search.diverse_groups > 1, "diverse_groups above 1"),
    ("finishing", lambda search: search.method == "beam", "method=beam"),
    ("stop", lambda search: search.method == "beam", "method=beam"),
    ("coverage", lambda search: search.method == "beam", "method=beam"),
    ("diverse_groups", lambda search: search.method == "beam", "method=beam"),
    ("temperature", lambda search: search.method == "sample", "method=sample"),
    ("top_k", lambda search: search.method == "sample", "method=sample"),
    ("top_p", lambda search: search.method == "sample", "method=sample"),
)


def check_searches(config: RunConfig) -> None:
    """Check both searches of a run."""
    for where, search in (("search", config.search), ("validation.search", config.validation.search)):
        check_search(search, where)
        if search.coverage != "none" and config.model.attention.name in NO_ATTENTION:
            raise UserError(
                f"needs attention, and the model has {config.model.attention.name}",
                where=f"{where}.coverage",
                hint=f"{where}.coverage=none",
            )


def check_search(search: SearchConfig, where: str = "search") -> None:
    """Raise UserError for the first key of a search that contradicts another; `where` is the section's name."""
    for field in dataclasses.fields(search):
        for name, applies, condition in _CONDITIONAL:
            neutral = field.metadata["neutral"]
            if field.name == name and getattr(search, name) != neutral and not applies(search):
                shown = str(neutral).lower() if isinstance(neutral, bool) else f"{neutral}" or "''"
                hint = f"{where}.{name}={shown}"
                raise UserError(f"means something only with {condition}", where=f"{where}.{name}", hint=hint)
    for rule in (_beam, _stop, _coverage, _lengths, _groups):
        rule(search, where)


def _beam(search: SearchConfig, where: str) -> None:
    if search.method == "beam" and search.n_best > search.beam:
        raise UserError(
            f"{search.n_best} best of a beam of {search.beam}",
            where=f"{where}.n_best",
            hint=f"raise {where}.beam to at least {search.n_best}",
        )


def _stop(search: SearchConfig, where: str) -> None:
    if search.method == "sample":
        return
    if search.finishing == "standard" and search.stop == "all":
        raise UserError(
            "a beam that finished hypotheses leave is never full of them",
            where=f"{where}.stop",
            allowed=["bound", "first_n", "patience"],
            hint=f"{where}.stop=bound",
        )
    if search.finishing == "google" and search.stop == "patience" and search.patience > 1:
        raise UserError(
            f"{search.patience:g} times the beam can never have finished where finished hypotheses stay in it",
            where=f"{where}.patience",
            allowed=["> 0 and <= 1"],
            hint=f"{where}.finishing=standard",
        )
    if search.stop == "patience" and search.beam * search.patience < search.n_best:
        raise UserError(
            f"{search.patience:g} times a beam of {search.beam} may find fewer than n_best={search.n_best}",
            where=f"{where}.patience",
            hint=f"at least {search.n_best / search.beam:g}",
        )


def _coverage(search: SearchConfig, where: str) -> None:
    if search.coverage != "none" and search.coverage_weight == 0:
        raise UserError(
            f"must be above 0 with coverage {search.coverage}",
            where=f"{where}.coverage_weight",
            hint=f"{where}.coverage_weight=0.2",
        )


def _lengths(search: SearchConfig, where: str) -> None:
    if search.min_length > search.max_length:
        raise UserError(
            f"{search.min_length} is more than max_length={search.max_length}",
            where=f"{where}.min_length",
            hint=f"raise {where}.max_length",
        )
    if 0 < search.max_length_ratio < search.min_length_ratio:
        raise UserError(
            f"{search.min_length_ratio:g} is more than max_length_ratio={search.max_length_ratio:g}",
            where=f"{where}.min_length_ratio",
            hint=f"raise {where}.max_length_ratio",
        )


def _groups(search: SearchConfig, where: str) -> None:
    if search.diverse_groups == 1:
        return
    key = f"{where}.diverse_groups"
    if search.beam % search.diverse_groups:
        raise UserError(
            f"a beam of {search.beam} cannot form {search.diverse_groups} equal groups",
            where=key,
            hint=f"choose a divisor of {where}.beam",
        )
    if search.finishing != "google" or search.stop != "all":
        raise UserError(
            "each group runs until all its hypotheses have finished",
            where=key,
            hint=f"{where}.finishing=google {where}.stop=all",
        )
    if search.diverse_strength == 0:
        raise UserError(
            "must be above 0 with diverse groups, or all groups are the same",
            where=f"{where}.diverse_strength",
            hint=f"{where}.diverse_strength=0.5",
        )
