"""Teacher-forced scores by stages that run one after the other: the bits of the model in one piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from nmt.config import compose
from nmt.data.prepare import EncodedText
from nmt.data.vocabulary import EOS
from nmt.evaluation.decode import teacher_forced
from nmt.training.workload import TranslationWorkload

SMALL = ["scale=smoke", "data=toy_copy", "data.options.vocabulary=60", "data.options.train_size=40", "tracking=none"]
SIZES = ["model.embedding.units=16", "model.encoder.units=16", "model.decoder.units=16"]


class InStages(torch.nn.Module):
    """Asks the fine stages, each of which has copies of what it is handed and nothing else."""

    def __init__(self, workload: TranslationWorkload):
        super().__init__()
        self.workload, self.model = workload, workload.build_model(fine=True)
        self.batches = 0

    def scores(self, batches: Iterator[Mapping[str, Tensor]]) -> Iterator[Tensor]:
        for batch in batches:
            self.batches += 1
            slot = self.workload.scored_slot(batch)
            carried: dict[str, Tensor] = {}
            with torch.inference_mode(), self.workload.autocast():
                for stage in self.workload.stages(self.model, fine=True):
                    carried = {name: one.contiguous().clone() for name, one in stage(slot, carried).items()}
            yield carried["loss"]


@pytest.mark.parametrize("words", [
    ["model=attentional", *SIZES, "loss.vocab_chunks=4", "loss.label_smoothing=0.1"],
    ["model=attentional", *SIZES, "loss.vocab_chunks=1"],
    ["model=attentional", *SIZES, "model.encoder.cell.kind=lstm", "model.decoder.cell.kind=lstm",
     "model.encoder.reverse_source=true", "loss.vocab_chunks=3"],
    ["model=attentional", *SIZES, "model/attention=none_state", "model/bridge=projection", "loss.vocab_chunks=2"],
    ["model=transformer", *SIZES, "model.encoder.layers=2", "model.decoder.layers=2", "loss.vocab_chunks=4"],
    ["model=transformer", *SIZES, "loss.vocab_chunks=2", "training.precision=bf16"],
    ["model=attentional", *SIZES, "model.embedding.tie_output=true"],
])  # fmt: skip
def test_they_are_those_of_the_whole_model(words: list[str]) -> None:
    workload = TranslationWorkload(compose([*SMALL, *words]), "cpu")
    text = workload.prepared.train
    some = EncodedText(list(text.source)[:40], list(text.target)[:40])
    whole, in_stages = workload.build_model(), InStages(workload)
    # The end of a sentence is the first choice then at least where it is due.
    bias = torch.randn(len(whole.output.bias), generator=torch.Generator().manual_seed(1)) / 2
    bias[EOS] = 3.0
    with torch.no_grad():
        whole.output.bias.copy_(bias)
        for name, own in in_stages.model.named_parameters():
            if name.startswith("output.bias"):
                chunk = name.removeprefix("output.bias").removeprefix(".")
                own.copy_(bias[in_stages.model.output.rows[int(chunk)]] if chunk else bias)
    with workload.autocast():
        wanted = teacher_forced(whole, some, batch_size=16)
        found = teacher_forced(in_stages, some, batch_size=16)
    assert found == wanted
    assert in_stages.batches > 1
    assert 0.0 < found.token_accuracy < 100.0
