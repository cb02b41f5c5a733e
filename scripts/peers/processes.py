"""A driver process as the coordinator sees it."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from nmt.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[1]


class Driver:
    """A process that runs one system on one work directory; it computes only while a question is open.

    Parameters
    ----------
    name: of the arm, for tables and messages.
    python, module: what runs it: an interpreter, and a module with `peers.protocol.serve` at its end.
    log: the file that everything else it prints goes to.

    Raises UserError where the driver fails, with its own words.
    """

    def __init__(self, name: str, python: Path, module: str, work: Path, threads: int, precision: str, log: Path):
        self.name, self._log = name, log
        count = str(threads)
        environment = os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONWARNINGS": "ignore"}
        environment.pop("MKL_CBWR", None)  # ours sets it itself where it needs it
        with log.open("w", encoding="utf-8") as stream:
            self._process = subprocess.Popen(
                [str(python), "-m", module, str(work), count, precision],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                encoding="utf-8",
                cwd=SCRIPTS,
                env=environment,
            )
        self.about: dict[str, Any] = self._answer()

    def ask(self, do: str, **question: Any) -> Any:
        """Ask, and wait for the answer; see `peers.protocol`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and what it said last is read below
            self._process.stdin.write(json.dumps({"do": do, **question}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Let the process end, or end it."""
        with suppress(BrokenPipeError):
            self._process.communicate(timeout=None)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise UserError(f"ended with code {self._process.returncode}", where=self.name, hint=f"see {self._log}")
        said = json.loads(line)
        if "error" in said:
            self.close()
            raise UserError(f"failed: {said['error']}", where=self.name, hint=f"see {self._log}")
        return said["answer"]
