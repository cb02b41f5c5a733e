"""The parts of scripts/acceptance that a rehearsal on a CPU cannot show."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

from acceptance.graph import KeptMasks, capture
from acceptance.outcome import FAIL, PASS, Outcome, Result, markdown
from acceptance.setting import without_dropout

from nmt.config import compose
from nmt.models.dropout import AddressedDropout


def test_a_step_is_warmed_up_on_a_side_stream_and_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def stream(name: str) -> Any:
        return SimpleNamespace(name=name, wait_stream=lambda other: calls.append(f"{name} waits for {other.name}"))

    @contextmanager
    def within(what: str) -> Iterator[None]:
        calls.append(f"begin {what}")
        yield
        calls.append(f"end {what}")

    main = stream("main")
    graph = SimpleNamespace(replay=lambda: calls.append("replay"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda one: within(one.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda one: within("capture"))
    replay = capture(lambda: calls.append("run"))
    replay()
    assert calls == [
        *("side waits for main", "begin side", "run", "run", "run", "end side", "main waits for side"),
        *("begin capture", "run", "end capture", "replay"),
    ]


def test_kept_masks_are_those_of_the_slot_and_stay_where_they_are() -> None:
    dropout, x = AddressedDropout(1, 2, 3), torch.ones(5, 4)
    kept = KeptMasks(dropout)
    first = kept.mask("layer", x.shape, 0.5, x)
    assert first is not None and first is kept.mask("layer", x.shape, 0.5, x)
    expected = dropout.mask("layer", x.shape, 0.5, x)
    assert expected is not None and torch.equal(first, expected)
    assert torch.equal(kept("layer", x, 0.5), first)
    assert kept("other", x, 0.0) is x


@pytest.mark.parametrize("experiment", ["t5_add_512", "transformer", "convolutional", "pooling"])
def test_no_probability_of_dropout_is_forgotten(experiment: str) -> None:
    def probabilities(value: Any, key: str = "") -> Iterator[float]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from probabilities(inner, name)
        elif key.startswith("dropout"):
            yield value

    from nmt.config import to_dict

    config = compose([f"experiment={experiment}"])
    assert any(probabilities(to_dict(config)))
    assert not any(probabilities(to_dict(without_dropout(config))))
    assert without_dropout(config).model.encoder.units == config.model.encoder.units


def test_a_report_says_what_does_not_hold() -> None:
    outcome = Outcome(
        {"it learns": True, "it repeats": False}, {"tokens": 12345, "rate": 0.51234}, [{"a": 1.5, "b": True}]
    )
    text = markdown("Title", [Result("one", FAIL, 1.26, outcome), Result("two", PASS, 0.0, Outcome(note="Nothing."))])
    assert "| one | fail | 1.3 | broken: it repeats |" in text
    assert "| two | pass | 0 | demands nothing, reports |" in text
    assert "- DOES NOT HOLD: it repeats\n" in text and "- holds: it learns\n" in text
    assert "- tokens: 12,345\n- rate: 0.5123\n" in text
    assert "| a | b |\n|---|---|\n| 1.5 | yes |\n" in text
