"""How the coordinator talks with a driver: one JSON object a line, a question on stdin, its answer on stdout.

    {"do": "train", "first": 1, "count": 4} -> {"seconds": 6.9, "cpu_seconds": 6.9, "tokens": 6811, "loss": 7.1, …}

A driver computes only while it is asked, so that systems can be timed in turn. What libraries print goes to stderr.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from peers.work import Work, read_work


@dataclass(frozen=True)
class Launch:
    """What a driver is started with, as the words of its command line: the work's directory, threads, precision."""

    work: Path
    threads: int
    precision: str

    @classmethod
    def of(cls, words: list[str]) -> Launch:
        """From the command line."""
        return cls(Path(words[0]), int(words[1]), words[2])


@dataclass(frozen=True)
class Decoded:
    """What a decoding gave.

    outputs: the tokens of each test sentence in the order of the text, without specials.
    rows: hypotheses that went through the decoder, over all its steps: dead, finished and filling ones too.
    """

    outputs: list[list[str]]
    rows: int


class System(ABC):
    """One toolkit as the benchmark drives it; building a subclass imports the toolkit and reads nothing yet."""

    @abstractmethod
    def build(self, work: Work, launch: Launch) -> None:
        """Make model, loss and optimizer, ready for the first step."""

    @abstractmethod
    def parameters(self) -> dict[str, int]:
        """Parameters by module."""

    @abstractmethod
    def batch(self, step: int) -> Any:
        """The batch of `step` in the toolkit's own form; its making is not timed."""

    @abstractmethod
    def train(self, batch: Any) -> tuple[float, int]:
        """One update of the parameters; the sum of the losses in nats, and the target tokens, EOS counted."""

    @abstractmethod
    def decode(self, beam: int, batch_size: int, rule: str) -> Decoded:
        """Translate the test text; `rule` is one of `rules`."""

    @abstractmethod
    def rules(self, beam: int) -> list[str]:
        """Ways of ending a search that the toolkit has for this beam."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the trained parameters."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Take up what `save` wrote."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the toolkit and of torch."""


def serve(make: Callable[[], System], words: list[str]) -> None:
    """Answer questions until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers
    try:
        driver = _Driver(make(), Launch.of(words))
    except Exception as error:
        _fail(answers, error)
        return
    _answer(answers, driver.about)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = getattr(driver, f"do_{question.pop('do')}")(**question)
        except Exception as error:
            _fail(answers, error)
            return
        _answer(answers, answer)


class _Driver:
    """The answers to each question; a method `do_x` for `{"do": "x", …}`."""

    def __init__(self, system: System, launch: Launch):
        import torch

        torch.set_num_threads(launch.threads)
        torch.set_float32_matmul_precision("highest")
        self._system = system
        work = read_work(launch.work)
        loaded = resident_bytes()
        system.build(work, launch)
        self._resident = {"loaded": loaded, "built": resident_bytes()}
        self.about = {
            "versions": system.versions(),
            "parameters": system.parameters(),
            "threads": torch.get_num_threads(),
            "resident": self._resident,
        }

    def do_train(self, first: int, count: int) -> dict[str, Any]:
        """Steps `first` to `first + count - 1`."""
        batches = [self._system.batch(step) for step in range(first, first + count)]
        forget_peak()
        losses, tokens = 0.0, 0
        with Stopwatch() as watch:
            for batch in batches:
                loss, count_of_batch = self._system.train(batch)
                losses, tokens = losses + loss, tokens + count_of_batch
        return {**asdict(watch), "tokens": tokens, "loss": losses / tokens, "peak": peak_bytes()}

    def do_decode(self, beam: int, batch_size: int, rule: str, trim: bool = False) -> dict[str, Any]:
        """A decoding of the whole test text; `trim` gives free memory back before, so that all it takes is seen."""
        if trim:
            ctypes.CDLL(None).malloc_trim(0)
        before = resident_bytes()
        forget_peak()
        with Stopwatch() as watch:
            decoded = self._system.decode(beam, batch_size, rule)
        return {**asdict(watch), **asdict(decoded), "peak": peak_bytes(), "resident": before}

    def do_rules(self, beam: int) -> list[str]:
        """See `System.rules`."""
        return self._system.rules(beam)

    def do_save(self, path: str) -> None:
        """See `System.save`."""
        self._system.save(Path(path))

    def do_load(self, path: str) -> None:
        """See `System.load`."""
        self._system.load(Path(path))
        ctypes.CDLL(None).malloc_trim(0)  # what reading took is not the system's memory

    def do_product(self, size: int) -> float:
        """FLOP/s of a product of two square fp32 matrices of `size` rows, the best of three.

        With one thread by processor time, which other processes disturb least."""
        import torch

        one, other = torch.randn(size, size), torch.randn(size, size)
        one @ other
        seconds = []
        for _ in range(3):
            with Stopwatch() as watch:
                one @ other
            seconds.append(watch.cpu_seconds if torch.get_num_threads() == 1 else watch.seconds)
        return 2 * size**3 / min(seconds)


@dataclass
class Stopwatch:
    """Wall and processor time of a `with` block, the latter of all threads together."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __enter__(self) -> Stopwatch:
        self.seconds, self.cpu_seconds = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter() - self.seconds, time.process_time() - self.cpu_seconds


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most that `resident_bytes` has been since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak start from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")


def _answer(stream: TextIO, answer: Any) -> None:
    stream.write(json.dumps({"answer": answer}) + "\n")
    stream.flush()


def _fail(stream: TextIO, error: Exception) -> None:
    traceback.print_exception(error)
    stream.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
    stream.flush()
