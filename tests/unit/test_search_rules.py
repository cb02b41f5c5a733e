"""Finishing rules, stops, penalties, coverage and constraints against searches straight from their definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_reference import Reference, agrees
from transition_model import TransitionModel, batch_of

from nmt.config.schema import AttentionConfig, ModelConfig, RunConfig, SearchConfig, ValidationConfig
from nmt.config.search_rules import check_search, check_searches
from nmt.data.vocabulary import EOS, UNK
from nmt.errors import UserError
from nmt.search.beam import beam_search
from nmt.search.interface import Hypothesis
from nmt.search.scores import LengthPenalty

VOCABULARY = 5
SOURCES = [[3, 4, 3], [4], [3, 3, 3, 3, 4, 4], [4, 3]]
PENALTIES = [
    ("gnmt", 0.0),
    ("gnmt", 0.8),
    ("gnmt", -0.6),
    ("power", 1.1),
    ("power", -0.4),
    ("average", 0.0),
    ("none", 0),
]
RULES = [("google", "all"), ("google", "bound"), ("standard", "bound")]
WIDTH = sum((VOCABULARY - 1) ** length for length in range(4))  # outputs of up to 3 tokens


def searches(model: TransitionModel, search: SearchConfig, **options: object) -> list[list[Hypothesis]]:
    return beam_search(model, *batch_of(SOURCES), search, **options)  # type: ignore[arg-type]


def check_against_everything(model: TransitionModel, **keys: Any) -> None:
    """A beam wide enough for every output, against enumeration."""
    weight = 0.0 if keys["coverage"] == "none" else 0.7
    search = SearchConfig(beam=WIDTH, max_length=3, coverage_weight=weight, **keys)
    for sentence, found in zip(SOURCES, searches(model, search), strict=True):
        expected = Reference(model, sentence, search).everything()
        assert len(expected) == WIDTH
        by_tokens = {partial.tokens: partial for partial in expected}
        assert agrees(found, [by_tokens[hypothesis.tokens] for hypothesis in found])
        best = expected[: search.n_best]
        assert [h.score for h in found] == pytest.approx([p.score for p in best], abs=1e-5)


EXACT = [
    {"penalty": penalty, "length_penalty": alpha, "finishing": finishing, "stop": stop}
    for (penalty, alpha), (finishing, stop) in product(PENALTIES, RULES)
]


@pytest.mark.parametrize("keys", EXACT, ids=lambda keys: " ".join(map(str, keys.values())))
def test_a_beam_wide_enough_finds_the_best_of_all_outputs(keys: dict[str, Any]) -> None:
    model = TransitionModel(3, VOCABULARY, eos_bonus=0.5, spread=1.5)
    for coverage, counts in (("none", True), ("wu", False), ("summary", True)):
        check_against_everything(model, n_best=4, coverage=coverage, penalty_counts_eos=counts, **keys)


@pytest.mark.exhaustive
@pytest.mark.parametrize("keys", EXACT, ids=lambda keys: " ".join(map(str, keys.values())))
@pytest.mark.parametrize("seed", range(4))
def test_every_penalty_coverage_rule_and_stop_is_exact(keys: dict[str, Any], seed: int) -> None:
    """The bound is exact for every n best; compared with enumeration, on other models than above."""
    model = TransitionModel(seed, VOCABULARY, eos_bonus=(seed - 1) * 1.5, spread=seed % 2 * 1.5)
    for coverage, counts, n_best in product(("none", "wu", "summary"), (False, True), (1, 2, 9)):
        check_against_everything(model, n_best=n_best, coverage=coverage, penalty_counts_eos=counts, **keys)


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "vocabulary": st.integers(4, 9),
        "eos_bonus": st.sampled_from([-3.0, 0.0, 3.0]),
        "spread": st.sampled_from([0.0, 1.5]),
        "beam": st.integers(1, 7),
        "n_best": st.integers(1, 7),
        "rule": st.sampled_from(
            [("google", s) for s in ("all", "bound", "first_n", "patience")]
            + [("standard", s) for s in ("bound", "first_n", "patience")]
        ),
        "patience": st.sampled_from([0.5, 1.0, 1.5]),
        "penalty": st.sampled_from(PENALTIES),
        "counts": st.booleans(),
        "coverage": st.sampled_from(["none", "none", "wu", "summary"]),
        "lengths": st.sampled_from([(0, 0.0), (0, 0.0), (3, 0.0), (0, 1.0), (6, 0.5)]),
        "max_length": st.integers(1, 9),
        "ratio": st.sampled_from([0.0, 0.0, 0.5]),
        "ngrams": st.sampled_from([0, 0, 1, 2, 3]),
        "unknown": st.booleans(),
        "prefixes": st.sampled_from([None, None, [(3, 3), (), (3,), (1, 3, 1)]]),
    }
)


def check_against_reference(case: dict) -> None:  # type: ignore[type-arg]
    model = TransitionModel(case["seed"], case["vocabulary"], eos_bonus=case["eos_bonus"], spread=case["spread"])
    finishing, stop = case["rule"]
    penalty, alpha = case["penalty"]
    search = SearchConfig(
        beam=case["beam"],
        n_best=min(case["n_best"], case["beam"]),
        finishing=finishing,
        stop=stop,
        patience=case["patience"] if stop == "patience" else 1.0,
        penalty=penalty,
        length_penalty=alpha,
        penalty_counts_eos=case["counts"],
        coverage=case["coverage"],
        coverage_weight=0.0 if case["coverage"] == "none" else 0.5,
        min_length=case["lengths"][0],
        min_length_ratio=case["lengths"][1],
        max_length=case["max_length"],
        max_length_ratio=case["ratio"],
        block_ngrams=case["ngrams"],
        block_unknown=case["unknown"],
    )
    prefixes = case["prefixes"]
    for number, (sentence, found) in enumerate(zip(SOURCES, searches(model, search, prefixes=prefixes), strict=True)):
        expected = Reference(model, sentence, search, prefixes[number] if prefixes else ()).search_result()
        assert agrees(found, expected), (sentence, found, expected)


@settings(max_examples=80, deadline=None)
@given(case=CASES)
def test_a_narrow_beam_is_the_plain_search(case: dict) -> None:  # type: ignore[type-arg]
    """For `bound` the plain search runs to the end, so this also says that stopping early changes nothing."""
    check_against_reference(case)


@pytest.mark.exhaustive
@settings(max_examples=2500, deadline=None)
@given(case=CASES)
def test_a_narrow_beam_is_the_plain_search_in_thousands_of_cases(case: dict) -> None:  # type: ignore[type-arg]
    check_against_reference(case)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(2, 2), (4, 2), (6, 2), (6, 3), (6, 6), (9, 3)]),
    strength=st.sampled_from([0.2, 0.7, 3.0]),
    penalty=st.sampled_from([("gnmt", 0.0), ("gnmt", 0.8), ("average", 0.0)]),
    coverage=st.sampled_from(["none", "wu"]),
    longest=st.integers(1, 7),
)
def test_diverse_groups_are_the_plain_search(
    seed: int, shape: tuple[int, int], strength: float, penalty: tuple[str, float], coverage: str, longest: int
) -> None:
    model = TransitionModel(seed, 6)
    beam, groups = shape
    search = SearchConfig(
        beam=beam,
        n_best=beam,
        diverse_groups=groups,
        diverse_strength=strength,
        penalty=penalty[0],
        length_penalty=penalty[1],
        coverage=coverage,
        coverage_weight=0.0 if coverage == "none" else 0.5,
        max_length=longest,
    )
    for sentence, found in zip(SOURCES, searches(model, search), strict=True):
        assert agrees(found, Reference(model, sentence, search).search_result())


def test_a_strong_diversity_gives_each_group_another_first_token() -> None:
    model = TransitionModel(8, 9)
    search = SearchConfig(beam=4, n_best=4, diverse_groups=4, diverse_strength=1e6, max_length=5)
    for found in searches(model, search):
        assert len({hypothesis.tokens[:1] for hypothesis in found}) == 4
        assert found[0] == max(found, key=lambda hypothesis: hypothesis.score)


def test_the_first_group_is_a_beam_of_its_own() -> None:
    model = TransitionModel(8, 9)
    alone = searches(model, SearchConfig(beam=3, n_best=3, max_length=6))
    together = searches(model, SearchConfig(beam=6, n_best=6, diverse_groups=2, diverse_strength=0.5, max_length=6))
    for one, other in zip(alone, together, strict=True):
        assert set(one) <= set(other)


@pytest.mark.parametrize("finishing", ["google", "standard"])
def test_the_bound_saves_steps(finishing: str) -> None:
    search = SearchConfig(beam=5, max_length=200, finishing=finishing, stop="bound")
    model = TransitionModel(4, VOCABULARY, eos_bonus=-1.0)
    searches(model, search)
    assert model.steps < 60
    patient = TransitionModel(4, VOCABULARY, eos_bonus=-1.0)
    searches(patient, replace(search, penalty="average"))  # the most hopeful penalty: a better one may always come
    assert patient.steps > model.steps


@pytest.mark.parametrize(("finishing", "stop"), [("google", "all"), ("google", "bound"), ("standard", "bound")])
def test_a_beam_of_100_and_one_wider_than_the_candidates(finishing: str, stop: str) -> None:
    model = TransitionModel(4, 30)
    for beam in (100, 300):
        search = SearchConfig(beam=beam, n_best=100, max_length=4, finishing=finishing, stop=stop, length_penalty=1.0)
        (found,) = beam_search(model, *batch_of([[3]]), search)
        assert agrees(found, Reference(model, [3], search).search_result())


def test_first_n_ends_with_the_first_that_finishes_and_the_bound_waits_for_the_best() -> None:
    """Distribution by hand: EOS is the third best token, and under `average` a longer output is better."""
    model = TransitionModel(1, vocabulary=4, states=1)
    model.table[:] = torch.log(torch.tensor([0.2, 0.05, 0.15, 0.6]))
    search = SearchConfig(beam=3, finishing="standard", stop="first_n", penalty="average", max_length=8)
    (first,) = beam_search(model, *batch_of([[3]]), search)
    assert first[0].tokens == ()
    assert first[0].score == pytest.approx(math.log(0.15))
    assert model.steps == 1
    (bound,) = beam_search(model, *batch_of([[3]]), replace(search, stop="bound"))
    assert bound[0].tokens == (3,) * 8


LATE = {  # penalties under which a longer output overtakes one that ended, with the keys that they take
    "gnmt": {"penalty": "gnmt", "length_penalty": 1.0},
    "power": {"penalty": "power", "length_penalty": 1.0},
    "average": {"penalty": "average", "penalty_counts_eos": True},
    "wu": {"coverage": "wu", "coverage_weight": 1.0},
    "summary": {"coverage": "summary", "coverage_weight": 0.25, "length_penalty": 1.0},
}


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("finishing", ["google", "standard"])
def test_the_bound_waits_for_a_hypothesis_that_overtakes_late(name: str, finishing: str) -> None:
    """By hand: the first token is EOS with 0.5 or 3 with 0.3; behind it follow nine that cost nothing, then EOS."""

    class Late(TransitionModel):
        def step(self, tokens, state, encoded):  # type: ignore[no-untyped-def]
            self.steps += 1
            row = [0.1, 0.1, 0.5, 0.3] if self.steps == 1 else [1e-9, 1e-9, 1e-9, 1.0]
            row = [1e-9, 1e-9, 1.0, 1e-9] if self.steps == 11 else row
            weights = torch.tensor([0.2, 0.8]).expand(*tokens.shape, 2)
            return torch.tensor(row).log().expand(*tokens.shape, 4).clone(), state, weights

    keys = LATE[name]
    search = SearchConfig(beam=2, finishing=finishing, stop="bound", max_length=15, **keys)  # type: ignore[arg-type]
    model = Late(1, vocabulary=4)
    (found,) = beam_search(model, *batch_of([[3]]), search)
    assert found[0].tokens == (3,) * 10
    assert found[0].log_probability == pytest.approx(math.log(0.3), abs=1e-4)
    # Without any penalty the first one is the best at once, and so under a negative alpha.
    for plain in (SearchConfig(), SearchConfig(length_penalty=-0.5), SearchConfig(penalty="none")):
        model = Late(1, vocabulary=4)
        own = replace(plain, beam=2, finishing=finishing, stop="bound", max_length=15)
        (found,) = beam_search(model, *batch_of([[3]]), own)
        assert (found[0].tokens, model.steps) == ((), 1)


def test_a_live_hypothesis_is_not_charged_for_words_that_it_may_still_attend_to() -> None:
    """Two source words; `wu` charges an output that ends before it saw the second one."""
    model = TransitionModel(1, vocabulary=4, states=1)
    model.table[:] = torch.log(torch.tensor([1e-6, 1e-6, 0.6, 0.4])).log_softmax(dim=0)
    model.focus[:, 0], model.focus[:, 1], model.focus[:, 2] = 3.0, 0.0, -9.0
    search = SearchConfig(beam=2, max_length=3, stop="bound")
    source = batch_of([[3, 3]])
    (without,) = beam_search(model, *source, search)
    (charged,) = beam_search(model, *source, replace(search, coverage="wu", coverage_weight=4.0))
    first, second = torch.tensor([3.0, 0.0, -9.0]).softmax(dim=0)[:2].tolist()
    assert without[0].tokens == ()
    assert charged[0].tokens == (3, 3)
    covered = [min(3 * first, 1.0), min(3 * second, 1.0)]
    expected = 2 * math.log(0.4) + math.log(0.6) + 4.0 * sum(map(math.log, covered))
    assert charged[0].score == pytest.approx(expected, rel=1e-5)
    assert charged[0].log_probability == pytest.approx(2 * math.log(0.4) + math.log(0.6), rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("finishing", ["google", "standard"])
def test_no_ngram_comes_twice(n: int, finishing: str) -> None:
    model = TransitionModel(2, VOCABULARY, eos_bonus=-2.0)
    search = SearchConfig(beam=4, n_best=4, block_ngrams=n, max_length=12, finishing=finishing, stop="first_n")
    for hypothesis in chain(*searches(model, search)):
        ngrams = [hypothesis.tokens[i : i + n] for i in range(len(hypothesis.tokens) - n + 1)]
        assert len(set(ngrams)) == len(ngrams)
    free = chain(*searches(model, replace(search, block_ngrams=0)))
    assert any(len(set(h.tokens)) < len(h.tokens) for h in free)


def test_a_hypothesis_that_the_rules_leave_no_token_ends() -> None:
    """With 1-grams blocked there are no more than 4 different tokens, although 9 are asked for."""
    search = SearchConfig(beam=3, n_best=3, block_ngrams=1, min_length=9, max_length=20)
    for found in searches(TransitionModel(2, VOCABULARY), search):
        assert [len(hypothesis.tokens) for hypothesis in found] == [4, 4, 4]


def test_lengths_lie_between_floor_and_limit() -> None:
    model = TransitionModel(2, VOCABULARY, eos_bonus=4.0)
    search = SearchConfig(beam=3, n_best=3, min_length=2, min_length_ratio=1.5, max_length=12)
    for sentence, found in zip(SOURCES, searches(model, search), strict=True):
        floor = max(2, math.ceil(1.5 * len(sentence)))
        assert all(floor <= len(hypothesis.tokens) <= 12 for hypothesis in found)
        assert floor in [len(hypothesis.tokens) for hypothesis in found]


def test_unknown_is_never_put_out_but_may_be_forced() -> None:
    model = TransitionModel(2, VOCABULARY)
    model.table[:, UNK] += 5.0
    search = SearchConfig(beam=3, n_best=3, max_length=5)
    assert all(UNK in found[0].tokens for found in searches(model, search))
    blocked = replace(search, block_unknown=True)
    assert all(UNK not in h.tokens for found in searches(model, blocked) for h in found)
    forced = searches(model, blocked, prefixes=[(UNK, 3), (), (4,), ()])
    assert all(h.tokens[:2] == (UNK, 3) and UNK not in h.tokens[2:] for h in forced[0])
    assert all(UNK not in h.tokens for found in forced[1:] for h in found)
    assert all(h.tokens[0] == 4 for h in forced[2])


def test_a_prefix_longer_than_the_limit_is_put_out_whole() -> None:
    model = TransitionModel(2, VOCABULARY)
    found = searches(model, SearchConfig(beam=3, max_length=2), prefixes=[(3, 4, 3, 4), (), (), (3,)])
    assert found[0][0].tokens == (3, 4, 3, 4)
    assert all(len(hypotheses[0].tokens) <= 2 for hypotheses in found[1:])
    first = int(model.encode(*batch_of([SOURCES[0]])).first)
    expected = sum(float(model.log_probabilities(first, (3, 4, 3, 4)[:i])[(3, 4, 3, 4)[i]]) for i in range(4))
    assert found[0][0].log_probability == pytest.approx(expected, abs=1e-5)


def test_divisors_by_hand() -> None:
    def divisors(penalty: str, alpha: float, counts: bool) -> tuple[float, float]:
        search = SearchConfig(penalty=penalty, length_penalty=alpha, penalty_counts_eos=counts)
        table = LengthPenalty(search, 9, torch.device("cpu"))
        return float(table.ended(7)), float(table.live(7))

    assert divisors("gnmt", 1.0, False) == (2.0, 2.0)
    assert divisors("gnmt", 1.0, True) == (13 / 6, 2.0)
    assert divisors("power", 2.0, True) == (64.0, 49.0)
    assert divisors("average", 0.0, False) == (7.0, 7.0)
    assert divisors("none", 0.0, True) == (1.0, 1.0)
    empty = LengthPenalty(SearchConfig(penalty="average"), 9, torch.device("cpu"))
    assert float(empty.ended(0)) == 1.0


def test_an_empty_output_can_win_under_average() -> None:
    model = TransitionModel(1, vocabulary=4, states=1)
    model.table[:] = torch.log(torch.tensor([0.01, 0.01, 0.97, 0.01]))
    (found,) = beam_search(model, *batch_of([[3]]), SearchConfig(beam=2, penalty="average", max_length=4))
    assert found[0].tokens == ()
    assert found[0].score == pytest.approx(math.log(0.97), rel=1e-4)


REFUSED = [
    ({"n_best": 11}, "n_best"),
    ({"finishing": "standard"}, "stop"),
    ({"patience": 2.0}, "patience"),
    ({"stop": "patience", "patience": 1.5}, "patience"),
    ({"stop": "patience", "patience": 0.1, "n_best": 2}, "patience"),
    ({"penalty": "average", "length_penalty": 1.0}, "length_penalty"),
    ({"penalty": "none", "penalty_counts_eos": True}, "penalty_counts_eos"),
    ({"coverage": "wu"}, "coverage_weight"),
    ({"coverage_weight": 0.1}, "coverage_weight"),
    ({"min_length": 101}, "min_length"),
    ({"min_length_ratio": 2.0, "max_length_ratio": 1.0}, "min_length_ratio"),
    ({"diverse_groups": 3, "diverse_strength": 0.5}, "diverse_groups"),
    ({"diverse_groups": 2}, "diverse_strength"),
    ({"diverse_strength": 0.5}, "diverse_strength"),
    ({"diverse_groups": 2, "diverse_strength": 0.5, "stop": "bound"}, "diverse_groups"),
    ({"temperature": 0.5}, "temperature"),
    ({"top_k": 5}, "top_k"),
    ({"top_p": 0.5}, "top_p"),
    ({"method": "sample", "coverage": "wu", "coverage_weight": 0.1}, "coverage"),
    ({"method": "sample", "stop": "bound"}, "stop"),
    ({"method": "sample", "finishing": "standard"}, "finishing"),
    ({"method": "sample", "diverse_groups": 2, "diverse_strength": 0.1}, "diverse_groups"),
]


@pytest.mark.parametrize(("keys", "blamed"), REFUSED, ids=lambda value: str(value)[:50])
def test_contradictions_are_refused_by_name(keys: dict, blamed: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError) as error:
        check_search(replace(SearchConfig(), **keys), "validation.search")
    assert str(error.value).startswith(f"validation.search.{blamed}:")
    check_search(SearchConfig())


@pytest.mark.parametrize("where", ["search", "validation.search"])
def test_coverage_needs_attention(where: str) -> None:
    charged = SearchConfig(coverage="wu", coverage_weight=0.1)
    validation = where == "validation.search"
    config = RunConfig(
        search=SearchConfig() if validation else charged,
        validation=ValidationConfig(search=charged if validation else SearchConfig()),
    )
    check_searches(config)
    without = replace(config, model=ModelConfig(attention=AttentionConfig(name="none_state")))
    with pytest.raises(UserError, match=rf"^{where}\.coverage: needs attention"):
        check_searches(without)


def test_eos_is_no_part_of_an_output() -> None:
    for finishing, stop in RULES:
        search = SearchConfig(beam=4, n_best=4, max_length=6, finishing=finishing, stop=stop)
        assert all(EOS not in h.tokens for found in searches(TransitionModel(6), search) for h in found)
