"""`<runs>/.imported/<system>/<test set>/`: what another toolkit made of a test set, and how it scores here.

    about.json            the system: name, version, note; the test set: digest of its references, sentences, language
    decodes/<id>.txt      one file of outputs, a line a sentence; the id is the beginning of its sha256
    decodes/<id>.json     its scores by our metrics, with their signatures

Each file of outputs is a replicate. Files are laid out as in a run directory, so that what reads the outputs of a run
reads these. Nothing here is made by us: what is not in the outputs (parameters, times, steps) is not known.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nmt.data.corpus import read_lines
from nmt.errors import UserError
from nmt.evaluation.catalogue import DECODED, METRICS, key
from nmt.records import read_record
from nmt.runs import LocalRunStore
from sweeps.folder import file_name
from sweeps.results import Replicate

FOLDER = ".imported"
DIGITS = 12  # of the digests that name files


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A test set as its references: what tells whether two systems were scored on the same.

    `references_sha256` covers the references, joined by line ends; `identity` is that of the corpus's files or recipe,
    which is known where the corpus does not lie. `language` chooses the Moses rules of some metrics.
    """

    references_sha256: str
    identity: str
    sentences: int
    language: str
    corpus: str = ""

    __test__ = False  # no test of pytest's


@dataclass(frozen=True, kw_only=True)
class ImportedSystem:
    """One system on one test set. `outputs` are the ids of its files, the first that was imported first."""

    system: str
    test: TestSet
    version: str = ""
    note: str = ""
    outputs: tuple[str, ...] = ()
    directory: Path = Path()

    @property
    def mark(self) -> str:
        """What a table says of the row."""
        named = f"imported: outputs of {self.system}{' ' + self.version if self.version else ''}, trained elsewhere"
        return f"{named}; {self.note}" if self.note else named

    def replicates(self) -> list[Replicate]:
        """Its files of outputs in the form in which runs are read: no steps, no times, no parameters."""
        found = []
        for number, output in enumerate(self.outputs, start=1):
            record = read_record(self.directory, f"decodes/{output}.json") or {}
            found.append(
                Replicate(
                    run_id=f"{file_name(self.system)}/{number}",
                    seed=number,
                    state="imported",
                    complete=bool(record),
                    metrics={
                        name: record["metrics"][key("test", name)]
                        for name in METRICS
                        if key("test", name) in record.get("metrics", {})
                    },
                    signatures=record.get("signatures", {}),
                    decode_id=output,
                    sentences=record.get("sentences"),
                    directory=self.directory,
                )
            )
        return found


def digest_of(lines: Sequence[str]) -> str:
    """The sha256 of lines of text, joined by line ends."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def imported_systems(runs: Path) -> list[ImportedSystem]:
    """Everything that was imported beside these runs, by system and test set."""
    return [_read(path.parent) for path in sorted((runs / FOLDER).glob("*/*/about.json"))]


def systems_called(runs: Path, name: str) -> list[ImportedSystem]:
    """What was imported under a name, a system for each test set; empty where nothing was."""
    return [system for system in imported_systems(runs) if system.system == name]


def add_outputs(
    runs: Path, system: ImportedSystem, references: Sequence[str], paths: Sequence[Path]
) -> tuple[ImportedSystem, list[str]]:
    """Put files of outputs beside the runs, and score them; the system as it is now, and the ids of what is new.

    What is there already stays once. All files are looked at before anything is written. Raises UserError for a file
    with another number of lines than the test set, and one that cannot be read.
    """
    texts = [_outputs(path, len(references)) for path in paths]
    place = runs / FOLDER / file_name(system.system) / system.test.references_sha256[:DIGITS]
    before = _read(place) if (place / "about.json").is_file() else replace(system, directory=place)
    if before.system != system.system:
        raise UserError(
            f"is too like '{before.system}', which is there", where=f"system={system.system}", hint="choose another"
        )
    new: dict[str, tuple[Path, list[str]]] = {}
    for path, lines in zip(paths, texts, strict=True):
        name = digest_of(lines)[:DIGITS]
        if name not in before.outputs:
            new.setdefault(name, (path, lines))
    now = replace(
        before,
        version=system.version or before.version,
        note=system.note or before.note,
        outputs=(*before.outputs, *new),
    )
    if now == before:
        return now, []
    store = LocalRunStore(place.parent)
    for name, (path, lines) in new.items():
        store.write_text(place.name, f"decodes/{name}.txt", "".join(f"{line}\n" for line in lines))
        store.write_json(place.name, f"decodes/{name}.json", _record(name, path, lines, references, system.test))
    about = {name: value for name, value in asdict(now).items() if name != "directory"}
    store.write_json(place.name, "about.json", about)  # last: it says which outputs are whole
    return now, list(new)


def remove_system(system: ImportedSystem) -> None:
    """Remove what was imported of a system for a test set."""
    shutil.rmtree(system.directory)
    if not any(system.directory.parent.iterdir()):
        system.directory.parent.rmdir()


def _outputs(path: Path, sentences: int) -> list[str]:
    if not path.is_file():
        raise UserError("there is no such file", where=f"hyp={path}")
    lines = read_lines(path)
    if len(lines) != sentences:
        raise UserError(
            f"has {len(lines)} lines, and the test set has {sentences} sentences",
            where=f"hyp={path}",
            hint="an output a line, in the order of the test set, an empty line for an empty output",
        )
    return lines


def _record(name: str, path: Path, lines: Sequence[str], references: Sequence[str], test: TestSet) -> dict[str, Any]:
    from nmt.evaluation.metrics import score

    scores = score(lines, references, test.language)
    return {
        "decode_id": name,
        "file": path.name,
        "sha256": digest_of(lines),
        "metrics": {key("test", metric): scores[metric] for metric in DECODED},
        "signatures": scores["signatures"],
        "sentences": len(lines),
    }


def _read(directory: Path) -> ImportedSystem:
    data = read_record(directory, "about.json") or {}
    try:
        return ImportedSystem(
            system=data["system"],
            version=data["version"],
            note=data["note"],
            outputs=tuple(data["outputs"]),
            test=TestSet(**data["test"]),
            directory=directory,
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"is no import of this version ({error})", where=str(directory / "about.json"), hint="import it again"
        ) from error
