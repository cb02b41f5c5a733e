"""Not a translation: a summarisation run, chosen and shown by ROUGE."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nmt.cli import main
from nmt.config import compose
from nmt.data.corpus import load_corpus
from nmt.runs import LocalRunStore

SMALL = ["data=toy_summarisation", "tokenizer=toy_words", "scale=smoke", "validation.metric=rougeL", "search=greedy",
         "search.max_length=9", "validation.search.max_length=9", "data.options.train_size=200",
         "data.options.validation_size=10", "data.options.test_size=20", "tracking=none", "device=cpu",
         "threads=1"]  # fmt: skip


def test_rouge_chooses_the_checkpoint_and_is_what_is_shown(
    isolated_runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SMALL]) == 0
    shown = capfd.readouterr()
    assert "validation rougeL" in shown.err
    first, second = shown.out.splitlines()
    assert first.startswith("test split: bleu ") and "rougeL " in first and "ter" not in first
    assert second.startswith("rougeL: nrefs:1|case:lc|tok:words|")
    store = LocalRunStore(isolated_runs)
    (run_id,) = store.list_runs()
    lines = (store.directory(run_id) / "metrics.jsonl").read_text().splitlines()
    evaluations = [record for record in map(json.loads, lines) if record["kind"] == "evaluation"]
    assert all("val/decode/rougeL" in one and "val/decode/rouge1" not in one for one in evaluations)
    result = store.read_json(run_id, "result.json")
    assert result is not None
    assert result["best"]["metrics"]["val/decode/rougeL"] == max(one["val/decode/rougeL"] for one in evaluations)
    assert 0 <= result["best"]["metrics"]["val/teacher_forced/token_accuracy"] <= 100


def test_the_first_words_of_a_report_are_scored_as_any_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    test = load_corpus(compose(["data=toy_summarisation"]).data).test
    for name, lines in (("lead", [" ".join(line.split()[:7]) for line in test.source]), ("right", test.target)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    assert main(["evaluate", f"hypotheses={tmp_path / 'lead'}", f"references={tmp_path / 'right'}"]) == 0
    scores = {line.split()[0]: float(line.split()[1]) for line in capfd.readouterr().out.splitlines()}
    assert (scores["rouge1"], scores["rougeL"]) == (43.84, 38.08)  # docs/results.md
    assert {"bleu", "chrf", "ter", "rouge2"} < set(scores) and "rouge1_p" not in scores
