"""What verbs print as JSON can be read by every reader, of runs whose scores are not finite too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Command
from finished_runs import finish

from nmt.cli import VERBS
from nmt.completion import options_of
from nmt.config import decode_id, to_dict
from nmt.data.corpus import load_test
from nmt.runs import LocalRunStore
from sweeps.claims.claim import load_claims
from sweeps.plan import make_plan
from sweeps.spec import load_spec

SWEEP = """
title: One is not finite
replicates: 2
rows:
  - {label: A}
  - {label: B, overrides: [seeds.data=101]}
  - {label: C, overrides: [seeds.dropout=102]}
"""
SMALL = ["data.options={train_size: 40, validation_size: 2, test_size: 12}"]
NAN, CLAIM = math.nan, "lstm_beats_gru"
SCORES = {"A": (NAN, NAN), "B": (NAN, math.inf), "C": (100.0, 0.0), "LSTM": (NAN, 20.0), "GRU": (20.0, 21.0)}


@pytest.fixture
def sweep(tmp_path: Path) -> str:
    """Runs of a sweep and of a claim: C wrote the references and nothing at all, what others wrote has no score."""
    path = tmp_path / "own.yaml"
    path.write_text(SWEEP)
    (claim,) = load_claims([CLAIM])
    plans = [make_plan(load_spec(str(path)), SMALL)]
    plans.append(make_plan(load_spec(claim.contrast.sweep), ["replicates=2", "scale=smoke"]))
    correct = load_test(plans[0].config.data).target
    for row in (row for plan in plans for row in plan.rows if row.label in SCORES):
        for run, bleu in zip(row.runs, SCORES[row.label], strict=True):
            store, name = LocalRunStore(run.config.paths.runs), finish(run.config, bleu)
            store.write_text(name, "config.yaml", yaml.safe_dump(to_dict(run.config)))
            store.write_text(name, "metrics.jsonl", '{"kind": "evaluation", "step": 80, "val/decode/bleu": NaN}\n')
            text = "".join(f"{line if bleu else ''}\n" for line in correct)
            store.write_text(name, f"decodes/{decode_id(f'{name}-checkpoint', run.config)}.txt", text)
    return str(path)


def read(done: tuple[int, str, str]) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    _, out, err = done
    assert err == ""
    return json.loads(out, parse_constant=refuse)


def test_every_verb_that_prints_json(sweep: str, nmt: Command) -> None:
    rows = make_plan(load_spec(sweep), SMALL).rows
    of_sweep = [f"sweep={sweep}", *SMALL]
    a, b = (row.runs[0].run_id for row in rows[:2])
    found = {
        verb: read(nmt(verb, *words))
        for verb, words in {
            "compare": ["a=A", "b=C", *of_sweep, "json=true"],
            "power": ["delta=1", *of_sweep, "json=true"],
            "variance": [*of_sweep, "json=true"],
            "analyse": ["a=A", "b=C", *of_sweep, "metric=ter", "by=length,frequency", "json=true"],
            "claims": [f"claims={CLAIM}", "replicates=2", "scale=smoke", "json=true"],
            "status": ["json=true"],
            "why": [f"a={a}", f"b={b}", "json=true"],
            "profile": ["scale=smoke", "steps=0", "format=json"],
        }.items()
    }
    assert found.keys() == {verb for verb in VERBS if verb != "completion" and _prints_json(verb)}
    (bleu,) = found["compare"]["metrics"]
    assert bleu["a"]["mean"] is None and bleu["b"]["mean"] == 50
    assert [row["scores"] for row in found["variance"]["rows"]] == [[None, None], [None, None], [100, 0]]
    values = {row["row"]: row["values"] for row in found["claims"]["claims"][0]["rows"]}
    assert values == {"LSTM": [None, 20], "GRU": [20, 21]}


def _prints_json(verb: str) -> bool:
    options = options_of(verb)
    return "json" in options or ("format" in options and "json" in options["format"].metadata["choices"])
