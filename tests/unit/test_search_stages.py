"""Searches by stages that keep nothing but their own: hypotheses, scores and attention of the model in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nmt.config import compose
from nmt.data.vocabulary import EOS
from nmt.errors import UserError
from nmt.evaluation.decode import decode
from nmt.models.transformer_decoder import TransformerDecoder
from nmt.search.distant import DistantModel
from nmt.training.workload import TranslationWorkload

SMALL = ["scale=smoke", "data=toy_copy", "data.options.vocabulary=60", "data.options.train_size=40", "tracking=none"]
SIZES = ["model.embedding.units=16", "model.encoder.units=16", "model.decoder.units=16"]
DEEP = ["model.encoder.layers=2", "model.decoder.layers=2"]
FACTOR = 4.0  # of first parameters, so that hypotheses differ
END = 3.0  # bias of the end, so that their lengths differ, too
STATE_ALONE = ["model/attention=none_state", "model/bridge=projection"]
GRU = ["model=attentional", *SIZES]


class InStages:
    """Takes calls through the stages, each of which has copies of what it is handed and nothing else."""

    def __init__(self, workload: TranslationWorkload):
        self.workload, self.outline = workload, workload.build_model(fine=True)
        self.texts = self.sentences = 0

    def begin_search(self) -> None:
        self.stages = self.workload.search_stages(self.outline)
        self.texts += 1

    def ask(self, call: str, given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self.sentences += len(given["source"]) if call == "encode" else 0
        carried: dict[str, Tensor] = {}
        with torch.inference_mode():
            for stage in self.stages:
                carried = {name: one.contiguous().clone() for name, one in stage(call, given, carried).items()}
        return carried


class OtherSteps(TransformerDecoder):
    """A decoder in parts whose steps are not those of its parts."""

    def step(self, *arguments: Any) -> Any:
        raise AssertionError


def test_a_decoder_in_parts_of_which_no_step_is_known_is_refused() -> None:
    workload = TranslationWorkload(compose([*SMALL, "model=transformer", *SIZES]), "cpu")
    model = workload.outline()
    assert len(workload.search_stages(model)) == len(workload.stages(model, fine=True))
    model.decoder.__class__ = OtherSteps
    with pytest.raises(UserError, match=r"stage 'decoder\.0' does not say what it does in a search"):
        workload.search_stages(model)


def rarely(*words: str) -> Any:
    """A case for exhaustive runs."""
    return pytest.param(list(words), marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("words", [
    [*GRU, "model/attention=additive", "loss.vocab_chunks=4"],
    ["model=transformer", *SIZES, *DEEP, "loss.vocab_chunks=4"],
    [*GRU, *DEEP, *STATE_ALONE, "loss.vocab_chunks=2"],
    [*GRU, "training.scheduled_sampling.form=embedding"],
    rarely(*GRU, *DEEP, "model.embedding.tie_output=true"),
    rarely(*GRU, "model.encoder.cell.kind=lstm", "model.decoder.cell.kind=lstm", "model.encoder.reverse_source=true",
           "loss.vocab_chunks=3"),
    rarely(*GRU, "loss.vocab_chunks=4"),
    rarely(*GRU, "model/attention=dot", "model.encoder.units=8"),
    rarely(*GRU, *DEEP, "model.decoder.residual.combiner=add", "loss.vocab_chunks=2"),
    rarely(*GRU, *DEEP, "model.decoder.residual.combiner=add", "model.decoder.residual.dense=true"),
    rarely(*GRU, *DEEP, *STATE_ALONE, "model.decoder.residual.combiner=add"),
    rarely(*GRU, "model/attention=none_input", "model/bridge=concat_input"),
    rarely("model=transformer", *SIZES, *DEEP, "model.embedding.tie_output=true"),
    rarely("model=transformer", *SIZES, *DEEP, "training.precision=bf16"),
    rarely(*GRU, "model.embedding.tie_output=true", "training.precision=bf16"),
])  # fmt: skip
def test_they_find_what_the_whole_model_finds(words: list[str]) -> None:
    workload = TranslationWorkload(compose([*SMALL, *words]), "cpu")
    whole, in_stages = workload.build_model(), InStages(workload)
    with torch.no_grad():
        for model in (whole, in_stages.outline):
            for parameter in model.parameters():
                parameter.mul_(FACTOR)
            next(one for name, one in model.named_parameters() if name.startswith("output.bias"))[EOS] = END
    sentences = list(workload.prepared.train.source)[:24]
    search = replace(workload.config.validation.search, batch_size=16, max_length=12)
    lengths: set[int] = set()
    for beam, penalty in ((1, 0.0), (4, 0.6)):
        own = replace(search, beam=beam, length_penalty=penalty, n_best=beam)
        with workload.autocast():
            wanted = decode(whole, sentences, own, attention=True)
            found = decode(DistantModel(in_stages), sentences, own, attention=True)
        assert found == wanted
        for ours, theirs in zip(found, wanted, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert one.attention is not None
                assert other.attention is not None
                assert torch.equal(one.attention, other.attention)
        lengths |= {len(one.tokens) for hypotheses in wanted for one in hypotheses}
    assert in_stages.texts == 2
    assert in_stages.sentences > len(sentences)  # filled up with copies
    assert len(lengths) > 1
