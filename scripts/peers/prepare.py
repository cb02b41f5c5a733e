"""From our own preparation of a corpus to the work that every system does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peers.work import EOS, SOS, UNK, Settings, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from nmt.config.schema import RunConfig
    from nmt.data.prepare import PreparedData
    from nmt.data.tokenizer import Tokenizer

LAYERS, DROPOUT, LEARNING_RATE, CLIP_NORM, START = 2, 0.2, 1e-3, 5.0, 0.1


@dataclass(frozen=True)
class Prepared:
    """The work, our configuration of it, and our preparation that it was made of."""

    work: Work
    config: RunConfig
    data: PreparedData

    @property
    def test_lengths(self) -> list[int]:
        """Source tokens of each test sentence that is decoded, EOS counted."""
        return [len(self.data.test.source[number]) + 1 for number in range(len(self.work.test))]

    def lengths(self, step: int) -> list[tuple[int, int]]:
        """Source and target tokens of each pair of a training step, EOS counted."""
        train = self.data.train
        return [(len(train.source[n]) + 1, len(train.target[n]) + 1) for n in self.work.steps[step - 1]]

    def bleu(self, outputs: Sequence[Sequence[str]]) -> float:
        """Lower-cased BLEU of the tokens of each output against the test text's references."""
        from nmt.data.tokenizer import to_text
        from nmt.evaluation.metrics import score

        tokenizer, data = self.data.target_tokenizer, self.config.data
        numbers = {token: number for number, token in enumerate(self.work.vocabulary)}
        texts = [
            to_text(tokenizer, [numbers.get(token, numbers[UNK]) for token in output], data, data.target_language)
            for output in outputs
        ]
        references = list(self.data.test.target_text)[: len(outputs)]
        return float(score(texts, references, data.target_language, ["bleu_lc"])["bleu_lc"])


def settings(units: int, *, tied: bool, max_length: int, seed: int, words: Sequence[str]) -> Settings:
    """The settings of a shape; `words` are further overrides of our configuration, such as those of the corpus."""
    table = str(tied).lower()
    overrides = [
        "tokenizer.joint=true",
        *words,
        f"seed={seed}",
        "batch.size=128",
        "model/encoder=stacked_bidirectional",
        f"model.encoder={{units: {units // 2}, layers: {LAYERS}}}",
        f"model.encoder.cell={{kind: gru, family: torch, dropout_input: {DROPOUT}, forget_bias: 0.0}}",
        "model/decoder=recurrent",
        f"model.decoder={{units: {units}, layers: {LAYERS}}}",
        f"model.decoder.cell={{kind: gru, family: torch, dropout_input: {DROPOUT}, forget_bias: 0.0}}",
        "model/attention=multiplicative",
        f"model.attention.units={units}",
        "model/bridge=zero",
        f"model.embedding={{units: {units}, share: {table}, tie_output: {table}}}",
        f"model.dropout_mix={DROPOUT}",
        f"model.initialisation={{name: uniform, scale: {START}}}",
        "optimizer=adam",
        f"optimizer={{learning_rate: {LEARNING_RATE}, clip_norm: {CLIP_NORM}, epsilon_form: torch}}",
        "schedule=constant",
        "loss.label_smoothing=0",
        "device=cpu",
    ]
    return Settings(
        units=units,
        layers=LAYERS,
        dropout=DROPOUT,
        learning_rate=LEARNING_RATE,
        clip_norm=CLIP_NORM,
        start=START,
        tied=tied,
        max_length=max_length,
        seed=seed,
        overrides=overrides,
    )


def prepare_work(directory: Path, chosen: Settings, steps: int, cache: Path, sentences: int = 0) -> Prepared:
    """Prepare the corpus, and write the work of `steps` training steps to `directory`.

    Of the test text the first `sentences` are decoded; with 0 all.

    Raises UserError where the configuration or the corpus is at fault.
    """
    from dataclasses import replace

    from nmt.config import compose
    from nmt.data.batching import Sampler
    from nmt.data.prepare import prepare

    chosen = replace(chosen, overrides=[*chosen.overrides, f"paths.cache={cache}"])
    config = compose(chosen.overrides)
    data = prepare(config)
    sampler = Sampler(data.train.source_lengths, data.train.target_lengths, config.batch, config.seed)
    tokenizer = data.source_tokenizer
    vocabulary = [tokenizer.token(number) for number in range(tokenizer.size)]
    if vocabulary[:3] != [UNK, SOS, EOS]:
        raise ValueError(f"the vocabulary begins with {vocabulary[:3]}")
    directory.mkdir(parents=True, exist_ok=True)
    work = Work(
        directory,
        chosen,
        vocabulary,
        _lines(tokenizer, data.train.source),
        _lines(data.target_tokenizer, data.train.target),
        _lines(tokenizer, data.test.source)[: sentences or None],
        [[int(number) for slot in sampler.slots(step) for number in slot] for step in range(1, steps + 1)],
    )
    work.save()
    return Prepared(work, config, data)


def _lines(tokenizer: Tokenizer, sentences: Sequence[np.ndarray]) -> list[str]:
    return [" ".join(tokenizer.token(int(number)) for number in sentence) for sentence in sentences]
