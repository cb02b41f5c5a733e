"""Outputs of other systems: kept once, scored by our metrics, and rows of every table of their test set."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from finished_runs import finish

from nmt.cli import main
from nmt.config import compose
from nmt.data.corpus import load_test
from nmt.errors import UserError
from nmt.evaluation.metrics import score
from sweeps.aggregate import aggregate
from sweeps.imported.rows import imported_rows
from sweeps.imported.store import ImportedSystem, TestSet, add_outputs, digest_of, imported_systems, systems_called
from sweeps.plan import make_plan
from sweeps.reporting.full_table import to_csv
from sweeps.reporting.table import make_table
from sweeps.sentences import hypotheses, statistics_of
from sweeps.spec import RowSpec, SweepSpec

REFERENCES = ["Der Hund läuft .", "Ein Mann schläft auf der Bank .", "Zwei Kinder spielen ."]
TEST = TestSet(
    references_sha256=digest_of(REFERENCES), identity="0" * 12, sentences=3, language="de", corpus="three lines"
)
SYSTEM = ImportedSystem(system="Other NMT", test=TEST, version="1.0", note="beam 5")
SPEC = SweepSpec(name="test", title="A test", replicates=2, baseline="B", rows=(RowSpec(label="B"),))
SMALL = ["data.options.test_size=4", "data.options.train_size=20", "data.options.validation_size=2"]


def outputs(folder: Path, name: str, lines: list[str]) -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_each_file_is_a_replicate_scored_by_our_metrics(tmp_path: Path) -> None:
    first = [REFERENCES[0], "Ein Mann liegt auf der Bank .", ""]
    a, b = outputs(tmp_path, "a.txt", first), outputs(tmp_path, "b.txt", REFERENCES)
    system, new = add_outputs(tmp_path / "runs", SYSTEM, REFERENCES, [a, b])
    assert new == [digest_of(first)[:12], digest_of(REFERENCES)[:12]]
    one, other = system.replicates()
    expected = score(first, REFERENCES, "de")
    assert one.metrics["bleu"] == expected["bleu"] and one.metrics["ter"] == expected["ter"]
    assert one.signatures == expected["signatures"]
    assert other.metrics["bleu"] == pytest.approx(100.0)
    assert (one.seed, other.seed, one.sentences, one.parameters) == (1, 2, 3, None)
    assert hypotheses(one) == first
    assert statistics_of(one, REFERENCES, "de", "bleu").shape[0] == 3


def test_what_is_there_stays_once(tmp_path: Path) -> None:
    a, b = outputs(tmp_path, "a.txt", REFERENCES), outputs(tmp_path, "b.txt", list(reversed(REFERENCES)))
    runs = tmp_path / "runs"
    add_outputs(runs, SYSTEM, REFERENCES, [a])
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert add_outputs(runs, SYSTEM, REFERENCES, [a, a])[1] == []
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
    system, new = add_outputs(runs, SYSTEM, REFERENCES, [a, b])
    assert (len(new), len(system.outputs)) == (1, 2)
    with gzip.open(tmp_path / "c.gz", "wt") as file:
        file.writelines(f"{line}\n" for line in REFERENCES)
    assert add_outputs(runs, SYSTEM, REFERENCES, [tmp_path / "c.gz"])[1] == []  # the same lines in another file
    assert imported_systems(runs) == [system]


def test_a_file_with_other_lines_than_the_test_set_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    a, short = outputs(tmp_path, "a.txt", REFERENCES), outputs(tmp_path, "short.txt", REFERENCES[:2])
    with pytest.raises(UserError, match=r"short\.txt: has 2 lines, and the test set has 3 sentences"):
        add_outputs(tmp_path / "runs", SYSTEM, REFERENCES, [a, short])
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="there is no such file"):
        add_outputs(tmp_path / "runs", SYSTEM, REFERENCES, [tmp_path / "none"])


def test_two_names_that_would_share_a_folder_do_not(tmp_path: Path) -> None:
    a = outputs(tmp_path, "a.txt", REFERENCES)
    add_outputs(tmp_path / "runs", SYSTEM, REFERENCES, [a])
    with pytest.raises(UserError, match="is too like 'Other NMT'"):
        add_outputs(tmp_path / "runs", ImportedSystem(system="Other/NMT", test=TEST), REFERENCES, [a])


def test_a_row_in_every_table_of_the_test_set_and_in_no_other(tmp_path: Path, isolated_runs: Path) -> None:
    plan = make_plan(SPEC, SMALL)
    for run, bleu in zip(plan.rows[0].runs, (20.0, 21.0), strict=True):
        finish(run.config, bleu)
    plan = make_plan(SPEC, SMALL)
    assert imported_rows(plan) == []
    lines = load_test(plan.config.data).target
    files = [outputs(tmp_path, "a", lines), outputs(tmp_path, "b", lines[::-1])]
    test = TestSet(references_sha256=digest_of(lines), identity="", sentences=4, language="", corpus="toy")
    for name in ("Other", "B"):
        add_outputs(isolated_runs, ImportedSystem(system=name, test=test, version="2"), lines, files)
    table = make_table(plan, aggregate(plan))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["row"] for row in rows] == ["B (baseline)", "B (imported)", "Other"]
    assert rows[2]["n"] == "2" and rows[2]["test bleu"].endswith("(100.00)")
    assert (rows[2]["params M"], rows[2]["tok/s"], rows[2]["conv. s"]) == ("–", "–", "–")
    legend = {line[0]: line[3:] for line in table.legend}
    assert legend[rows[2]["marks"]] == "imported: outputs of Other 2, trained elsewhere"
    assert to_csv(plan, aggregate(plan)).splitlines()[-1].startswith("Other,2,2,")
    elsewhere = make_plan(SPEC, [*SMALL, "data.options.seed=7"])
    assert imported_rows(elsewhere) == []


def test_the_files_identity_tells_a_test_set_whose_corpus_is_not_here(tmp_path: Path, isolated_runs: Path) -> None:
    words = ["data=multi30k_en_de", f"data.dir={tmp_path / 'none'}", "tokenizer=spm_bpe_4k"]
    plan = make_plan(SPEC, words)
    from nmt.config.identity import digest, text_identity

    test = TestSet(
        references_sha256=digest_of(REFERENCES),
        identity=digest(text_identity(plan.config.data, ("test",))),
        sentences=3,
        language="de",
    )
    a = outputs(tmp_path, "a", REFERENCES)
    add_outputs(isolated_runs, ImportedSystem(system="Other", test=test), REFERENCES, [a])
    assert [row.label for row in imported_rows(plan)] == ["Other"]


def test_the_command_imports_lists_and_removes(
    tmp_path: Path, isolated_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = load_test(compose(SMALL).data).target
    a = outputs(tmp_path, "a.txt", lines)
    words = ["import", "system=Other", f"hyp={a}", "note=copied", "data=toy_translation", *SMALL]
    assert main(words) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "1 new, 0 there already"
    assert out[1].startswith("Other  toy_translation, 4 sentences, references ") and out[1].endswith("(copied)")
    assert "bleu 100.00" in out[2] and out[2].endswith("a.txt")
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("0 new, 1 there already")
    assert main(["import"]) == 0
    assert capsys.readouterr().out.splitlines() == out[1:]
    assert main(["import", "system=Other", "remove=true"]) == 0
    assert capsys.readouterr().out == "removed Other on toy_translation: 1 files of outputs\n"
    assert systems_called(isolated_runs, "Other") == [] and not any((isolated_runs / ".imported").iterdir())


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = outputs(tmp_path, "a.txt", ["one"])
    for words, message in (
        (["sytem=x", f"hyp={a}"], "sytem: unknown key; did you mean system"),
        (["system=x"], "hyp: is missing"),
        (["system=x", f"hyp={a}"], "which test set?"),
        (["system=x", f"hyp={a}", "data=toy_copy", "test=newstest"], "has no test set 'newstest'"),
        (["system=x", "remove=true"], "nothing is imported under this name"),
        (["system=x", f"hyp={a}", "data=toy_copy"], "has 1 lines, and the test set has"),
        (["system=x", f"hyp={a}", "sweep=quickstrat"], "unknown sweep 'quickstrat'"),
    ):
        assert main(["import", *words]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err


def test_an_import_that_was_edited_by_hand_is_named(tmp_path: Path) -> None:
    system, _ = add_outputs(tmp_path / "runs", SYSTEM, REFERENCES, [outputs(tmp_path, "a.txt", REFERENCES)])
    about = json.loads((system.directory / "about.json").read_text())
    (system.directory / "about.json").write_text(json.dumps({name: about[name] for name in ("system", "note")}))
    with pytest.raises(UserError, match="is no import of this version"):
        imported_systems(tmp_path / "runs")
