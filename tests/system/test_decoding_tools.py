"""Ensembles, prefixes, UNK replacement, dumps, scores, averages and grids from the command line."""

from __future__ import annotations

import json
import math
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nmt.config.schema import RunConfig

Command = Callable[..., tuple[int, str, str]]  # words and stdin to exit code, stdout and stderr

TEXT = "w01 w02 w03 w04\n\nw05 w04 w19\nw07 w02\n"
LINES = TEXT.split("\n")[:-1]


@pytest.fixture
def store(
    config: RunConfig,
    second_config: RunConfig,
    run_id: str,
    second_run_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Both replicates in a directory of runs that no other test sees."""
    copied = tmp_path / "runs"
    for trained in (config, second_config):
        shutil.copytree(trained.paths.runs, copied, dirs_exist_ok=True)
    monkeypatch.setenv("NMT_RUNS", str(copied))
    return copied


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text(TEXT)
    return path


def mistake(answer: tuple[int, str, str]) -> str:
    """The one line of a mistake."""
    code, out, err = answer
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_any_key_of_the_search_can_be_given(nmt: Command, store: Path, run_id: str) -> None:
    words = ("translate", f"run={run_id}", "threads=1")
    wide = nmt(*words, "beam=4", "length_penalty=0.6", stdin=TEXT.encode())
    assert nmt(*words, "search.beam=4", "search.length_penalty=0.6", stdin=TEXT.encode()) == wide
    named = nmt(*words, "search=beam10_lp06", "beam=4", "search.max_length=12", stdin=TEXT.encode())
    assert named == wide
    code, out, _ = nmt(*words, "search.min_length=9", "search.max_length=9", stdin=TEXT.encode())
    assert code == 0
    assert [len(line.split()) for line in out.split("\n")[:-1]] == [9, 0, 9, 9]


def test_every_output_begins_with_its_prefix(nmt: Command, store: Path, run_id: str, tmp_path: Path) -> None:
    prefixes = tmp_path / "prefixes"
    prefixes.write_text("w09 w03\n\n\nw02\n")
    words = ("translate", f"run={run_id}", "threads=1")
    free = nmt(*words, stdin=TEXT.encode())[1].split("\n")
    code, out, err = nmt(*words, f"prefix={prefixes}", "batch_size=1", stdin=TEXT.encode())
    assert (code, err) == (0, "")
    lines = out.split("\n")
    assert lines[0].startswith("w09 w03") and lines[3].startswith("w02")
    assert lines[1] == "" and lines[2] == free[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [("w01\n", "has 1 lines, and the input has more"), ("\n\n\n\n\n", "has more lines than the input, 4")],
)
def test_prefixes_go_with_lines(
    nmt: Command, store: Path, run_id: str, text: Path, tmp_path: Path, content: str, message: str
) -> None:
    prefixes, output = tmp_path / "prefixes", tmp_path / "out"
    prefixes.write_text(content)
    words = (f"run={run_id}", "threads=1", f"input={text}", f"prefix={prefixes}", f"output={output}")
    assert f"prefix={prefixes}: {message}" in mistake(nmt("translate", *words))
    assert not output.exists()


def test_an_unknown_word_is_replaced_by_a_source_word_or_its_entry(
    nmt: Command, store: Path, run_id: str, tmp_path: Path
) -> None:
    """UNK is forced by a prefix that the vocabulary lacks, so it is known where it stands."""
    prefix, source, lexicon = tmp_path / "prefix", tmp_path / "source", tmp_path / "lexicon"
    prefix.write_text("unheard-of\n")
    source.write_text("Zebra\n")
    lexicon.write_text("Zebra\tdas Zebra\n")
    words = ("translate", f"run={run_id}", "threads=1", f"input={source}", f"prefix={prefix}", "search.max_length=1")
    assert nmt(*words)[1] == "⁇\n"
    for beam in (1, 3):
        replacing = (*words, "search.replace_unknown=true", f"beam={beam}")
        assert nmt(*replacing)[1] == "Zebra\n"
        assert nmt(*replacing, f"search.dictionary={lexicon}")[1] == "das Zebra\n"
    assert "search.dictionary: is asked only where UNK is replaced" in mistake(
        nmt(*words, f"search.dictionary={lexicon}")
    )
    lexicon.write_text("Zebra\tdas\tZebra\tviel\n")
    words = (*words, "search.replace_unknown=true", f"search.dictionary={lexicon}")
    assert f"{lexicon}:1: is not `source<tab>target`" in mistake(nmt(*words))


def test_dumps_tell_what_the_search_did(nmt: Command, store: Path, run_id: str, text: Path, tmp_path: Path) -> None:
    words = ("translate", f"run={run_id}", "threads=1", f"input={text}", "beam=3", "n_best=2")
    plain = nmt(*words)
    attention, beams, tree = tmp_path / "attention", tmp_path / "beams.npz", tmp_path / "tree.html"
    dumping = (*words, f"attention={attention}", f"beams={beams}", f"tree={tree}", "plots=3")
    assert nmt(*dumping) == plain
    entries = [line.split(" ||| ") for line in plain[1].splitlines()]
    best = {int(number): output for number, output, _ in reversed(entries)}

    assert sorted(path.name for path in attention.glob("*.png")) == ["00000.png", "00002.png"]
    with np.load(attention / "attention_scores.npz") as archive:
        for number, line in enumerate(LINES):
            weights = archive[f"weights_{number}"]
            assert archive[f"source_{number}"].tolist() == [*line.split(), "</s>"]
            assert archive[f"target_{number}"].tolist() == best[number].split()
            assert weights.shape == (len(best[number].split()), len(line.split()) + 1)
            np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)

    with np.load(beams) as archive:
        for number, line in enumerate(LINES):
            scores, parents = archive[f"scores_{number}"], archive[f"beam_parent_ids_{number}"]
            if not line:
                assert scores.shape == (0, 0)
                continue
            found = [entry for entry in entries if entry[0] == str(number)]
            for (step, slot), (_, _, score) in zip(archive[f"outputs_{number}"], found, strict=True):
                assert f"{scores[step, slot]:.4f}" == score
            assert parents.shape == scores.shape == archive[f"predicted_ids_{number}"].shape
            assert parents.max() < 3

    page = tree.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert [sentence["number"] for sentence in data["sentences"]] == [0, 2]
    assert [output["text"] for output in data["sentences"][1]["outputs"]] == [e[1] for e in entries if e[0] == "2"]

    first = [path.read_bytes() for path in (beams, tree, attention / "attention_scores.npz", attention / "00000.png")]
    nmt(*dumping, "batch_size=1")
    again = [path.read_bytes() for path in (beams, tree, attention / "attention_scores.npz", attention / "00000.png")]
    assert first == again


def test_a_dump_that_cannot_be_written_is_blamed(nmt: Command, store: Path, run_id: str, text: Path) -> None:
    words = ("translate", f"run={run_id}", "threads=1", f"input={text}")
    assert f"attention={text}: cannot be made: File exists" in mistake(nmt(*words, f"attention={text}"))
    assert "beams=no/b.npz: cannot be written: No such file" in mistake(nmt(*words, "beams=no/b.npz"))
    assert "tree=no/t.html: cannot be written: No such file" in mistake(nmt(*words, "tree=no/t.html"))
    assert "tree=t.txt: is not the name of a .html file" in mistake(nmt(*words, "tree=t.txt"))


def test_an_ensemble_translates_scores_and_is_evaluated(
    nmt: Command, store: Path, run_id: str, second_run_id: str, text: Path
) -> None:
    both, single = f"run={run_id},{second_run_id}", f"run={run_id}"
    code, out, err = nmt("translate", both, "threads=1", f"input={text}", "n_best=2", "beam=2")
    assert (code, err) == (0, "")
    assert out != nmt("translate", single, "threads=1", f"input={text}", "n_best=2", "beam=2")[1]

    directory = store / run_id / "decodes"
    before = set(directory.iterdir())
    code, out, err = nmt("evaluate", both, "threads=1", "ensemble=prob")
    assert (code, err) == (0, "")
    assert out.startswith(f"ensemble (prob) of {run_id}/checkpoints/step-")
    (record,) = [json.loads(path.read_text()) for path in set(directory.iterdir()) - before if path.suffix == ".json"]
    assert record["ensemble"] == "prob" and len(record["checkpoints"]) == 2
    stamps = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert nmt("evaluate", both, "threads=1", "ensemble=prob")[1] == out
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == stamps
    nmt("evaluate", both, "threads=1")
    assert len(set(directory.iterdir()) - stamps.keys()) == 2  # another combination is another decoding

    assert "is given twice" in mistake(nmt("translate", f"run={run_id},{run_id}"))


def test_members_of_an_ensemble_share_their_vocabulary(
    nmt: Command, store: Path, run_id: str, second_run_id: str
) -> None:
    path = store / second_run_id / "tokenizers" / "target.tokenizer.json"
    data = json.loads(path.read_text())
    data["types"][0] = "other"
    path.write_text(json.dumps(data))
    said = mistake(nmt("translate", f"run={run_id},{second_run_id}", "threads=1", stdin=b"w01\n"))
    assert "has another target tokenizer than" in said
    assert "1 of 20 types are not in it; the members of an ensemble share both tokenizers" in said


def test_members_of_an_ensemble_read_text_alike(nmt: Command, store: Path, run_id: str, second_run_id: str) -> None:
    for path in (store / second_run_id / "checkpoints").iterdir():
        content = torch.load(path, weights_only=True)
        content["config"]["data"]["lowercase"] = True
        torch.save(content, path)
    said = mistake(nmt("translate", f"run={run_id},{second_run_id}", "threads=1", stdin=b"w01\n"))
    assert "data.lowercase is True, and in " in said
    assert said.endswith(" False; the members of an ensemble share it\n")


def test_attention_of_an_ensemble_is_that_of_the_members_that_have_it(
    nmt: Command, store: Path, run_id: str, blind_run: Path, text: Path, tmp_path: Path
) -> None:
    alone = ("translate", f"run={blind_run}", "threads=1", f"input={text}", f"attention={tmp_path / 'no'}")
    assert "attention: attention 'none_state' has no weights" in mistake(nmt(*alone))
    covered = ("search.coverage=wu", "search.coverage_weight=0.3", "search.beam=2")
    assert "search.coverage: needs attention" in mistake(nmt(*alone[:-1], *covered))

    for number, both in enumerate([(str(blind_run), run_id), (run_id, str(blind_run))]):
        folder = tmp_path / str(number)
        words = ("translate", f"run={','.join(both)}", "threads=1", f"input={text}", f"attention={folder}", *covered)
        code, _, err = nmt(*words)
        assert (code, err) == (0, "")
        with np.load(folder / "attention_scores.npz") as archive:
            assert archive["weights_0"].any()
            np.testing.assert_allclose(archive["weights_0"].sum(axis=1), 1.0, rtol=1e-5)
    code, out, _ = nmt("evaluate", f"run={blind_run},{run_id}", "threads=1", *covered)
    assert code == 0 and "coverage wu" in out


def test_given_pairs_are_scored_alike_in_every_batch(nmt: Command, store: Path, run_id: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("w01 w02 w03\nw05\n\nw07 w02\n")
    target.write_text("w03 w02 w01\nw05\nw01 w01\nunheard-of\n")
    words = ("score", f"run={run_id}", "threads=1", f"source={source}", f"target={target}")
    code, out, err = nmt(*words)
    assert code == 0
    values = [float(line) for line in out.splitlines()]
    assert len(values) == 4 and all(value < 0 for value in values)
    assert nmt(*words, "batch_size=1") == (0, out, err)
    records = [json.loads(line) for line in nmt(*words, "tokens=true")[1].splitlines()]
    assert [record["log_prob"] for record in records] == values
    assert [record["tokens"] for record in records][1:] == [["w05", "</s>"], ["w01", "w01", "</s>"], ["<unk>", "</s>"]]
    for record in records:
        assert math.fsum(record["log_probs"]) == pytest.approx(record["log_prob"], abs=1e-5)
    tokens = sum(len(record["tokens"]) for record in records)
    assert err == (
        f"4 pairs, {tokens} target tokens with EOS, 1 of them UNK: log-perplexity {-sum(values) / tokens:.4f} nats a "
        "token\n"
    )


def test_a_score_is_that_of_the_search(nmt: Command, store: Path, run_id: str, tmp_path: Path) -> None:
    """Without a length penalty, of an output short enough to have ended with EOS: both then count the same tokens."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("w01 w02 w03\n")
    words = ("translate", f"run={run_id}", "threads=1", f"input={source}", "n_best=24", "beam=24", "max_length=2")
    entries = [line.split(" ||| ") for line in nmt(*words)[1].splitlines()]
    short = [(output, float(score)) for _, output, score in entries if len(output.split()) < 2]
    assert short
    target.write_text(short[0][0] + "\n")
    out = nmt("score", f"run={run_id}", "threads=1", f"source={source}", f"target={target}")[1]
    assert float(out) == pytest.approx(short[0][1], abs=2e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=RUN", "source=TEXT"], "target: is missing"),
        (["source=TEXT", "target=TEXT"], "nmt score: give one of run=... and checkpoint=..."),
        (["run=RUN", "source=-", "target=-"], "only one side can come from standard input"),
        (["run=RUN", "source=TEXT", "target=nowhere"], "target=nowhere: cannot be read"),
        (["run=RUN", "source=TEXT", "target=-"], "target=-: has 1 lines, and the other side has more"),
        (["run=RUN", "source=-", "target=TEXT"], "source=-: has 1 lines, and the other side has more"),
        (["run=RUN", "source=TEXT", "target=TEXT", "search.beam=2"], "search.beam: unknown key"),
    ],
)
def test_mistakes_in_scoring_are_one_line(
    nmt: Command, store: Path, run_id: str, text: Path, words: list[str], message: str, tmp_path: Path
) -> None:
    words = [word.replace("RUN", run_id).replace("TEXT", str(text)) for word in words]
    answer = nmt("score", *words, "threads=1", f"output={tmp_path / 'out'}", stdin=b"w01\n")
    assert message in mistake(answer)
    assert not (tmp_path / "out").exists()


def test_an_average_translates_and_is_evaluated(nmt: Command, store: Path, run_id: str, text: Path) -> None:
    code, out, err = nmt("average", f"run={run_id}")
    assert (code, err) == (0, "")
    assert out.startswith("mean of 2 checkpoints: step-00000003.pt, step-00000006.pt\n")
    (written,) = (store / run_id / "checkpoints").glob("average-*.pt")
    assert out.splitlines()[1] == f"next: nmt evaluate checkpoint={written}"
    content = written.read_bytes()
    assert nmt("average", f"run={run_id}", "last=2")[1] == out
    assert written.read_bytes() == content
    code, out, _ = nmt("evaluate", f"checkpoint={written}", "threads=1")
    assert code == 0 and out.startswith(f"checkpoint {run_id}/checkpoints/{written.name}, test split")
    assert nmt("translate", f"checkpoint={written}", "threads=1", f"input={text}")[0] == 0
    steps = [str(path) for path in sorted(written.parent.glob("step-*.pt"))]
    assert nmt("average", f"checkpoint={','.join(steps)}")[0] == 0
    assert "is a mean already" in mistake(nmt("average", f"checkpoint={steps[0]},{written}"))


def test_mistakes_in_averaging_are_one_line(nmt: Command, store: Path, run_id: str, second_run_id: str) -> None:
    assert f"run {run_id}: has 2 checkpoints, and 3 are asked for" in mistake(nmt("average", f"run={run_id}", "last=3"))
    assert "nmt average: give one of run=... and checkpoint=..." in mistake(nmt("average"))
    one, other = (store / run / "checkpoints" / "step-00000006.pt" for run in (run_id, second_run_id))
    said = mistake(nmt("average", f"checkpoint={one},{other}"))
    assert f"{other}: belongs to run {second_run_id}, and others to {run_id}" in said
    assert "a mean needs two checkpoints" in mistake(nmt("average", f"checkpoint={one}"))


GRID = """
title: Two searches
baseline: narrow
rows:
  - {label: narrow, overrides: [search.beam=1]}
  - label: wide
    overrides: [search.beam=3, search.length_penalty=0.5]
    published: {mean: 21.71, std: 0.25, max: 22.04}
"""


def test_a_grid_goes_on_where_it_was(
    nmt: Command, store: Path, run_id: str, second_run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nmt.evaluation.decode as decoding

    grid = tmp_path / "two.yaml"
    grid.write_text(GRID)
    train_id = run_id.partition("/")[0]
    words = ("evaluate", f"run={train_id}", "threads=1", f"grid={grid}")

    whole, calls = decoding.decode, []

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(arguments[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", interrupted)
        assert nmt(*words)[0] == 130
    # The row with beam 1 is the run's own search, decoded at the end of its training.
    code, out, err = nmt(*words)
    assert (code, err) == (0, "")
    assert "2 searches × 2 replicates: 3 of 4 decodings are there already" in out
    assert re.search(r"^\| narrow \(baseline\) +\| +\d+\.\d\d ± \d+\.\d\d \(\d+\.\d\d\) \|", out, re.MULTILINE)
    assert "21.71 ± 0.25 (22.04)" in out and "scale=smoke" in out
    report = store / "reports" / f"two-{train_id}"
    assert sorted(path.name for path in report.iterdir()) == [
        "figure.png", "figure.svg", "report.html", "report.md", "sweep.json", "table.csv", "table.md", "table.tex",
    ]  # fmt: skip

    monkeypatch.setattr(decoding, "decode", None)  # nothing is decoded any more
    code, again, _ = nmt(*words)
    assert code == 0 and "4 of 4 decodings are there already" in again
    assert nmt("evaluate", f"run={second_run_id}", "threads=1", f"grid={grid}")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid=table6_beam"], "nmt evaluate: give run=... or sweep=..."),
        (["grid=table6_bean", "run=RUN"], "unknown sweep 'table6_bean'"),
        (["grid=toy_depth", "run=RUN"], "grid=toy_depth: row 'Dec-1' differs in more than its search"),
        (["grid=table6_beam", "run=RUN", "search.stop=never"], "row 'B1': search.stop: 'never' is not a choice"),
        (["grid=table6_beam", "run=ffffff"], "run=ffffff: no such run"),
        (["sweep=quickstart"], "sweep=quickstart: is for a grid"),
        (["grid=table6_beam", "checkpoint=x.pt"], "checkpoint: does not go with a grid"),
    ],
)
def test_mistakes_in_a_grid_are_one_line(
    nmt: Command, store: Path, run_id: str, words: list[str], message: str
) -> None:
    assert message in mistake(nmt("evaluate", *[word.replace("RUN", run_id) for word in words]))


def test_dumps_hold_no_objects(nmt: Command, store: Path, run_id: str, text: Path, tmp_path: Path) -> None:
    """Nothing in an archive needs pickle, which could run code."""
    words = ("translate", f"run={run_id}", "threads=1", f"input={text}", f"beams={tmp_path / 'b.npz'}")
    assert nmt(*words)[0] == 0
    with zipfile.ZipFile(tmp_path / "b.npz") as archive:
        assert all(b"'O'" not in archive.read(name)[:128] for name in archive.namelist())
