"""A pack as files: a folder or a zip of them, with a manifest of their sums.

    README.md                     what this is and how to check it
    manifest.json                 sha256 and size of every other file
    pack.json                     what was asked, with which code and versions; rows and their runs; test set
    sweep.yaml                    the sweep, as `nmt sweep sweep=sweep.yaml` reads it
    table.md, table.csv           the table as it was made
    runs/<train_id>/s<seed>/      config.yaml, identity.json, env.json, result.json, metrics.jsonl, decodes/
    runs/.imported/               outputs of other systems in the table
    statistics/<run>/<decode>.jsonl   sufficient statistics of each sentence, where the references are not in the pack
    references.txt                the references, where their licence allows it and they were asked for

The same files make the same bytes: names in order, no dates, fixed modes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from nmt.errors import UserError

FORMAT_VERSION = 1
MANIFEST, ABOUT, README, SPEC = "manifest.json", "pack.json", "README.md", "sweep.yaml"
TABLE, CSV, REFERENCES = "table.md", "table.csv", "references.txt"
RUNS, STATISTICS = "runs", "statistics"
LARGEST = 2 << 30  # bytes that a pack may unfold to
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can say


def manifest_of(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Sum and size of every file."""
    about = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in sorted(files.items())
    }
    return {"format_version": FORMAT_VERSION, "files": about}


def as_json(data: Any) -> bytes:
    """The bytes of a JSON file of ours."""
    return json.dumps(data, indent=1, ensure_ascii=False).encode() + b"\n"


def pack_digest(manifest: bytes) -> str:
    """What identifies a whole pack: publish it beside the pack, and nobody can change a bit of it."""
    return hashlib.sha256(manifest).hexdigest()


def write_files(files: Mapping[str, bytes], to: Path) -> str:
    """Write files and their manifest as a zip (where `to` ends so) or a folder; the pack's digest.

    Whole or not at all. Raises UserError where `to` exists and is no pack, and where it cannot be written.
    """
    manifest = as_json(manifest_of(files))
    whole = {**files, MANIFEST: manifest}
    temporary = to.with_name(f".{to.name}.tmp")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        if to.suffix == ".zip":
            _write_zip(whole, temporary)
            temporary.replace(to)
        else:
            _refuse_other_folder(to)
            shutil.rmtree(temporary, ignore_errors=True)
            for name, data in whole.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            shutil.rmtree(to, ignore_errors=True)
            temporary.replace(to)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=f"to={to}") from error
    return pack_digest(manifest)


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A folder that holds the pack's files, for as long as the context lasts.

    Raises UserError for what is no pack, and for a zip whose names lead out of it.
    """
    if path.is_dir():
        yield _checked(path, path)
        return
    if not path.is_file():
        raise UserError("there is no such pack", where=f"pack={path}")
    with tempfile.TemporaryDirectory(prefix="nmt-pack-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                _extract(archive, Path(folder), path)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise UserError(f"is not a readable zip ({error})", where=f"pack={path}") from error
        yield _checked(Path(folder), path)


def names_in(folder: Path) -> list[str]:
    """Every file of a pack but its manifest, sorted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(name for name in names if name != MANIFEST)


def _write_zip(files: Mapping[str, bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in sorted(files.items()):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(info, data)


def _extract(archive: zipfile.ZipFile, folder: Path, path: Path) -> None:
    infos = archive.infolist()
    if sum(info.file_size for info in infos) > LARGEST:
        raise UserError(f"unfolds to more than {LARGEST >> 30} GiB", where=f"pack={path}")
    for info in infos:
        name = PurePosixPath(info.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in info.filename:
            raise UserError(f"holds a name that leads out of it: {info.filename}", where=f"pack={path}")
        archive.extract(info, folder)


def _checked(folder: Path, path: Path) -> Path:
    if not (folder / MANIFEST).is_file() or not (folder / ABOUT).is_file():
        raise UserError(f"is no pack: it has no {MANIFEST} and {ABOUT}", where=f"pack={path}")
    return folder


def _refuse_other_folder(to: Path) -> None:
    if to.exists() and not (to / MANIFEST).is_file() and any(to.iterdir()):
        raise UserError("is not empty, and no pack", where=f"to={to}", hint="give another folder, or a name.zip")
