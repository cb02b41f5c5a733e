"""Which configuration a search tries next: at random, or where earlier trials did well (TPE, with Optuna).

A proposal is a function of (sampler's seed, number of the trial, results so far), never of a stream that is drawn from:
so a search that is interrupted, or asked for more trials, goes on as if nothing had happened.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nmt.errors import UserError
from sweeps.tuning.space import Choice, Dimension, SearchSpec

ATTEMPTS = 20  # proposals that are there already, until the search looks for what is left
Assignments = tuple[tuple[str, str], ...]  # values by config key, in the order of the space


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a sampler may know of an earlier trial: its score at the last evaluation that was seen, higher is better.

    `score` is None of a trial that has none yet; `stopped` says that the search ended it after `step` steps.
    """

    assignments: Assignments
    score: float | None = None
    step: int = 0
    stopped: bool = False


class Sampler(Protocol):
    """Proposes configurations."""

    def propose(self, number: int, attempt: int, results: Sequence[Result]) -> Assignments:
        """Values for trial `number`; another `attempt` gives others, where one proposed what is there already."""


class RandomSampler:
    """Every value of a dimension is as likely as every other; results do not matter."""

    def __init__(self, spec: SearchSpec):
        self.spec = spec

    def propose(self, number: int, attempt: int, results: Sequence[Result]) -> Assignments:
        """Values drawn for (seed, number, attempt, key)."""
        return tuple(
            (key, dimension.at(random.Random(f"{self.spec.seed} {number} {attempt} {key}").random()))
            for key, dimension in self.spec.space.items()
        )


class TpeSampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), by Optuna.

    The first `STARTUP` trials are random. A trial that was stopped counts with its score where it stopped, behind all
    that got further; one that is under way counts as if it had done badly, so that its neighbours are not tried too.
    """

    STARTUP = 8

    def __init__(self, spec: SearchSpec):
        try:
            import optuna
        except ImportError as error:
            raise UserError(
                "needs optuna, which is not installed",
                where="sampler=tpe",
                hint="pip install 'seq2seq-studies[search]', or sampler=random",
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.spec, self.optuna = spec, optuna
        self.distributions = {key: self._distribution(dimension) for key, dimension in spec.space.items()}

    def propose(self, number: int, attempt: int, results: Sequence[Result]) -> Assignments:
        """What the estimator expects to do best, given the results."""
        seed = zlib.crc32(f"{self.spec.seed} {number} {attempt}".encode())
        study = self.optuna.create_study(
            direction="maximize",
            sampler=self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.STARTUP, constant_liar=True),
        )
        study.add_trials([trial for result in results if (trial := self._told(result))])
        chosen: Mapping[str, Any] = study.ask(self.distributions).params
        return tuple((key, self._text(dimension, chosen[key])) for key, dimension in self.spec.space.items())

    def _distribution(self, dimension: Dimension) -> Any:
        distributions = self.optuna.distributions
        if isinstance(dimension, Choice):
            return distributions.CategoricalDistribution(list(dimension.values))
        if dimension.whole and dimension.log:
            return distributions.IntDistribution(round(dimension.low), round(dimension.high), log=True)
        top = dimension.low + dimension.step * (dimension.size - 1) if dimension.step else dimension.high
        return distributions.FloatDistribution(dimension.low, top, log=dimension.log, step=dimension.step or None)

    def _told(self, result: Result) -> Any:
        states = self.optuna.trial.TrialState
        known = dict(result.assignments)
        if known.keys() != self.spec.space.keys():
            return None
        params = {key: self._value(dimension, known[key]) for key, dimension in self.spec.space.items()}
        if result.score is None:
            return self.optuna.trial.create_trial(params=params, distributions=self.distributions, state=states.RUNNING)
        return self.optuna.trial.create_trial(
            params=params,
            distributions=self.distributions,
            value=result.score,
            intermediate_values={result.step: result.score},
            state=states.PRUNED if result.stopped else states.COMPLETE,
        )

    def _value(self, dimension: Dimension, text: str) -> Any:
        if isinstance(dimension, Choice):
            return text
        return int(text) if dimension.whole and dimension.log else float(text)

    def _text(self, dimension: Dimension, value: Any) -> str:
        return str(value) if isinstance(dimension, Choice) else dimension.text(float(value))


SAMPLERS: Mapping[str, type[RandomSampler] | type[TpeSampler]] = {"random": RandomSampler, "tpe": TpeSampler}


def make_sampler(spec: SearchSpec) -> Sampler:
    """The sampler that the search names. Raises UserError where it needs what is not installed."""
    return SAMPLERS[spec.sampler](spec)


def new_proposal(
    sampler: Sampler, spec: SearchSpec, number: int, results: Sequence[Result], known: Iterable[str]
) -> Assignments | None:
    """The sampler's first proposal that is not `known` yet, as texts of `text_of`.

    Where `ATTEMPTS` of them were known, the first that is left of a finite space; None where nothing is left or an
    infinite space gives no more.
    """
    taken = set(known)
    for attempt in range(ATTEMPTS):
        proposed = sampler.propose(number, attempt, results)
        if text_of(proposed) not in taken:
            return proposed
    every = itertools.product(*([(key, value) for value in dimension.all()] for key, dimension in spec.space.items()))
    return next((one for one in every if text_of(one) not in taken), None)


def text_of(assignments: Assignments) -> str:
    """Assignments as overrides in one line."""
    return " ".join(f"{key}={value}" for key, value in assignments)
