"""Environments of the peers: what is installed there, and what of it is changed.

Each peer gets a virtual environment of its own, beside the same torch as ours. Its requirements are not resolved
(`--no-deps`), since they would bring another torch and hundreds of megabytes that training and searching never import;
what truly is imported is listed here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nmt.errors import UserError

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
_DONE = "installed.json"  # written last


@dataclass(frozen=True)
class Fix:
    """A change of an installed file: `old` stands there once and is replaced by `new`."""

    file: str
    old: str
    new: str
    reason: str


@dataclass(frozen=True)
class Peer:
    """A toolkit to compare with.

    package: what pip is asked for. needs: packages that it imports on the way to a training step and a search, in the
    versions of constraints.txt where they stand there. overrides: its requirements that are not met, and why that does.
    """

    name: str
    module: str
    package: str
    needs: tuple[str, ...]
    overrides: tuple[str, ...]
    fixes: tuple[Fix, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """All that the environment is made of, as text."""
        pins = CONSTRAINTS.read_text(encoding="utf-8") if CONSTRAINTS.is_file() else ""
        return json.dumps([asdict(self), pins])


_SACREBLEU = ("sacrebleu", "portalocker", "regex", "tabulate", "colorama", "lxml")
_NO_WRITER = "TensorBoard's writer is imported for logs that are not written here; it would bring tensorboard"

PEERS = {
    "opennmt": Peer(
        name="OpenNMT-py",
        module="peers.opennmt",
        package="OpenNMT-py==3.5.1",
        needs=("pyonmttok==1.38.1", "configargparse==1.9.0", "pyyaml", "six", *_SACREBLEU),
        overrides=("torch <2.3 is asked for; the recurrent model runs on newer ones (deprecation warnings only)",),
        fixes=(
            Fix(
                "onmt/transforms/__init__.py",
                '        not file.startswith("_")\n',
                '        not file.startswith("_")\n'
                '        and file not in ("clean.py", "fuzzymatch.py", "inlinetags.py", "terminology.py")\n',
                "four data transforms that are not used import spacy, rapidfuzz, pyahocorasick and fasttext",
            ),
        ),
    ),
    "joeynmt": Peer(
        name="JoeyNMT",
        module="peers.joeynmt",
        package="joeynmt==2.3.0",
        needs=(
            *("pyyaml", "packaging", "importlib_metadata", "zipp", "tqdm", "sentencepiece", "subword-nmt"),
            *_SACREBLEU,
        ),
        overrides=("protobuf <3.21 is asked for, for tensorboard, which is not installed",),
        fixes=(
            Fix(
                "joeynmt/helpers.py",
                "from torch.utils.tensorboard import SummaryWriter\n",
                "SummaryWriter = None\n",
                _NO_WRITER,
            ),
            Fix(
                "joeynmt/training.py",
                "from torch.utils.tensorboard import SummaryWriter\n",
                "SummaryWriter = None\n",
                _NO_WRITER,
            ),
            Fix(
                "joeynmt/helpers.py",
                "from joeynmt.plotting import plot_heatmap\n",
                "plot_heatmap = None\n",
                "pictures of attention are not drawn here; they would bring matplotlib",
            ),
        ),
    ),
}


def default_directory() -> Path:
    """Where environments and trained states are kept: in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nmt-peers"


def environment(peer: str, directory: Path) -> Path:
    """The Python of a peer's environment below `directory`, which is made where it is not there or another is wanted.

    Raises UserError, one line, where pip fails or a fix does not fit what it installed.
    """
    wanted = PEERS[peer]
    home = directory / peer
    python, done = home / "bin" / "python", home / _DONE
    if done.is_file() and done.read_text(encoding="utf-8") == wanted.fingerprint and python.exists():
        return python
    home.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    log = directory / f"{peer}.install.log"
    log.write_text("", encoding="utf-8")
    print(f"installing {wanted.package} in {home}", file=sys.stderr)
    pip = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    pip += ["-c", str(CONSTRAINTS)] if CONSTRAINTS.is_file() else []
    _run([sys.executable, "-m", "venv", "--clear", str(home)], wanted, log)
    _run([*pip, f"torch=={_torch()}", "numpy"], wanted, log)
    _run([*pip, "--no-deps", *wanted.needs, wanted.package], wanted, log)
    for fix in wanted.fixes:
        _apply(fix, next(home.glob("lib/python*/site-packages")))
    done.write_text(wanted.fingerprint, encoding="utf-8")
    return python


def _torch() -> str:
    """The version of torch beside which we run, without its build."""
    from importlib.metadata import version

    return version("torch").partition("+")[0]


def _run(command: list[str], peer: Peer, log: Path) -> None:
    with log.open("a", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode == 0:
        return
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "ERROR" in line]
    raise UserError(
        f"cannot be installed: {lines[0].removeprefix('ERROR: ') if lines else f'exit code {done.returncode}'}",
        where=peer.package,
        hint=f"pip needs a package registry that it can reach; its output is in {log}",
    )


def _apply(fix: Fix, packages: Path) -> None:
    path = packages / fix.file
    text = path.read_text(encoding="utf-8")
    if text.count(fix.old) != 1:
        raise UserError(f"fix does not fit: its text stands there {text.count(fix.old)} times", where=str(path))
    path.write_text(text.replace(fix.old, fix.new), encoding="utf-8")
