"""Dumps of attention and searches: what the archives, pictures and pages hold."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tokenizer import KINDS, trained

from nmt.data.tokenizer import Tokenizer
from nmt.errors import UserError
from nmt.evaluation.attention_dump import attention_dump
from nmt.evaluation.beam_dump import beam_dump
from nmt.evaluation.beam_tree import beam_tree
from nmt.evaluation.heat_map import LARGEST, draw_heat_map
from nmt.evaluation.npz import npz_writer
from nmt.evaluation.translator import TranslatedLine, Translation
from nmt.search.beam import Hypothesis
from nmt.search.trace import SearchTrace


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return trained(KINDS["whitespace"])


def translated(words: Tokenizer, line: str = "a </script> tower") -> TranslatedLine:
    """Two steps of a beam of two with `standard` finishing: two live slots, then two for what ended."""
    the, new, end = words.encode("the")[0], words.encode("new")[0], 2
    nothing = -math.inf
    trace = SearchTrace(
        tokens=np.array([[the, new, end, end], [new, the, end, end]]),
        parents=np.array([[0, 0, 0, 0], [0, 0, 1, 0]]),
        scores=np.array([[-0.5, -1.0, nothing, nothing], [-1.5, -2.0, -1.25, nothing]]),
        log_probabilities=np.array([[-0.5, -1.0, nothing, nothing], [-1.5, -2.0, -1.25, nothing]]),
        outputs=((1, 2), (1, 0)),
    )
    weights = torch.tensor([[0.25, 0.5, 0.125, 0.125]])
    best = Hypothesis((new,), -1.25, -1.25, weights)
    second = Hypothesis((the, new), -1.5, -1.5, weights.repeat(2, 1))
    translations = [Translation("new", best), Translation("the new", second)]
    return TranslatedLine(line, line.split(), translations, trace)


def empty() -> TranslatedLine:
    return TranslatedLine("", [], [Translation("", Hypothesis((), 0.0, 0.0, torch.zeros(0, 1)))])


def test_attention_weights_stand_beside_their_tokens(tmp_path: Path, words: Tokenizer) -> None:
    with attention_dump(str(tmp_path / "new" / "folder"), 1, words) as dump:
        dump.add(0, translated(words))
        dump.add(1, empty())
        dump.add(2, translated(words))
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "attention_scores.npz"]
    with np.load(folder / "attention_scores.npz", allow_pickle=False) as archive:
        assert archive["weights_0"].tolist() == [[0.25, 0.5, 0.125, 0.125]]
        assert archive["weights_0"].dtype == np.float32
        assert archive["source_0"].tolist() == ["a", "</script>", "tower", "</s>"]
        assert archive["target_0"].tolist() == ["new"]
        assert archive["weights_1"].shape == (0, 1) and archive["target_1"].tolist() == []
        assert archive["source_1"].tolist() == ["</s>"]


def test_a_beam_dump_holds_the_search(tmp_path: Path, words: Tokenizer) -> None:
    line = translated(words)
    assert line.trace is not None
    with beam_dump(str(tmp_path / "beams.npz")) as dump:
        dump.add(0, line)
        dump.add(1, empty())
    with np.load(tmp_path / "beams.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["predicted_ids_0"], line.trace.tokens)
        np.testing.assert_array_equal(archive["beam_parent_ids_0"], line.trace.parents)
        np.testing.assert_array_equal(archive["scores_0"], line.trace.scores)
        np.testing.assert_array_equal(archive["log_probs_0"], line.trace.log_probabilities)
        assert archive["outputs_0"].tolist() == [[1, 2], [1, 0]]
        assert archive["scores_1"].shape == (0, 0) and archive["outputs_1"].shape == (0, 2)


def test_equal_arrays_make_equal_archives(tmp_path: Path) -> None:
    for name in ("one.npz", "other.npz"):
        with npz_writer(str(tmp_path / name), "beams") as add:
            add("a", np.arange(3))
            add("b", np.array(["ü", "word"]))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()


def test_a_dump_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError), npz_writer(str(tmp_path / "b.npz"), "beams") as add:
        add("a", np.arange(3))
        raise KeyError
    missing = npz_writer(str(tmp_path / "no" / "b.npz"), "beams")
    with pytest.raises(UserError, match=r"beams=.*/no/b.npz: cannot be written"), missing:
        pass
    assert list(tmp_path.iterdir()) == []


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    data: dict[str, Any] = json.loads(match[1])
    return data


def test_a_page_holds_its_searches_and_needs_nothing_else(tmp_path: Path, words: Tokenizer) -> None:
    with beam_tree(str(tmp_path / "tree.html"), 3, words) as tree:
        for number, line in enumerate((translated(words), empty(), translated(words, "x"), translated(words))):
            tree.add(number, line)
    page = (tmp_path / "tree.html").read_text()
    data = data_of(page)
    assert data["end"] == "</s>"
    assert [sentence["number"] for sentence in data["sentences"]] == [
        0,
        2,
    ]  # of three lines, and an empty one had no search
    first = data["sentences"][0]
    assert first["line"] == "a </script> tower"
    assert first["steps"] == [
        [["the", 0, -0.5, -0.5], ["new", 0, -1.0, -1.0], None, None],
        [["new", 0, -1.5, -1.5], ["the", 0, -2.0, -2.0], ["</s>", 1, -1.25, -1.25], None],
    ]
    assert first["outputs"] == [
        {"text": "new", "score": -1.25, "step": 1, "slot": 2},
        {"text": "the new", "score": -1.5, "step": 1, "slot": 0},
    ]
    assert "default-src 'none'" in page
    assert re.findall(r"(?:src|href)=", page) == []
    assert set(re.findall(r"https?://[^\"]+", page)) == {"http://www.w3.org/2000/svg"}


def size_of(picture: bytes) -> tuple[int, int]:
    from matplotlib.image import imread

    height, width = imread(io.BytesIO(picture), format="png").shape[:2]
    return width, height


def test_a_heat_map_grows_with_the_sentence_up_to_a_size() -> None:
    small, large, huge = (
        size_of(draw_heat_map(np.full((n // 2, n), 1 / n), ["word"] * n, ["Wort"] * (n // 2))) for n in (5, 20, 110)
    )
    assert small[0] < large[0] < huge[0] and small[1] < large[1] < huge[1]
    assert max(huge) < (LARGEST + 3) * 110


def test_a_heat_map_is_the_same_for_the_same_weights_and_shows_other_ones() -> None:
    weights = np.array([[0.9, 0.1], [0.1, 0.9]])
    labels = (["$x$", "a_b^"], ["\\frac", "a" * 99])  # nothing is taken for mathematics
    assert draw_heat_map(weights, *labels) == draw_heat_map(weights, *labels)
    assert draw_heat_map(weights, *labels) != draw_heat_map(weights.T[::-1], *labels)
