"""Fetch a public corpus with checked sums and transfers that resume.

    python scripts/fetch_corpus.py corpus=multi30k dir=data/multi30k
    python scripts/fetch_corpus.py corpus=wmt15 dir=data/wmt15

A transfer that breaks off goes on where it stopped, also when the command is started again. A file appears under its
own name only when it is complete and has its sum; archives are read for the files we want and for nothing else.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import re
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from nmt.arguments import option, parse
from nmt.config.compose import CONF, read_yaml
from nmt.errors import UserError

MULTI30K = (
    "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/{name}"
)
STATMT = "https://www.statmt.org/{path}"
WMT15_ARCHIVES = {
    "europarl/v7/de-en.tgz": "europarl-v7.de-en",
    "wmt15/training-parallel-nc-v10.tgz": "news-commentary-v10.de-en",
    "wmt13/training-parallel-commoncrawl.tgz": "commoncrawl.de-en",
}
NEWSTESTS = {"newstest2013": "wmt13", "newstest2014": "wmt14/full", "newstest2015": "wmt15"}  # names in sacrebleu
CHUNK = 1 << 18  # bytes
RECORD = "SHA256SUMS"

Advance = Callable[[int, int | None], None]
"""Called as advance(bytes there, bytes in all or None) during a transfer."""


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """The command line."""

    corpus: str = option("", "which corpus", choices=("multi30k", "wmt15"))
    dir: str = option("", "directory to write to; empty: data/<corpus>")
    mirror: str = option("", "URL that replaces every host: a mirror that keeps the hosts' paths")
    sums: str = option("", "file of lines `<sha256>  <path below the host>` that replace the built-in sums")
    retries: int = option(8, "times that a transfer may break off in a row without a byte gained", minimum=0)
    wait: float = option(1.0, "seconds before the first retry, doubled each time up to a minute", minimum=0.0)


@dataclass(frozen=True)
class Source:
    """Where downloads come from, and what is known of their sums (by path below the host)."""

    options: FetchOptions
    sums: dict[str, str] = field(default_factory=dict)

    def url(self, address: str) -> str:
        """`address`, at the mirror where one is set."""
        mirror = self.options.mirror.rstrip("/")
        return f"{mirror}{urlsplit(address).path}" if mirror else address

    def digest(self, address: str, built_in: str) -> str:
        """The sum that the file at `address` must have (sha256, or md5 by its length); "" where none is known."""
        return self.sums.get(urlsplit(address).path.lstrip("/"), built_in)


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch what the command line asks for; 2 for a mistake, 75 where the same command would go on."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        options = parse(FetchOptions, words, verb="python scripts/fetch_corpus.py", summary="Fetch a public corpus.")
        if not options.corpus:
            raise UserError("is needed", where="corpus", allowed=["multi30k", "wmt15"])
        directory = Path(options.dir or f"data/{options.corpus}").expanduser()
        fetch_corpus(options, directory)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except TransferError as error:
        sys.stderr.write(f"error: {error}; the same command goes on where this one stopped\n")
        return 75
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on where this one stopped\n")
        return 75
    sys.stderr.write(f"{options.corpus} is in {directory}: data.dir={directory}\n")
    return 0


class TransferError(Exception):
    """A download that could not be brought to its end."""


def fetch_corpus(options: FetchOptions, directory: Path) -> None:
    """Bring every file of `options.corpus` into `directory`, skipping those that are there."""
    source = Source(options, _read_sums(Path(options.sums)) if options.sums else {})
    try:
        directory.mkdir(parents=True, exist_ok=True)
        {"multi30k": _fetch_multi30k, "wmt15": _fetch_wmt15}[options.corpus](source, directory)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", where=str(directory)) from error


def _fetch_multi30k(source: Source, directory: Path) -> None:
    sums: dict[str, str] = {}
    for name in ("multi30k_en_de", "multi30k_en_fr"):
        sums |= read_yaml(CONF / "data" / f"{name}.yaml")["checksums"]
    for name in sorted(sums):
        address = MULTI30K.format(name=name)
        with _bar(name) as advance:
            download(source, address, directory / name, source.digest(address, sums[name]), advance)


def _fetch_wmt15(source: Source, directory: Path) -> None:
    archives = directory / "archives"
    archives.mkdir(exist_ok=True)
    for path, stem in WMT15_ARCHIVES.items():
        wanted = {f"{stem}.{language}": directory / f"{stem}.{language}" for language in ("en", "de")}
        _fetch_archive(source, STATMT.format(path=path), "", archives / Path(path).name, wanted)
    for name, dataset in NEWSTESTS.items():
        _fetch_newstest(source, directory, name, dataset)


def _fetch_newstest(source: Source, directory: Path, name: str, dataset: str) -> None:
    """A news test set through sacrebleu, which knows its archive, its md5, its members and how to read them."""
    finished = {language: directory / f"{name}.{language}" for language in ("en", "de")}
    if all(path.is_file() for path in finished.values()):
        return
    store = (directory / "archives" / "sacrebleu").resolve()
    os.environ["SACREBLEU"] = str(store)  # where sacrebleu keeps its files: read when it is first imported
    from sacrebleu.dataset import DATASETS

    known = DATASETS[dataset]
    address, md5 = (known.data or [""])[0], (known.md5 or [""])[0]
    raw = store / dataset / "raw"
    members = {Path(member).name: raw / member for member in known.langpairs["en-de"]}
    # It takes an archive that lies under this name for its own download, and neither fetches nor unpacks another.
    archive = raw / f"{dataset.replace('/', '_')}.{Path(urlsplit(address).path).name}"
    _fetch_archive(source, address, md5, archive, members)
    for path, target in zip(known.get_files("en-de"), finished.values(), strict=False):  # source, reference, others
        _place(target, Path(path).read_bytes())


def _fetch_archive(source: Source, address: str, built_in: str, archive: Path, wanted: dict[str, Path]) -> None:
    if all(path.is_file() for path in wanted.values()):
        return
    archive.parent.mkdir(parents=True, exist_ok=True)
    path = urlsplit(address).path.lstrip("/")
    record = archive.parent / RECORD
    known = _read_sums(record).get(path, "") if record.is_file() else ""
    digest = source.digest(address, built_in) or known
    with _bar(archive.name) as advance:
        download(source, address, archive, digest, advance)
    try:
        unpack(archive, wanted)
    except UserError:
        archive.unlink()  # fetched whole and yet unreadable: of no use to a later try
        raise
    if not digest:
        _note(record, path, _digest_of(archive, "sha256"))


def download(source: Source, address: str, path: Path, digest: str, advance: Advance) -> None:
    """Bring the file at `address` to `path`, resuming `<path>.part` where it is there.

    A finished `path` with the right sum is left alone. Raises UserError for what the server refuses and for a wrong sum
    (the transfer is then discarded), TransferError where the connection keeps breaking off.
    """
    if path.is_file() and _is_right(path, digest):
        return
    part, url, failures = path.with_name(f"{path.name}.part"), source.url(address), 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _transfer(url, part, advance):
                break
            problem = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise UserError(f"the server answers {error.code} {error.reason}", where=url) from error
            problem = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        gained = (part.stat().st_size if part.is_file() else 0) > before
        failures = 1 if gained else failures + 1
        if failures > source.options.retries:
            raise TransferError(f"{url}: {problem}")
        time.sleep(min(60.0, source.options.wait * 2 ** (failures - 1)))
    if not _is_right(part, digest):
        found = _digest_of(part, _algorithm(digest))
        part.unlink()
        raise UserError(
            f"has {_algorithm(digest)} {found}, and {digest} was expected", where=url, hint="nothing was kept"
        )
    part.replace(path)


def _transfer(url: str, part: Path, advance: Advance) -> bool:
    """Append to `part` what it lacks; True when it is complete."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if (error.headers.get("Content-Range") or "").endswith(f"/{have}"):
            return True  # it broke off behind the last byte
        part.unlink()  # longer than the file: not the beginning of it
        return False
    with response:
        start = re.match(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range") or "")
        if response.status == 206 and start and int(start[1]) == have:
            total: int | None = int(start[2])
        else:  # the server sends the whole file
            have, total = 0, int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        with part.open("ab" if have else "wb") as file:
            advance(have, total)
            try:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    have += len(chunk)
                    advance(have, total)
            except http.client.IncompleteRead as error:
                file.write(error.partial)
                have += len(error.partial)
    return total is None or have == total


def unpack(archive: Path, wanted: dict[str, Path]) -> None:
    """Write the archive's members of the wanted base names to the paths given: no path of the archive is ever used."""
    missing = dict(wanted)
    try:
        with tarfile.open(archive) as members:
            for member in members:
                target = missing.pop(Path(member.name).name, None) if member.isfile() else None
                if target is None:
                    continue
                content = members.extractfile(member)
                assert content is not None  # of a regular file
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f"{target.name}.part")
                with temporary.open("wb") as file:
                    shutil.copyfileobj(content, file, CHUNK)
                temporary.replace(target)
                if not missing:
                    return
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"damaged archive: {error}", where=str(archive), hint="run the same command again") from error
    raise UserError(f"does not hold {', '.join(missing)}", where=str(archive))


def _place(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def _algorithm(digest: str) -> str:
    return "md5" if len(digest) == 32 else "sha256"


def _is_right(path: Path, digest: str) -> bool:
    return not digest or _digest_of(path, _algorithm(digest)) == digest.lower()


def _digest_of(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _read_sums(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("cannot be read as a list of sums", where=str(path)) from error
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?(\S+)", line)
        if match is None:
            raise UserError("is not of the form `<sha256>  <path>`", where=f"{path}:{number}")
        sums[match[2]] = match[1]
    return sums


def _note(record: Path, path: str, digest: str) -> None:
    sums = (_read_sums(record) if record.is_file() else {}) | {path: digest}
    _place(record, "".join(f"{value}  {name}\n" for name, value in sorted(sums.items())).encode())


@contextmanager
def _bar(name: str) -> Iterator[Advance]:
    """A progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        yield lambda have, total: progress.update(task, completed=have, total=total)


if __name__ == "__main__":
    sys.exit(main())
