"""A trained run's configuration with another search: what wins, what is refused."""

from __future__ import annotations

import pytest

from nmt.config import compose
from nmt.config.override import SEARCH, override
from nmt.config.schema import SearchConfig
from nmt.errors import UserError


def test_a_named_search_is_the_whole_search() -> None:
    """Its file says only what it changes; nothing of the run's own search shines through."""
    config = compose(["search=beam5", "search.max_length=7", "search.stop=bound"])
    assert config.search.length_penalty == 1.0
    assert override(config, ["search=greedy"]).search == SearchConfig(beam=1)
    assert override(config, ["search=greedy"]).search == compose(["search=greedy"]).search


def test_single_keys_change_what_is_there_and_beat_a_named_search() -> None:
    config = compose(["search=beam5"])
    assert override(config, ["search.beam=3"]).search == SearchConfig(beam=3, length_penalty=1.0)
    changed = override(config, ["search.length_penalty=0.5", "search=beam10"])
    assert changed.search == SearchConfig(beam=10, length_penalty=0.5)
    assert changed.model == config.model and changed.validation == config.validation


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("search=beam11", "search: unknown option 'beam11'; allowed: .*beam10"),
        ("search.bean=3", "search.bean: unknown key; did you mean search.beam"),
        ("tre=x.html", "tre: unknown key; did you mean tree"),
        ("search.beam=three", "search.beam: 'three' does not fit"),
        ("search.beam=0", "search.beam: 0 is out of range"),
        ("search.replace_unknown=maybe", "search.replace_unknown: 'maybe' does not fit"),
        ("data.test.source=[x]", "data.test.source: belongs to the training, .*allowed: search, search.<key>"),
        ("seed=3", "seed: belongs to the training"),
    ],
)
def test_mistakes_name_the_key(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(compose([]), [word], SEARCH, ["tree", "beams"])


BLIND = ["model/attention=none_state", "model/bridge=projection"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.coverage=wu", "search.coverage_weight=0.2"], r"^search\.coverage: needs attention"),
        (["search.replace_unknown=true"], r"^search\.replace_unknown: attention 'none_state'"),
    ],
)
def test_an_ensemble_may_use_the_attention_of_any_member(words: list[str], message: str) -> None:
    blind, seeing = compose(BLIND), compose([])
    for members in ([], [compose([*BLIND, "seed=2"])]):
        with pytest.raises(UserError, match=message):
            override(blind, words, members=members)
    changed = override(blind, words, members=[seeing])
    assert changed.model == blind.model
    assert changed.search == override(seeing, words, members=[blind]).search


def test_a_search_that_no_member_could_carry_out_is_refused() -> None:
    with pytest.raises(UserError, match=r"^search\.n_best: 20 best of a beam of"):
        override(compose(BLIND), ["search.n_best=20"], members=[compose([])])
