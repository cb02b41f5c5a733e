"""Evaluation during training: free-running decoding of the validation split, teacher-forced perplexity beside it."""

from __future__ import annotations

from typing import Any

import torch

from nmt.config.schema import RunConfig
from nmt.data.prepare import PreparedData
from nmt.evaluation.catalogue import decoded_during_training, key
from nmt.evaluation.decode import decode, teacher_forced
from nmt.evaluation.metrics import score
from nmt.evaluation.postprocess import Postprocessor
from nmt.models.seq2seq import Seq2Seq
from nmt.search.distant import DistantModel
from nmt.training.workload import precision_context


class Validation:
    """The validation split of a run, scored with `validation.search`."""

    def __init__(self, config: RunConfig, prepared: PreparedData, device: str):
        self.config, self.prepared, self.device = config, prepared, device
        count = len(prepared.validation.source)
        self.count = min(config.validation.max_sentences or count, count)
        tokenizers = (prepared.source_tokenizer, prepared.target_tokenizer)
        self.post = Postprocessor(*tokenizers, config.data, config.validation.search)

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        """Scores by their names in records: the quick ones and that which chooses the checkpoint.

        Beside `val/decode/<metric>` stand `val/teacher_forced/log_perplexity`, in nats per token, and
        `val/teacher_forced/token_accuracy`. Where the parameters lie in other processes, these compute.
        """
        split, config = self.prepared.validation, self.config
        with precision_context(config, self.device):
            forced = teacher_forced(model, split, self.device, limit=self.count)
        return self._decoded(model) | {f"val/teacher_forced/{name}": value for name, value in forced._asdict().items()}

    def _decoded(self, model: Any) -> dict[str, float]:
        split, config = self.prepared.validation, self.config
        searched: Any = model if isinstance(model, Seq2Seq) else DistantModel(model)
        with precision_context(config, self.device, config.validation.search):
            n_best = decode(
                searched,
                split.source[: self.count],
                config.validation.search,
                self.device,
                attention=self.post.needs_attention,
            )
        hypotheses = [
            self.post.text(best, line) for (best, *_), line in zip(n_best, split.source_text[: self.count], strict=True)
        ]
        names = decoded_during_training(config.validation.metric)
        scores = score(hypotheses, split.target_text[: self.count], config.data.target_language, names)
        return {key("val", name): float(scores[name]) for name in names}
