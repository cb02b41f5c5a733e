"""Systems side by side, by sentence length and word frequency, against counts made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finished_runs import finish

from nmt.cli import main
from nmt.config import decode_id
from nmt.data.corpus import load_test
from nmt.evaluation.metrics import score
from nmt.evaluation.sentence_statistics import sentence_statistics
from sweeps.analysis.buckets import bucket_names, bucket_numbers, scores_by_bucket, word_counts, word_scores
from sweeps.imported.rows import find_test_set
from sweeps.imported.store import ImportedSystem, add_outputs
from sweeps.plan import make_plan
from sweeps.spec import load_spec

SWEEP = """
title: Two rows
replicates: 2
rows:
  - {label: A}
  - {label: B, experiment: t2_lstm}
"""
SMALL = ["data.options={train_size: 40, validation_size: 2, test_size: 12, min_length: 4, max_length: 14, seed: 0}"]


def test_buckets_have_names_and_bounds() -> None:
    assert bucket_names([1, 2, 3, 5, 1000]) == ["0", "1", "2", "3–4", "5–999", ">= 1000"]
    assert bucket_names([10, 15]) == ["< 10", "10–14", ">= 15"]
    assert bucket_numbers([0, 9, 10, 14, 15, 99], [10, 15]).tolist() == [0, 0, 1, 1, 2, 2]


def test_the_score_of_a_bucket_is_that_of_its_sentences_alone() -> None:
    references = ["a b c d e f", "g h i j k", "l m n o p q r s", "t u v w x y z"]
    outputs = ["a b c d x f", "g h i j k", "l m n o", "z y x w v"]
    statistics = sentence_statistics(outputs, references, "", "bleu")
    buckets = bucket_numbers([6, 5, 8, 7], [6, 8])
    found = scores_by_bucket(statistics, buckets, 3, "bleu")
    for number, chosen in ((0, [1]), (1, [0, 3]), (2, [2])):
        expected = score([outputs[i] for i in chosen], [references[i] for i in chosen], "", ["bleu"])["bleu"]
        assert found[number] == pytest.approx(expected, rel=1e-12)
    assert scores_by_bucket(statistics, buckets * 0, 2, "bleu")[1] is None


def test_words_are_right_as_often_as_the_reference_has_them() -> None:
    counts = word_counts(["the cat, the dog", "the cat"])
    assert counts == {"the": 3, "cat": 2, "dog": 1, ",": 1}
    references = ["the cat sat", "a dog"]
    outputs = ["the the cat", "the dog"]
    never, once, often = word_scores(outputs, references, counts, [1, 2])
    assert (never.precision, never.recall, never.references) == (0.0, 0.0, 2)  # sat, a
    assert (once.precision, once.recall, once.f1) == (100.0, 100.0, 100.0)  # dog
    # the: 3 times in outputs, once right, once wanted; cat: right.
    assert (often.precision, often.recall) == (50.0, 100.0)
    assert often.f1 == pytest.approx(2 * 50 * 100 / 150)
    assert (often.hypotheses, often.references) == (4, 2)


@pytest.fixture
def sweep(tmp_path: Path, isolated_runs: Path) -> Path:
    """A sweep of A, which is right but for its last words, and B, which misses the first word of long sentences."""
    path = tmp_path / "two.yaml"
    path.write_text(SWEEP)
    plan = make_plan(load_spec(str(path)), SMALL)
    correct = load_test(plan.config.data).target
    for row in plan.rows:
        for run in row.runs:
            outputs = [_worse(line, run.label, run.config.seed) for line in correct]
            name = finish(run.config, None)
            bleu = score(outputs, correct, "", ["bleu"])["bleu"]
            identity = decode_id(f"{name}-checkpoint", run.config)
            folder = isolated_runs / name / "decodes"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{identity}.txt").write_text("".join(f"{line}\n" for line in outputs))
            (folder / f"{identity}.json").write_text(
                json.dumps({"metrics": {"test/decode/bleu": bleu}, "sentences": 12})
            )
    return path


def _worse(line: str, label: str, seed: int) -> str:
    words = line.split()
    if label == "A":
        return " ".join(words[:-seed])
    return " ".join(["wrong", *words[1:]] if len(words) > 8 else words)


def analyse(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["analyse", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_rows_and_imported_systems_side_by_side(
    sweep: Path, isolated_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(load_spec(str(sweep)), SMALL)
    test, lines = find_test_set(plan.config)
    perfect = tmp_path / "perfect.txt"
    perfect.write_text("".join(f"{line}\n" for line in lines))
    add_outputs(isolated_runs, ImportedSystem(system="Perfect", test=test), lines, [perfect])
    words = [f"sweep={sweep}", "a=A", "b=B", "others=Perfect", *SMALL, "lengths=6,9,12"]
    code, out, err = analyse(capsys, *words, "json=true")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["labels"], found["replicates"]) == (["A", "B", "Perfect (imported)"], [2, 2, 1])
    assert sum(bucket["n"] for bucket in found["lengths"]) == 12
    assert all(bucket["values"][2]["bleu"]["mean"] == pytest.approx(100) for bucket in found["lengths"])
    references = [word for line in lines for word in line.split()]
    assert sum(bucket["n"] for bucket in found["frequencies"]) == len(references)
    assert all(bucket["values"][2]["f1"]["mean"] == 100 for bucket in found["frequencies"] if bucket["n"])
    first, *_, last = found["sentences"]
    assert first["gain"] > 0 > last["gain"] and first["outputs"][2] == first["reference"]
    code, text, _ = analyse(capsys, *words)
    assert code == 0 and "bleu by words of the source sentence" in text
    assert analyse(capsys, *words)[1] == text
    code, text, _ = analyse(capsys, *words, "by=length", "format=md")
    assert "**bleu by words of the source sentence**" in text and "occurrences" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1 and set(rows[1]) <= set("|-: ")


def test_mistakes_are_one_line(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["a=A"], "b: is missing"),
        (["a=A", "b=C", f"sweep={sweep}", *SMALL], "nothing is called 'C'"),
        (["a=A", "b=B", "lengths=9,3"], "lengths: '9,3' do not grow"),
        (["a=A", "b=B", "metric=blue"], "'blue' is no score of decoded text"),
        (["a=nobody", "b=B"], "nothing is called 'nobody'"),
    ):
        code, out, err = analyse(capsys, *words)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1, err


def test_the_sd_of_one_replicate_is_not_shown(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = analyse(capsys, f"sweep={sweep}", "a=A", "b=B", *SMALL, "by=length", "replicates=1")
    assert code == 0 and "±" not in out and "(n 1)" in out
