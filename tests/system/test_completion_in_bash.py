"""Completion in a real bash: the function as other completions call it, and TAB as it is pressed."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="bash is not installed")
PROMPT = "ready> "


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `nmt` is this checkout's command line, and two runs are there."""
    folder = tmp_path_factory.mktemp("completion")
    command = folder / "bin" / "nmt"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nmt.cli "$@"\n')
    command.chmod(0o755)
    for seed in (1, 2):
        (folder / "runs" / "0123456789ab" / f"s{seed}").mkdir(parents=True)
        (folder / "runs" / "0123456789ab" / f"s{seed}" / "config.yaml").touch()
    path = os.pathsep.join([str(command.parent), os.environ["PATH"]])
    return os.environ | {
        "PATH": path, "PYTHONPATH": str(ROOT), "NMT_RUNS": str(folder / "runs"), "TERM": "dumb", "PS1": PROMPT,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["nmt", "tra"], ["train", "translate"]),
        (["nmt", "train", "experiment", "=", "t2_l"], ["t2_lstm"]),
        (["nmt", "train", "experiment=t2_l"], ["experiment=t2_lstm"]),  # where = is taken out of COMP_WORDBREAKS
        (["nmt", "train", "search.stop", "="], ["all", "bound", "first_n", "patience"]),
        (["nmt", "train", "seed", "=", "2", "model.decoder.l"], ["model.decoder.layers="]),
        (["nmt", "train", "nosuch", "=", "x"], []),
    ],
    ids=" ".join,
)
def test_words_as_bash_cuts_them(environment: dict[str, str], words: list[str], found: list[str]) -> None:
    script = f"""
eval "$(nmt completion bash)"
COMP_WORDS=({" ".join(words)}) COMP_CWORD={len(words) - 1}
_nmt
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run([str(BASH), "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == found


class Terminal:
    """An interactive bash with completion, whose `nmt` prints the words that it is called with."""

    def __init__(self, environment: dict[str, str]):
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execvpe(str(BASH), ["bash", "--norc", "--noprofile", "-i"], environment)
        self.until(PROMPT)
        self.write("bind 'set enable-bracketed-paste off'; bind 'set bell-style none'\n", PROMPT)
        self.write('eval "$(nmt completion bash)"; nmt() { printf \'<%s>\' "$@"; echo; }\n', PROMPT)

    def write(self, text: str, answer: str) -> str:
        """Type, and read until `answer` is on the screen."""
        os.write(self.descriptor, text.encode())
        return self.until(answer)

    def until(self, answer: str) -> str:
        """What appears on the screen up to `answer`."""
        shown, end = "", time.monotonic() + 300
        while answer not in shown:
            ready, _, _ = select.select([self.descriptor], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"'{answer}' did not appear: {shown!r}"
            shown += os.read(self.descriptor, 4096).decode()
        return shown

    def close(self) -> None:
        os.close(self.descriptor)
        os.waitpid(self.pid, 0)


@pytest.mark.exhaustive
def test_tab_is_pressed(environment: dict[str, str]) -> None:
    terminal = Terminal(environment)
    try:
        for typed, appears, called in (
            ("nmt transl\t", "translate ", "<translate>"),
            ("nmt train experiment=t2_l\t", "t2_lstm ", "<train><experiment=t2_lstm>"),
            (
                "nmt train experiment = x model.decoder.la\t",
                "layers=",
                "<train><experiment><=><x><model.decoder.layers=>",
            ),
            ("nmt train data.options= tok\t", "tokenizer", "<train><data.options=><tokenizer>"),
            (
                "nmt train -m experiment=baseline,t2_l\t",
                "baseline,t2_lstm ",
                "<train><-m><experiment=baseline,t2_lstm>",
            ),
            ("nmt sweep grid='model/bridge=zero,pro\t", "projection' ", "<sweep><grid=model/bridge=zero,projection>"),
            ("nmt sweep grid='model.att\t", "model.attention.", None),
            ("nmt average run=0\t", "0123456789ab/s", "<average><run=0123456789ab/s>"),
            ("cd / && nmt evaluate grid=table6\t", "table6_beam ", "<evaluate><grid=table6_beam>"),
        ):
            terminal.write(typed, appears)
            if called is None:
                terminal.write("\x15\n", f"\r\n{PROMPT}")  # not Ctrl-C, which readline may hold back until the next key
            else:
                assert called in terminal.write("\n", f"\r\n{PROMPT}")
    finally:
        terminal.close()
