"""`nmt translate` and `nmt evaluate` from the command line, on a run of a few steps."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]  # words and stdin to exit code, stdout and stderr

TEXT = "w01 w02 w03\n\nw05 w04\r\n   \nw07"


def test_lines_keep_their_order_and_empty_ones_stay_empty(nmt: Command, runs: Path, run_id: str) -> None:
    code, out, err = nmt("translate", f"run={run_id}", "threads=1", stdin=TEXT.encode())
    assert (code, err) == (0, "")
    lines = out.split("\n")
    assert len(lines) == 6 and lines[5] == ""
    assert lines[1] == lines[3] == ""
    assert all(lines[number] for number in (0, 2, 4))
    for number, text in ((0, "w01 w02 w03"), (2, "w05 w04"), (4, "w07")):
        assert nmt("translate", f"run={run_id}", "threads=1", stdin=text.encode())[1] == lines[number] + "\n"


def test_every_way_to_name_a_run_gives_the_same_text(nmt: Command, runs: Path, run_id: str) -> None:
    directory = runs / run_id
    best = json.loads((directory / "result.json").read_text())["best"]["checkpoint"]
    words = (
        f"run={run_id}",
        f"run={run_id[:4]}",
        f"run={directory}",
        f"run={directory}/",
        f"checkpoint={directory / best}",
    )
    texts = {nmt("translate", word, "threads=1", stdin=TEXT.encode()) for word in words}
    assert len(texts) == 1
    assert texts.pop()[0] == 0


def test_files_plain_and_gzipped(nmt: Command, runs: Path, run_id: str, tmp_path: Path) -> None:
    _, expected, _ = nmt("translate", f"run={run_id}", "threads=1", stdin=TEXT.encode())
    plain, packed = tmp_path / "in.txt", tmp_path / "in.txt.gz"
    plain.write_bytes(TEXT.encode())
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + TEXT.encode()))
    out, out_packed = tmp_path / "out.txt", tmp_path / "out.txt.gz"
    assert nmt("translate", f"run={run_id}", "threads=1", f"input={packed}", f"output={out}") == (0, "", "")
    assert out.read_text() == expected
    assert nmt("translate", f"run={run_id}", "threads=1", f"input={plain}", f"output={out_packed}") == (0, "", "")
    assert gzip.decompress(out_packed.read_bytes()).decode() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "in.txt.gz", "out.txt", "out.txt.gz"]


def test_n_best_lines_carry_number_text_and_falling_scores(nmt: Command, runs: Path, run_id: str) -> None:
    words = ("translate", f"run={run_id}", "threads=1", "beam=4", "n_best=3", "length_penalty=0.6")
    code, out, _ = nmt(*words, stdin=b"w01 w02\n\nw03\n")
    assert code == 0
    entries = [line.split(" ||| ") for line in out.splitlines()]
    assert [number for number, *_ in entries] == ["0"] * 3 + ["1"] + ["2"] * 3
    assert entries[3] == ["1", "", "0.0000"]
    for group in (entries[:3], entries[4:]):
        scores = [float(score) for _, _, score in group]
        assert scores == sorted(scores, reverse=True)
    _, single, _ = nmt("translate", *words[1:4], "length_penalty=0.6", stdin=b"w01 w02\n\nw03\n")
    assert single.splitlines() == [entries[0][1], "", entries[4][1]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nmt translate: give one of run=... and checkpoint=..."),
        (["run=RUN", "checkpoint=x"], "give one of run=... and checkpoint=..."),
        (["run=fffffff"], "run=fffffff: no such run"),
        (["checkpoint=nowhere.pt"], "checkpoint=nowhere.pt: no such file"),
        (["run=RUN", "beam=0"], "beam: 0 is out of range; allowed: >= 1"),
        (["run=RUN", "bean=3"], "bean: unknown key; did you mean beam"),
        (["run=RUN", "beams=3"], "beams=3: is not the name of a .npz file"),
        (["run=RUN", "n_best=5"], "search.n_best: 5 best of a beam of 1; raise search.beam to at least 5"),
        (["run=RUN", "search.stop=never"], "search.stop: 'never' is not a choice; allowed: all, bound"),
        (["run=RUN", "model.decoder.units=9"], "model.decoder.units: belongs to the training, which is done"),
        (["run=RUN", "input=nowhere.txt"], "input=nowhere.txt: cannot be read: No such file or directory"),
        (["run=RUN", "output=no/where.txt"], "output=no/where.txt: cannot be written: No such file or directory"),
        (["run=RUN"], "standard input:2: byte 0xff is not UTF-8"),
    ],
)
def test_mistakes_in_translating_are_one_line(
    nmt: Command, runs: Path, run_id: str, words: list[str], message: str
) -> None:
    words = [word.replace("RUN", run_id) for word in words]
    code, out, err = nmt("translate", *words, "threads=1", stdin=b"w01\n\xff\n")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_a_failed_translation_leaves_no_file(nmt: Command, runs: Path, run_id: str, tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    out.write_text("what was there before\n")
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"w01\n" * 40 + b"\xc3\x28\n")
    code, _, err = nmt("translate", f"run={run_id}", "threads=1", "batch_size=1", f"input={bad}", f"output={out}")
    assert code == 2 and f"{bad}:41: byte 0xc3 is not UTF-8" in err
    assert out.read_text() == "what was there before\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt", "out.txt"]


def test_a_damaged_gzip_file_is_one_line(nmt: Command, runs: Path, run_id: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gz"
    bad.write_bytes(gzip.compress(b"w01 w02\n" * 50)[:-12])
    code, _, err = nmt("translate", f"run={run_id}", "threads=1", f"input={bad}")
    assert code == 2 and f"{bad}:" in err and err.count("\n") == 1


def test_a_reader_that_leaves_ends_the_translation_quietly(runs: Path, run_id: str, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("w01 w02 w03 w04 w05 w06 w07 w08 w09 w10\n" * 4000)
    words = [sys.executable, "-m", "nmt.cli", "translate", f"run={run_id}", "threads=1", f"input={source}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=600) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("verb", ["translate", "evaluate"])
def test_help_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys, nmt.cli\n"
        f"try: nmt.cli.main(['{verb}', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'mlflow', 'ray', 'pandas', 'sacrebleu', 'hydra'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f"Usage: nmt {verb} [key=value ...]")
    assert shown.splitlines()[-1] == "[]"


def test_training_leaves_the_decoded_test_split(runs: Path, run_id: str) -> None:
    (path,) = [path for path in (runs / run_id / "decodes").glob("*.json") if json.loads(path.read_text())["step"]]
    record = json.loads(path.read_text())
    assert record["format_version"] == 1
    assert record["decode_id"] == path.stem
    assert record["split"] == "test" and record["search"]["beam"] == 1
    assert set(record["metrics"]) == {
        *(f"test/decode/{name}" for name in ("bleu", "bleu_lc", "bleu_tok", "bleu_tok_lc", "chrf", "ter")),
        *(f"test/decode/rouge{n}{part}" for n in "12L" for part in ("", "_p", "_r")),
        *(f"test/teacher_forced/{name}" for name in ("token_accuracy", "log_perplexity")),
    }
    assert "tok:13a" in record["signatures"]["bleu"]
    lines = path.with_suffix(".txt").read_text().splitlines()
    assert len(lines) == record["sentences"] > 0
    result = json.loads((runs / run_id / "result.json").read_text())
    assert record["checkpoint_digest"] == result["best"]["checkpoint_digest"]


def test_another_search_is_another_decoding_and_made_once(nmt: Command, runs: Path, run_id: str) -> None:
    decodes = runs / run_id / "decodes"
    before = {path: path.stat().st_mtime_ns for path in decodes.iterdir()}
    words = (
        "evaluate",
        f"run={run_id}",
        "threads=1",
        "search.length_penalty=0.5",
        "search=beam5",
        "search.max_length=12",
    )
    code, out, err = nmt(*words)
    assert (code, err) == (0, "")
    assert "beam 5, length penalty 0.5" in out and "tok:13a" in out
    added = set(decodes.iterdir()) - before.keys()
    assert sorted(path.suffix for path in added) == [".json", ".txt"]
    stamps = {path: path.stat().st_mtime_ns for path in decodes.iterdir()}
    assert nmt(*words) == (0, out, "")
    assert {path: path.stat().st_mtime_ns for path in decodes.iterdir()} == stamps
    assert {path: stamps[path] for path in before} == before
    for path in added:
        path.unlink()


def test_evaluating_as_trained_reuses_the_decoding(nmt: Command, runs: Path, run_id: str) -> None:
    (record,) = (runs / run_id / "decodes").glob("*.json")
    stamp = record.stat().st_mtime_ns
    code, out, _ = nmt("evaluate", f"run={run_id}", "threads=1")
    assert code == 0 and record.with_suffix(".txt").name in out
    assert record.stat().st_mtime_ns == stamp


def test_the_batch_size_is_no_other_decoding(nmt: Command, runs: Path, run_id: str) -> None:
    _, out, _ = nmt("evaluate", f"run={run_id}", "threads=1")
    assert nmt("evaluate", f"run={run_id}", "threads=1", "search.batch_size=3")[1] == out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=RUN", "model.decoder.units=9"], "model.decoder.units: belongs to the training, which is done"),
        (["run=RUN", "search.beem=3"], "search.beem: unknown key; did you mean search.beam"),
        (["run=RUN", "search=beam50"], "search: unknown option 'beam50'; allowed: beam10"),
        (["run=RUN", "search.beam=many"], "search.beam: 'many' does not fit"),
        (["run=RUN", "search.beam=0"], "search.beam: 0 is out of range; allowed: >= 1"),
        (["run=RUN", "search.n_best=7"], "search.n_best"),
        ([], "give run=..., or hypotheses=... and references=..."),
        (["hypotheses=a"], "references: is missing"),
        (["hypotheses=a", "references=b", "search=beam5"], "search=beam5: needs a run"),
        (["hypotheses=nowhere.txt", "references=b"], "nowhere.txt: cannot be read"),
    ],
)
def test_mistakes_in_evaluating_are_one_line(
    nmt: Command, runs: Path, run_id: str, words: list[str], message: str
) -> None:
    code, out, err = nmt("evaluate", *[word.replace("RUN", run_id) for word in words])
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_plain_files_are_scored(nmt: Command, tmp_path: Path) -> None:
    import sacrebleu

    hypotheses, references = tmp_path / "h.txt", tmp_path / "r.txt.gz"
    outputs = ["Ein Hund läuft im Schnee.", "Zwei Kinder spielen Ball auf der Straße."]
    correct = ["Ein Hund rennt im Schnee.", "Zwei Kinder spielen Ball auf der Straße."]
    hypotheses.write_text("\n".join(outputs) + "\n")
    references.write_bytes(gzip.compress(("\n".join(correct) + "\n").encode()))
    code, out, _ = nmt("evaluate", f"hypotheses={hypotheses}", f"references={references}", "language=de")
    assert code == 0
    bleu = sacrebleu.corpus_bleu(outputs, [correct]).score
    assert out.splitlines()[0].split()[:2] == ["bleu", f"{bleu:.2f}"]
    assert "moses:de" in out
    hypotheses.write_text(outputs[0] + "\n")
    code, _, err = nmt("evaluate", f"hypotheses={hypotheses}", f"references={references}")
    assert code == 2 and f"{hypotheses}: has 1 lines, and {references} has 2" in err
