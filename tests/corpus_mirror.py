"""A miniature mirror, on loopback, of the hosts scripts/fetch_corpus.py reads: same layout, Range, cut transfers."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MULTI30K = "multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw"
ARCHIVES = {
    "europarl/v7/de-en.tgz": "europarl-v7.de-en",
    "wmt15/training-parallel-nc-v10.tgz": "news-commentary-v10.de-en",
    "wmt13/training-parallel-commoncrawl.tgz": "commoncrawl.de-en",
}
NEWSTESTS = {
    "wmt13/test.tgz": ("test/newstest2013-src.en.sgm", "test/newstest2013-src.de.sgm"),
    "wmt14/test-full.tgz": ("test-full/newstest2014-deen-src.en.sgm", "test-full/newstest2014-deen-ref.de.sgm"),
    "wmt15/test.tgz": ("test/newstest2015-ende-src.en.sgm", "test/newstest2015-ende-ref.de.sgm"),
}
NOUNS = {
    "dog": "Hund",
    "man": "Mann",
    "tree": "Baum",
    "table": "Tisch",
    "son": "Sohn",
    "king": "König",
    "star": "Stern",
}
VERBS = {"sees": "sieht", "finds": "findet", "loves": "liebt", "draws": "zeichnet", "knows": "kennt"}


class Mirror:
    """Files by path below the host, and what was asked for.

    broken: paths whose next answers break off after half of what is left, and how often.
    ranges: whether the Range header is honoured.
    requests: (path, value of the Range header or "") in order.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.broken: dict[str, int] = {}
        self.ranges = True
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    def add_multi30k(self) -> None:
        for split, count in (("train", 60), ("val", 5), ("test_2016_flickr", 5)):
            english, german = pairs(split, count)
            for language, lines in (("en", english), ("de", german), ("fr", german)):
                self.files[f"{MULTI30K}/{split}.{language}.gz"] = gzip.compress("\n".join(lines).encode(), mtime=0)

    def add_wmt15(self) -> None:
        for path, stem in ARCHIVES.items():
            english, german = pairs(stem, 40)
            inside = "training/" if "commoncrawl" in path else ""
            self.files[path] = archive(
                {
                    "../../outside.txt": "written by a bad archive",
                    f"{inside}other.fr-en.fr": "x\n",
                    f"{inside}{stem}.de": "".join(line + "\n" for line in german),
                    f"{inside}{stem}.en": "".join(line + "\n" for line in english),
                }
            )
        for path, members in NEWSTESTS.items():
            sides = pairs(path, 6)
            self.files[path] = archive(
                {"/outside.txt": "bad"}
                | {
                    member: '<srcset>\n<doc docid="d" genre="news" origlang="en">\n'
                    + "".join(f'<seg id="{i}">{line}</seg>\n' for i, line in enumerate(lines, 1))
                    + "</doc>\n</srcset>\n"
                    for member, lines in zip(members, sides, strict=True)
                }
            )

    def write_sums(self, path: Path) -> Path:
        lines = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(self.files.items()))
        path.write_text("".join(lines))
        return path


def pairs(name: str, count: int) -> tuple[list[str], list[str]]:
    """`count` sentence pairs that depend on `name` alone."""
    english, german = [], []
    for number in range(count):
        draw = hashlib.blake2b(f"{name}/{number}".encode()).digest()
        (a, b), verb = (list(NOUNS)[draw[i] % len(NOUNS)] for i in (0, 1)), list(VERBS)[draw[2] % len(VERBS)]
        english.append(f"The {a} {verb} the {b}, doesn't he?")
        german.append(f"Der {NOUNS[a]} {VERBS[verb]} den {NOUNS[b]}, oder nicht?")
    return english, german


def archive(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


@contextmanager
def serving(mirror: Mirror) -> Iterator[Mirror]:
    """Serve `mirror` on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, asked = self.path.lstrip("/"), self.headers.get("Range", "")
            mirror.requests.append((path, asked))
            if path not in mirror.files:
                self.send_error(404)
                return
            content = mirror.files[path]
            match = re.fullmatch(r"bytes=(\d+)-", asked) if mirror.ranges else None
            start = int(match[1]) if match else 0
            if match and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            if mirror.broken.get(path, 0):
                mirror.broken[path] -= 1
                body = body[: len(body) // 2]
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        mirror.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield mirror
        finally:
            server.shutdown()
            thread.join()
