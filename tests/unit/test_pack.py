"""A pack of a sweep: whatever in it contradicts the table is found, and nothing in it says where it was made."""

from __future__ import annotations

import io
import json
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nmt.cli import main
from nmt.config import RunConfig, decode_id, to_dict, training_identity
from nmt.config.identity import run_id
from nmt.errors import UserError
from nmt.evaluation.catalogue import DECODED, key
from nmt.evaluation.metrics import score
from nmt.runs import LocalRunStore
from sweeps.imported.rows import find_test_set
from sweeps.imported.store import ImportedSystem, add_outputs
from sweeps.packs.checks import AGREES, DIFFERS, UNCHECKED, check_files
from sweeps.packs.contents import pack_files
from sweeps.packs.files import ABOUT, MANIFEST, as_json, manifest_of, opened, write_files
from sweeps.packs.verify import verify
from sweeps.plan import SweepPlan, make_plan
from sweeps.reuse import PresentCode
from sweeps.spec import load_spec

REFERENCES = ["Der Hund läuft über die Wiese .", "Ein Mann schläft auf der Bank .", "Zwei Kinder spielen im Park ."]
SWEEP = """
title: Two rows
replicates: 2
baseline: A
overrides: [data=files, tokenizer=spm_bpe_4k, data.target_language=de]
rows:
  - {label: A, published: {mean: 22.5, std: 0.3}}
  - {label: B, experiment: t2_lstm}
"""
CODE = PresentCode("c" * 12)  # that of the runs, whoever may be editing this checkout
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of three lines and a sweep of two rows, whose four runs are complete and consistent."""
    place = tmp_path_factory.mktemp("packs")
    (place / "corpus").mkdir()
    for split in ("train", "validation", "test"):
        for side in ("source", "target"):
            (place / "corpus" / f"{split}.{side}").write_text("".join(f"{line}\n" for line in REFERENCES))
    (place / "two.yaml").write_text(SWEEP)
    for number, run in enumerate(planned(place).runs):
        write_run(run.config, number)
    return place


@pytest.fixture(scope="module")
def files(place: Path) -> Files:
    """The files of the sweep's pack, not to be changed."""
    return pack_files(planned(place))


def planned(place: Path, *words: str) -> SweepPlan:
    """The sweep's plan, whose words name what no pack may repeat."""
    where = [f"data.dir={place / 'corpus'}", f"paths.runs={place / 'runs'}"]
    spec = load_spec(str(place / "two.yaml"))
    return make_plan(spec, [*where, "tracking.uri=postgresql://ann:secret@host/x", *words], code=CODE)


def write_run(config: RunConfig, number: int) -> None:
    """A finished run whose output of one sentence depends on its number."""
    store, name = LocalRunStore(config.paths.runs), run_id(config)
    store.write_text(name, "config.yaml", yaml.safe_dump(to_dict(config)))
    store.write_json(name, "identity.json", training_identity(config))
    place = {"host": socket.gethostname(), "code": {"commit": "c" * 40}, "packages": {"torch": "2"}}
    store.write_json(name, "env.json", place)
    checkpoint = f"{number}" * 64
    validation = {"val/decode/bleu": 20.0 + number, "val/teacher_forced/log_perplexity": 1.5 + number}
    lines = [
        {"kind": "header", "run_id": name},
        {"kind": "train", "step": 50, "loss": 2.0},
        {"kind": "evaluation", "step": 80, "parameters_sha256": checkpoint, **validation},
    ]
    store.write_text(name, "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    best = {"step": 80, "checkpoint": f"/somewhere/{name}.pt", "checkpoint_digest": checkpoint, "metrics": validation}
    result = {"state": "finished", "reason": "patience", "steps": 100, "best": best, "parameters": 1_000_000}
    store.write_json(name, "result.json", result | {"tokens_per_second": 900.0, "timing": "exclusive"})
    outputs = [*REFERENCES[:2], " ".join(REFERENCES[2].split()[: 4 + number % 3])]
    scores, decoding = score(outputs, REFERENCES, "de"), decode_id(checkpoint, config)
    store.write_text(name, f"decodes/{decoding}.txt", "".join(f"{line}\n" for line in outputs))
    record = {
        "decode_id": decoding,
        "checkpoint_digest": checkpoint,
        "metrics": {key("test", metric): scores[metric] for metric in DECODED},
        "signatures": scores["signatures"],
        "sentences": 3,
    }
    store.write_json(name, f"decodes/{decoding}.json", record)


def written(files: Files, folder: Path) -> Path:
    """The files as an unpacked pack with sums that fit them, whatever was done to them."""
    for name, data in {**files, MANIFEST: as_json(manifest_of(files))}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def verdicts(folder: Path, data_dir: Path | str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {AGREES: [], DIFFERS: [], UNCHECKED: []}
    for finding in verify(folder, str(data_dir)):
        found[finding.verdict].append(finding.what)
    return found


def one(files: Files, ending: str) -> str:
    return next(name for name in files if name.endswith(ending))


def edited(files: Files, ending: str, change: Callable[[dict[str, Any]], None]) -> Files:
    """The files with one record changed."""
    name = one(files, ending)
    record = json.loads(files[name])
    change(record)
    return files | {name: as_json(record)}


def replaced(files: Files, ending: str, old: str, new: str) -> Files:
    name = one(files, ending)
    assert old in files[name].decode(), files[name].decode()
    return files | {name: files[name].decode().replace(old, new, 1).encode()}


def test_a_pack_holds_by_outputs_and_references(files: Files, place: Path, tmp_path: Path) -> None:
    found = verdicts(written(files, tmp_path), place / "corpus")
    assert found[DIFFERS] == []
    assert "scores of 4 decodings, from outputs and references" in found[AGREES]
    assert "references of files: 3 sentences, as their digest says" in found[AGREES]
    assert any(text.endswith("cells of table.csv come out again") for text in found[AGREES])
    assert found[UNCHECKED] == [
        "times, memory and parameters: as the runs recorded them; nothing else in a pack says them"
    ]


def test_without_the_references_the_statistics_of_sentences_have_to_do(files: Files, tmp_path: Path) -> None:
    found = verdicts(written(files, tmp_path))
    assert found[DIFFERS] == []
    assert "scores of 4 decodings, from the statistics of their sentences alone" in found[AGREES]
    assert any("the references are not at hand" in text for text in found[UNCHECKED])


def test_references_are_there_where_they_were_asked_for(place: Path, tmp_path: Path) -> None:
    files = pack_files(planned(place), with_references=True)
    assert files["references.txt"].decode().splitlines() == REFERENCES
    assert not any(name.startswith("statistics/") for name in files)
    found = verdicts(written(files, tmp_path / "a"))
    assert found[DIFFERS] == [] and "scores of 4 decodings, from outputs and references" in found[AGREES]
    other = replaced(files, "references.txt", "Hund", "Hase")
    assert any(
        "are not those that were scored on" in text for text in verdicts(written(other, tmp_path / "b"))[DIFFERS]
    )


def test_the_same_runs_make_the_same_bytes(files: Files, place: Path, tmp_path: Path) -> None:
    for name, data in (("a.zip", files), ("b.zip", pack_files(planned(place))), ("folder", files)):
        write_files(data, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with opened(tmp_path / "a.zip") as unpacked:
        names = [path.relative_to(unpacked) for path in sorted(unpacked.rglob("*")) if path.is_file()]
        assert [(unpacked / name).read_bytes() for name in names] == [
            (tmp_path / "folder" / name).read_bytes() for name in names
        ]
    assert not [name for name in names if name.suffix == ".pt"]


def test_nothing_says_where_it_was_made(files: Files, place: Path) -> None:
    for name, data in files.items():
        text = data.decode()
        for secret in (str(place), socket.gethostname(), "secret", "postgresql", "/somewhere"):
            assert secret not in text, (name, secret)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: replaced(files, ".txt", "Hund", "Hase"), "bleu is"),
        (lambda files: replaced(files, ".txt", "Der Hund", "Hund"), "bleu is"),
        (
            lambda files: edited(files, f"decodes/{one(files, '.txt')[-16:-4]}.json", _better),
            "on these outputs",
        ),
        (lambda files: edited(files, "s1/result.json", lambda record: record["best"].update(step=50)), "evaluation at"),
        (
            lambda files: edited(files, "s1/result.json", lambda record: record["best"]["metrics"].update(x=1.0)),
            "validation scores of result.json",
        ),
        (lambda files: edited(files, "s1/identity.json", lambda record: record.update(batch=3)), "identity.json makes"),
        (lambda files: replaced(files, "s1/config.yaml", "max_steps: ", "max_steps: 1"), "config.yaml is not what was"),
        (lambda files: replaced(files, "s1/config.yaml", "seed: 1", "seed: 3"), "has seed 3"),
        (lambda files: replaced(files, "table.md", "1.00", "0.90"), "table.md, row"),
        (lambda files: replaced(files, "table.csv", "1000000", "900000"), "table.csv, row"),
        (lambda files: replaced(files, "table.md", "| B ", "| C "), "table.md has no row B"),
    ],
    ids=["hypothesis", "length", "score", "step", "validation", "identity", "config", "seed", "cell", "csv", "row"],
)
def test_whatever_is_changed_contradicts_something_else(
    files: Files, place: Path, tmp_path: Path, change: Callable[[Files], Files], words: str
) -> None:
    folder = written(change(files), tmp_path)
    found = verdicts(folder, place / "corpus")[DIFFERS]
    assert any(words in text for text in found), found
    (folder / MANIFEST).write_bytes(as_json(manifest_of(files)))  # the sums alone find it too
    (finding,) = check_files(folder)
    assert finding.verdict == DIFFERS and "is not what the manifest says" in finding.what


def _better(record: dict[str, Any]) -> None:
    record["metrics"]["test/decode/bleu"] += 1.0


def _worse(record: dict[str, Any]) -> None:
    record["metrics"]["test/decode/bleu"] -= 1.0


def test_a_better_score_without_references_contradicts_its_sentences(files: Files, tmp_path: Path) -> None:
    changed = edited(files, f"decodes/{one(files, '.txt')[-16:-4]}.json", _better)
    found = verdicts(written(changed, tmp_path / "a"))[DIFFERS]
    assert any("of the sentences' statistics" in text for text in found)
    found = verdicts(written(replaced(files, ".txt", "Der Hund", "Hund"), tmp_path / "b"))[DIFFERS]
    assert any("the statistics of sentence 1 are not of its output" in text for text in found)


def test_files_that_come_and_go_are_named(files: Files, tmp_path: Path) -> None:
    folder = written(files, tmp_path / "pack")
    (folder / "extra").touch()
    (folder / "table.csv").rename(tmp_path / "gone")
    found = verdicts(folder)[DIFFERS]
    assert "extra is not in the manifest" in found and "table.csv is missing" in found
    assert any(text.startswith("cannot be read further") for text in found)


@pytest.mark.parametrize(("name", "value"), [("run_id", "../../other/s1"), ("decode_id", "../../../secret")])
def test_a_pack_leads_to_no_file_outside_it(files: Files, tmp_path: Path, name: str, value: str) -> None:
    def lead_out(about: dict[str, Any]) -> None:
        about["rows"][0]["runs"][0][name] = value

    found = verdicts(written(edited(files, ABOUT, lead_out), tmp_path))[DIFFERS]
    assert any("names no run" in text for text in found)


def test_missing_replicates_stay_missing(place: Path, tmp_path: Path) -> None:
    files = pack_files(planned(place, "replicates=3"))
    assert sum(name.endswith("result.json") for name in files) == 4
    assert b"1 of 3 replicates missing" in files["table.md"]
    assert verdicts(written(files, tmp_path))[DIFFERS] == []
    with pytest.raises(UserError, match="nothing of it is complete"):
        pack_files(planned(place, f"paths.runs={tmp_path / 'none'}"))


def test_a_rule_for_stopping_is_looked_at_again(place: Path, tmp_path: Path) -> None:
    files = pack_files(planned(place, "replicates=until ci<50 min=2 max=3"))
    assert json.loads(files[ABOUT])["overrides"] == ["replicates=until ci<50 min=2 max=3"]
    assert verdicts(written(files, tmp_path))[DIFFERS] == []


def test_imported_rows_go_along(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "runs", tmp_path / "runs")
    made = planned(place, f"paths.runs={tmp_path / 'runs'}")
    test, lines = find_test_set(made.config)
    path = tmp_path / "other.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    system, _ = add_outputs(made.store.root, ImportedSystem(system="Other", test=test), lines, [path])
    files = pack_files(made)
    assert "| Other " in files["table.md"].decode()
    for where in ("", place / "corpus"):
        found = verdicts(written(files, tmp_path / "pack"), where)
        assert found[DIFFERS] == [] and any(text.startswith("scores of 5 decodings") for text in found[AGREES])
    changed = edited(files, f"{system.outputs[0]}.json", _worse)
    for number, where in enumerate(("", place / "corpus")):
        found = verdicts(written(changed, tmp_path / f"changed{number}"), where)
        assert any(text.startswith("Other, run Other/1: bleu is") for text in found[DIFFERS])
    without = {name: data for name, data in files.items() if "/.imported/" not in name}
    found = verdicts(written(without, tmp_path / "without"))
    assert "table.md, row Other: nothing in the pack makes one" in found[DIFFERS]


def test_what_is_no_pack_is_refused(tmp_path: Path) -> None:
    outside = io.BytesIO()
    with zipfile.ZipFile(outside, "w") as archive:
        archive.writestr("../escaped", b"x")
    (tmp_path / "outside.zip").write_bytes(outside.getvalue())
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("outside.zip", "leads out of it"),
        ("text.zip", "is not a readable zip"),
        ("empty", "is no pack"),
        ("none.zip", "there is no such pack"),
    ):
        with pytest.raises(UserError, match=message), opened(tmp_path / name):
            pass
    assert not (tmp_path.parent / "escaped").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="is not empty, and no pack"):
        write_files({ABOUT: b"{}"}, tmp_path / "full")
    assert (tmp_path / "full" / "mine").exists()


def test_the_command_lines(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [f"data.dir={place / 'corpus'}"]
    pack = f"{tmp_path / 'two.zip'}"
    words = ["pack", f"sweep={place / 'two.yaml'}", f"to={pack}", *where, f"paths.runs={place / 'runs'}"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "4 runs" in out and "references not included" in out
    whole = out.partition("publish beside it: ")[2][:64]
    assert main(["verify", f"pack={pack}", *where, f"digest={whole[:12]}"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == f"{pack} holds: 7 checks, no contradiction"
    assert main(["verify", f"pack={pack}", *where, "digest=000000000000"]) == 1
    assert "does not hold" in capsys.readouterr().out
    assert main(["verify"]) == 2 and main(["pack", "sweep=quickstart"]) == 2
    assert main(["verify", f"pack={pack}", f"data.dir={tmp_path / 'none'}"]) == 1
