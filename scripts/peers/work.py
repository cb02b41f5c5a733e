"""The work that all systems do: text in pieces, batches, sizes and settings, in one directory as plain files.

Our own preparation writes it (`peers.prepare`); a peer's driver reads it with the standard library alone. Tokens stand
as text with spaces between them, so that each system numbers them by its own vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

UNK, SOS, EOS = "<unk>", "<s>", "</s>"
PAD = "<blank>"  # ours has no row for padding, the peers need one


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every system is told.

    units: width of embeddings, decoder and attention, and of both directions of the encoder together.
    layers: of the encoder and of the decoder alike, since OpenNMT-py hands the state over layer by layer.
    start: half-width of the uniform distribution that all parameters are drawn from.
    tied: whether both embeddings and the output layer are one table.
    max_length: most output tokens, the end of the sentence included.
    overrides: of our own system's configuration, which repeats the other fields in its words.
    """

    units: int
    layers: int
    dropout: float
    learning_rate: float
    clip_norm: float
    start: float
    tied: bool
    max_length: int
    seed: int
    overrides: list[str]


@dataclass(frozen=True)
class Work:
    """A directory of work.

    vocabulary: tokens in the order of our rows, the specials in front.
    steps: for each training step the numbers of its sentences, in our order.
    """

    directory: Path
    settings: Settings
    vocabulary: list[str]
    source: list[str]
    target: list[str]
    test: list[str]
    steps: list[list[int]]

    def pairs(self, step: int) -> list[tuple[list[str], list[str]]]:
        """The tokens of both sides of each sentence of `step`, counted from 1."""
        return [(self.source[number].split(" "), self.target[number].split(" ")) for number in self.steps[step - 1]]

    def save(self) -> None:
        """Write it, `work.json` last."""
        for name in ("source", "target", "test"):
            text = "".join(f"{line}\n" for line in getattr(self, name))
            (self.directory / f"{name}.txt").write_text(text, encoding="utf-8")
        about = {"settings": asdict(self.settings), "vocabulary": self.vocabulary, "steps": self.steps}
        (self.directory / "work.json").write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")


def read_work(directory: Path) -> Work:
    """The work in `directory`."""
    about = json.loads((directory / "work.json").read_text(encoding="utf-8"))
    source, target, test = (
        (directory / f"{name}.txt").read_text(encoding="utf-8").split("\n")[:-1]
        for name in ("source", "target", "test")
    )
    return Work(directory, Settings(**about["settings"]), about["vocabulary"], source, target, test, about["steps"])
