"""The figures of a comparison as Markdown, and as one JSON object with `ratios`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.machine import Spread
from bench.tables import table

from peers.install import PEERS
from peers.measure import CHUNK, OURS, Decoding, DecodingRounds, TrainingRounds, clock

TRAINED_BLEU = 10.0  # below it outputs say little about searches of trained models

Ratios = dict[str, dict[str, float]]

_UNTRAINED_NOTE = (
    "BLEU is low: these models are hardly trained, their outputs differ in length, and sentences/s cannot be compared. "
    "Give train_steps a larger number."
)
_PARAMETERS_NOTE = (
    "The peers have a row for padding in each table and in the output layer. Our attention projects keys and queries, "
    "with biases; the peers' projects one of them, without. JoeyNMT's output layer has no bias, OpenNMT-py's mixing "
    "layer neither."
)


@dataclass(frozen=True)
class Comparison:
    """One shape with one number of threads.

    about: what each driver said of itself. curves: losses of every `CHUNK` steps of training. useful: operations of the
    timed training steps. needed, bleu: operations that each decoding's outputs need, and their score, by `needed_key`.
    """

    units: int
    threads: int
    tied: bool
    train_steps: int
    about: dict[str, dict[str, Any]]
    curves: dict[str, list[float]]
    training: TrainingRounds
    useful: float
    decoding: list[DecodingRounds]
    needed: dict[str, float]
    bleu: dict[str, float]

    @property
    def ratios(self) -> Ratios:
        """Our speed over each peer's, by wall and by processor time: medians of the rounds' own ratios.

        Of decodings also by needed hypothesis-step, which evens out outputs of different lengths; of memory ours over
        the peer's.
        """
        found: Ratios = {}
        mine, theirs = ([arm for arm in self.training.arms if arm.startswith(OURS) is own] for own in (True, False))
        for name, peer in ((name, peer) for name in mine for peer in theirs):
            found[f"training {self._title}: {name} / {peer}"] = {
                **_speeds(self.training.arms[name], self.training.arms[peer]),
                "memory": self._growth(name) / self._growth(peer),
            }
            for rounds in self.decoding:
                # A peer may have two ways; the faster one stands for it.
                other = min(rounds.arms[peer], key=lambda arm: statistics.median(arm.seconds))
                for own in rounds.arms[name]:
                    speeds = _speeds(own, other)
                    even = own.needed(rounds.beam) / other.needed(rounds.beam)
                    found[f"beam {rounds.beam} {self._title}: {name}, {own.rule} / {peer}, {other.rule}"] = {
                        **speeds,
                        **{f"{name}_by_step": ratio * even for name, ratio in speeds.items()},
                        "memory": _trial_growth(own) / max(_trial_growth(other), 1),
                    }
        return found

    def as_json(self) -> dict[str, Any]:
        """Everything but the outputs."""
        plain = asdict(self)
        for rounds in plain["decoding"]:
            for arms in rounds["arms"].values():
                for arm in arms:
                    del arm["outputs"]
        return {**plain, "ratios": self.ratios}

    def markdown(self) -> str:
        """Tables of training, losses, parameters and decoding."""
        parts = [f"## {self._title}", self._training_table(), self._loss_table(), self._model_table()]
        return "\n\n".join([*parts, *(self._decoding_table(rounds) for rounds in self.decoding)])

    @property
    def _title(self) -> str:
        return f"{self.units} units, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def _growth(self, arm: str) -> int:
        return int(self.training.arms[arm].peak - self.about[arm]["resident"]["loaded"])

    def _achieved(self, operations: float, seconds: Sequence[float], rates: Sequence[float]) -> str:
        """Operations a round over time and the product rate of the same round, the median of the rounds."""
        shares = [operations / time / rate for time, rate in zip(seconds, rates, strict=True)]
        return f"{statistics.median(shares):.2f}"

    def _training_table(self) -> str:
        rounds, count = self.training, len(self.training.rates)
        floor = statistics.median(rounds.rates) * rounds.tokens / self.useful
        title = (
            f"Training: {rounds.tokens:,} target tokens in {count} rounds, {self.useful / rounds.tokens / 1e6:.1f} "
            f"useful MFLOP a token; fp32 products at {_spread(rounds.rates, 1e9)} GFLOP/s, so the floor is "
            f"{floor:,.0f} tokens/s; load at most {rounds.load:.1f}. Memory in MiB."
        )
        rows = []
        for name, arm in rounds.arms.items():
            resident = self.about[name]["resident"]
            memory = [self._growth(name), arm.peak - resident["built"], arm.peak]
            speeds = [rounds.tokens / count / seconds for seconds in arm.seconds]
            by_processor = statistics.median(rounds.tokens / count / seconds for seconds in arm.cpu_seconds)
            achieved = self._achieved(self.useful / count, getattr(arm, clock(self.threads)), rounds.rates)
            cells = [name, _spread(speeds), f"{by_processor:,.0f}", achieved]
            rows.append([*cells, *(f"{number / 2**20:,.0f}" for number in memory)])
        head = ["system", "target tokens/s (spread)", "by processor time", "achieved ÷ floor"]
        return f"{title}\n\n{table([*head, 'memory over imports', 'over the built model', 'in all'], rows)}"

    def _loss_table(self) -> str:
        chunks = max((len(curve) for curve in self.curves.values()), default=0)
        shown = sorted({min(chunks, count) for count in (1, 100 // CHUNK, 200 // CHUNK, chunks) if chunks})
        head = ["system", *(f"to step {min(count * CHUNK, self.train_steps)}" for count in shown), "when timed"]
        rows = [
            [name, *(f"{self.curves[name][count - 1]:.3f}" for count in shown), f"{arm.loss:.3f}"]
            for name, arm in self.training.arms.items()
        ]
        return f"Losses of the same steps, nats a target token, means of {CHUNK} steps.\n\n{table(head, rows)}"

    def _model_table(self) -> str:
        rows = [
            [name, f"{sum(about['parameters'].values()):,}", _counts(about["parameters"])]
            for name, about in self.about.items()
        ]
        return f"{table(['system', 'parameters', 'of these'], rows)}\n\n{_PARAMETERS_NOTE}"

    def _decoding_table(self, rounds: DecodingRounds) -> str:
        title = f"Beam {rounds.beam}: products at {_spread(rounds.rates, 1e9)} GFLOP/s, load at most {rounds.load:.1f}."
        rows = [
            [name, *self._decoding_cells(rounds, name, arm)] for name, found in rounds.arms.items() for arm in found
        ]
        head = ["system", "a search ends when", "batch", "sentences/s (spread)", "by processor time"]
        head += ["achieved ÷ floor", "µs a needed step", "rows ÷ needed", "tokens a sentence", "BLEU (lc)"]
        parts = [title, table([*head, "memory, MiB"], rows)]
        scores = [
            self.bleu[needed_key(rounds.beam, name, arm.rule)] for name, found in rounds.arms.items() for arm in found
        ]
        if min(scores) < TRAINED_BLEU:
            parts.append(_UNTRAINED_NOTE)
        return "\n\n".join(parts)

    def _decoding_cells(self, rounds: DecodingRounds, name: str, arm: Decoding) -> list[str]:
        sentences, needed = len(arm.lengths), arm.needed(rounds.beam)
        key = needed_key(rounds.beam, name, arm.rule)
        fair = getattr(arm, clock(self.threads))
        return [
            arm.rule,
            str(arm.batch_size),
            _spread([sentences / seconds for seconds in arm.seconds], digits=1),
            f"{statistics.median(sentences / seconds for seconds in arm.cpu_seconds):.1f}",
            self._achieved(self.needed[key], fair, rounds.rates),
            f"{1e6 * statistics.median(fair) / needed:.1f}",
            f"{arm.rows / needed:.2f}",
            f"{sum(arm.lengths) / sentences:.1f}",
            f"{self.bleu[key]:.1f}",
            f"{_trial_growth(arm) / 2**20:,.0f}",
        ]


def needed_key(beam: int, arm: str, rule: str) -> str:
    """The key of a decoding in `Comparison.needed` and `Comparison.bleu`."""
    return f"beam {beam}, {arm}, {rule}"


def ratio_table(ratios: Ratios) -> str:
    """Ratios as a Markdown table."""
    columns = ["wall", "cpu", "wall_by_step", "cpu_by_step", "memory"]
    rows = [
        [key, *(f"{each[column]:.2f}" if column in each else "" for column in columns)] for key, each in ratios.items()
    ]
    head = ["speed of ours / the peer's", "wall time", "processor time"]
    return table([*head, "wall, by needed step", "processor, by needed step", "memory, ours / the peer's"], rows)


def changes(peers: Sequence[str]) -> str:
    """What was changed of the peers, as a Markdown list."""
    lines = []
    for peer in (PEERS[name] for name in peers):
        lines += [f"- {peer.package}: {override}" for override in peer.overrides]
        lines += [f"- {peer.package}, `{fix.file}`: {fix.reason}" for fix in peer.fixes]
    return "\n".join(lines) or "Nothing."


def _speeds(ours: Any, theirs: Any) -> dict[str, float]:
    return {
        name: statistics.median(
            their / our for our, their in zip(getattr(ours, field), getattr(theirs, field), strict=True)
        )
        for name, field in (("wall", "seconds"), ("cpu", "cpu_seconds"))
    }


def _trial_growth(arm: Decoding) -> int:
    return arm.tried[arm.batch_size].growth


def _spread(numbers: Sequence[float], unit: float = 1.0, digits: int = 0) -> str:
    return Spread.of([number / unit for number in numbers]).shown(f"{{:,.{digits}f}}".format)


def _counts(parameters: dict[str, int]) -> str:
    return ", ".join(f"{module} {count:,}" for module, count in parameters.items())
