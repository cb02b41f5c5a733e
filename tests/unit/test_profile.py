"""What `nmt profile` counts and measures, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nmt.config import compose
from nmt.config.schema import RunConfig
from nmt.data.prepare import prepare
from nmt.models.parameters import planned_parameters
from nmt.profile import ProfileOptions, profile
from nmt.profiling.costs import Shape, costs
from nmt.profiling.counting import Allocations
from nmt.profiling.phases import backward_of, measure
from nmt.profiling.report import report
from nmt.training.workload import TranslationWorkload

TINY = [
    "scale=smoke", "tracking=none", "device=cpu", "threads=1", "data=toy_copy", "tokenizer.vocab_size=30",
    "data.options.train_size=60", "data.options.validation_size=4", "data.options.test_size=4",
    "data.options.min_length=6", "data.options.max_length=6", "batch.size=10",
]  # fmt: skip
SMALL = ["model.embedding.units=3", "model.encoder.units=5", "model.decoder.units=7", "model.decoder.layers=1",
         "model.attention.units=4", "search.beam=2", "search.n_best=1"]  # fmt: skip

STAGES = ("encoder", "decoder", "output")


def tiny(tmp_path: Path, *overrides: str) -> RunConfig:
    return compose([*TINY, f"paths.runs={tmp_path}", *overrides])


def test_parameters_sum_to_the_planned_count(tmp_path: Path) -> None:
    config = tiny(tmp_path, "experiment=t2_lstm")
    found = costs(config, Shape(1, 2, 2), (30, 30))
    assert sum(found.parameters.values()) == planned_parameters(config)


def test_operations_by_hand(tmp_path: Path) -> None:
    """2 sentences of 4 and 6 tokens through a GRU model of 3 embedding, 2 x 5 encoder, 7 decoder and 4 attention units.

    A GRU cell of u units on x inputs multiplies [x; h] with 3u columns; then come query, v·tanh(...) over the source,
    context and mix. Twice for multiplication and addition.
    """
    e, u, d, a, c, v = 3, 5, 7, 4, 10, 30
    sentences, source, target, beam = 2, 4, 6, 2
    config = tiny(tmp_path, *SMALL, "experiment=t5_add_512", "model/bridge=zero")
    found = costs(config, Shape(sentences, source, target), (v, v))

    encoder = 2 * sentences * source * 2 * (e + u) * 3 * u
    keys = 2 * sentences * source * c * a
    decoder_step = (e + c + d) * 3 * d + d * a + source * a + source * c + (d + c) * d
    decoder = keys + 2 * sentences * target * decoder_step
    output = 2 * sentences * target * d * v
    assert found.forward == {"encoder": encoder, "decoder": decoder, "output": output}

    # Each product has two in its backward pass, for either factor; but nobody asks for the gradient of the zero states,
    # which the gates multiply, and of the zero context that the first step is fed.
    zero_states = 2 * sentences * (2 * u * 2 * u + d * 2 * d)
    first_context = 2 * sentences * c * 3 * d
    assert found.backward == 2 * (encoder + decoder + output) - zero_states - first_context
    step = 2 * beam * (decoder_step + d * v)
    assert found.decoding == (encoder + keys) // sentences + target * step


def test_a_step_that_grows_is_counted_to_the_end(tmp_path: Path) -> None:
    config = tiny(tmp_path, "model=transformer", "model.encoder.layers=1", "model.decoder.layers=1", "search.beam=3")
    shape = Shape(1, 5, 9)
    found = costs(config, shape, (30, 30)).decoding

    model = TranslationWorkload(config, "cpu", prepare(config)).build_model()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoded = model.encode(torch.zeros(1, 5, dtype=torch.int64), torch.tensor([5]))
        state = model.start(encoded, 3)
        for _ in range(9):
            _, state, _ = model.step(torch.zeros(1, 3, dtype=torch.int64), state, encoded)
    assert found == counter.get_total_flops()


def test_memory_kept_for_the_backward_pass_counts_each_storage_once() -> None:
    layer = torch.nn.Linear(8, 8, bias=False)
    x = torch.ones(16, 8)  # made before
    with Allocations() as kept:
        y = layer(x).exp()  # keeps its own output; what it read is gone
        z = (y * y).sum()  # keeps y, which is there already
    assert kept.alive == 16 * 8 * 4 + 4
    assert kept.largest == 16 * 8 * 4
    del y, z
    assert kept.alive == 0


def test_memory_that_a_hand_written_function_keeps_counts_too() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.own = x.exp()
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * ctx.own

    x = torch.ones(10, requires_grad=True)
    with Allocations() as kept:
        y = Doubled.apply(x)
    assert kept.alive == 2 * 10 * 4
    y.sum().backward()
    assert x.grad is not None


def test_activations_that_are_planned_are_those_of_a_step_and_the_report_holds_every_figure(tmp_path: Path) -> None:
    config = tiny(tmp_path, *SMALL, "batch.micro_batches=2", "label=Tiny")
    found = profile(config, ProfileOptions(steps=1, warmup=1))
    assert found.costs.shape == Shape(5, 7, 7)
    assert found.measured is not None
    assert found.measured.activation_bytes == found.costs.activation_bytes > 0

    text = report(found)
    assert text.startswith("Tiny: ")
    total = sum(found.costs.parameters.values())
    for figure in (f"{total:,}", "beam 2", "7 source and 7 target tokens", "update", "target tokens/s", "load"):
        assert figure in text, figure
    assert found.to_dict()["total_parameters"] == total


def test_phases_cover_the_step_and_change_nothing_in_it(tmp_path: Path) -> None:
    config = tiny(tmp_path, "batch.micro_batches=2")
    found = measure(config, prepare(config), "cpu", steps=2, warmup=1)
    assert set(found.phases) == {"data", "update", *STAGES, *map(backward_of, STAGES)}
    assert all(seconds > 0 for seconds in found.phases.values())
    assert found.seconds == pytest.approx(sum(found.phases.values()))
    assert (found.source_tokens, found.target_tokens) == (70, 70)
    assert found.tokens_per_second == pytest.approx(70 / found.seconds)
    assert set(found.state_bytes) == {"parameters", "first_moment", "second_moment"}
    assert found.state_bytes["parameters"] == 4 * planned_parameters(config)


def test_time_is_told_by_who_had_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves only where a stage, the batch or the update rule pushes it."""
    from distributed.optimizers import Adam
    from nmt.models.attention import Attention
    from nmt.models.recurrent.attention_kernels import AttentionKernel
    from nmt.models.seq2seq import ModelStage
    from nmt.profiling import phases

    clock = [0.0]

    def slow(owner: type, name: str, seconds: float) -> None:
        inner = getattr(owner, name)

        def call(self: object, *arguments: object) -> object:
            clock[0] += seconds
            return inner(self, *arguments)

        monkeypatch.setattr(owner, name, call)

    slow(ModelStage, "__call__", 1.0)
    slow(TranslationWorkload, "slot", 10.0)
    slow(Adam, "apply", 100.0)
    slow(Attention, "attend", 1000.0)
    slow(AttentionKernel, "forward", 1000.0)
    monkeypatch.setattr(phases.time, "perf_counter", lambda: clock[0])
    config = tiny(tmp_path, *SMALL, "batch.micro_batches=2")
    found = measure(config, prepare(config), "cpu", steps=3, warmup=1)
    forward = dict.fromkeys(STAGES, 2)
    queries = 1000 * 2 * 7  # at every target token, in two micro-batches
    assert found.attention == {"decoder": queries, backward_of("decoder"): 0}
    forward["decoder"] += queries
    assert found.phases == {"data": 20, "update": 100, **forward, **dict.fromkeys(map(backward_of, STAGES), 0)}


def test_a_missing_corpus_leaves_out_what_it_takes_and_says_why(tmp_path: Path) -> None:
    config = compose(["scale=smoke", "data=multi30k_en_de", f"data.dir={tmp_path / 'none'}", f"paths.runs={tmp_path}"])
    found = profile(config, ProfileOptions(target_length=2))
    assert found.measured is None and "there is no directory" in found.left_out
    assert found.costs.shape == Shape(16, 25, 2)
    assert "are left out: data.dir: there is no directory" in report(found)
