"""What a search proposes: the same whenever it is asked, new ones only, and for TPE near what did well."""

from __future__ import annotations

import math
import statistics
import sys

import pytest

from nmt.errors import UserError
from sweeps.tuning.samplers import RandomSampler, Result, Sampler, TpeSampler, make_sampler, new_proposal, text_of
from sweeps.tuning.space import Choice, Range, SearchSpec

RATE = "optimizer.learning_rate"


def spec(**fields: object) -> SearchSpec:
    space = {
        RATE: Range(low=1e-4, high=1.0, log=True),
        "model.encoder.layers": Range(low=1, high=4, step=1.0, whole=True),
        "model.encoder.cell.dropout_input": Range(low=0.0, high=0.4, step=0.1),
        "batch.size": Range(low=8, high=64, log=True, whole=True),
        "model/attention": Choice(values=("additive", "dot")),
    }
    return SearchSpec(name="s", title="A search", **({"space": space} | fields))  # type: ignore[arg-type]


def samplers() -> list[Sampler]:
    pytest.importorskip("optuna", reason="optuna is not installed: pip install 'seq2seq-studies[search]'")
    return [RandomSampler(spec()), TpeSampler(spec())]


def grown(sampler: Sampler, trials: int, peak: float = 0.01) -> list[Result]:
    """A search whose score is the closer to 0 the nearer the learning rate is to `peak`, in factors."""
    results: list[Result] = []
    for number in range(1, trials + 1):
        assignments = sampler.propose(number, 0, results)
        score = -abs(math.log10(float(dict(assignments)[RATE]) / peak))
        results.append(Result(assignments=assignments, score=score, step=90, stopped=number % 3 == 0))
    return results


def test_a_proposal_depends_on_nothing_but_seed_number_and_results() -> None:
    for sampler in samplers():
        results = grown(sampler, 12)
        again = type(sampler)(spec())  # type: ignore[call-arg]
        for number in (12, 3, 9):  # in any order
            assert again.propose(number, 0, results[: number - 1]) == results[number - 1].assignments
        other = type(sampler)(spec(seed=2))  # type: ignore[call-arg]
        assert other.propose(12, 0, results[:11]) != results[11].assignments
        assert sampler.propose(12, 1, results[:11]) != results[11].assignments


def test_every_proposal_is_one_of_the_space() -> None:
    for sampler in samplers():
        for result in grown(sampler, 15):
            values = dict(result.assignments)
            assert list(values) == list(spec().space)
            assert 1e-4 <= float(values[RATE]) <= 1.0
            assert values["model.encoder.layers"] in ("1", "2", "3", "4")
            assert values["model.encoder.cell.dropout_input"] in ("0", "0.1", "0.2", "0.3", "0.4")
            assert 8 <= int(values["batch.size"]) <= 64
            assert values["model/attention"] in ("additive", "dot")


def test_tpe_proposes_near_what_did_well_and_random_does_not() -> None:
    random, tpe = samplers()

    def distance(sampler: Sampler) -> float:
        late = grown(sampler, 40)[20:]
        return statistics.fmean(-(one.score or 0.0) for one in late)

    assert distance(tpe) < 0.6 * distance(random)


def test_tpe_takes_trials_that_have_no_score_yet() -> None:
    _, tpe = samplers()
    results = grown(tpe, 10)
    waiting = Result(assignments=tpe.propose(11, 0, results))
    assert dict(tpe.propose(12, 0, [*results, waiting]))[RATE]


def test_without_optuna_tpe_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"sampler=tpe: needs optuna, which is not installed; pip install .*\[search\]"):
        make_sampler(spec(sampler="tpe"))
    assert isinstance(make_sampler(spec()), RandomSampler)


def test_what_is_known_is_not_proposed_again_until_nothing_is_left() -> None:
    small = spec(space={"batch.size": Range(low=1, high=3, step=1.0, whole=True), "a": Choice(values=("x", "y"))})
    known: list[str] = []
    while (proposed := new_proposal(RandomSampler(small), small, 1, [], known)) is not None:
        known.append(text_of(proposed))
    assert sorted(known) == [f"batch.size={size} a={a}" for size in (1, 2, 3) for a in "xy"]
