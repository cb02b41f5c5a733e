"""The hand-written loops against autograd's own gradients of the step-by-step form, and the packing under them."""

from __future__ import annotations

import gc
import weakref
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_reference import model_config, padded_batch, random_model
from torch import Tensor

from nmt.config.schema import CellConfig, ModelConfig
from nmt.models.dropout import NO_DROPOUT, AddressedDropout
from nmt.models.plain import plain_autograd
from nmt.models.recurrent.arithmetic import Program, run, sigmoid_
from nmt.models.recurrent.packing import LEAST_ROWS, SentencePacking
from nmt.models.seq2seq import Seq2Seq
from nmt.models.tf_cells import TfGru, TfLstm

SOURCES = [[3, 4, 5, 6, 7, 8, 9], [10], [4, 6, 8], [5, 5], [7, 9, 10, 3, 4, 5]] * 4  # more than `LEAST_ROWS`
TARGETS = [[4, 12, 3], [7, 7, 8, 9, 11, 12], [5], [6, 9], [3, 4, 8, 10, 12]] * 4
CELLS = list(product(["gru", "lstm", "vanilla"], ["tf", "torch"]))
ENCODERS = ["unidirectional", "bidirectional", "stacked_bidirectional"]
ATTENTIONS = ["additive", "multiplicative", "none_state", "none_input"]
RESIDUALS = [*product(["add", "mean", "concat"], [False, True])]


def mix_and_gradients(model: Seq2Seq, create_graph: bool = False) -> list[Tensor]:
    """The decoder's outputs for a fixed batch under dropout, and the gradients of a fixed functional of them."""
    batch, dropout = padded_batch(SOURCES, TARGETS), AddressedDropout(1, 2, 3)
    mix = model._decode(batch, model._encode(batch.source, batch.source_lengths, dropout), dropout)
    weights = torch.arange(mix.numel(), dtype=torch.float64).view_as(mix).sin().to(mix.dtype)
    used = [parameter for name, parameter in model.named_parameters() if not name.startswith("output")]
    gradients = torch.autograd.grad((mix * weights).sum(), used, create_graph=create_graph, allow_unused=True)
    return [mix, *(gradient for gradient in gradients if gradient is not None)]


def check(config: ModelConfig) -> None:
    by_hand = mix_and_gradients(random_model(config))
    with plain_autograd():
        by_autograd = mix_and_gradients(random_model(config))
    assert len(by_hand) == len(by_autograd) > 5
    for one, other in zip(by_hand, by_autograd, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("kind", "family"), CELLS)
def test_every_cell(kind: str, family: str) -> None:
    check(model_config(kind=kind, family=family, dropout=0.3))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_recurrent_encoder(encoder: str) -> None:
    check(model_config(encoder=encoder, encoder_layers=2, kind="lstm", dropout=0.3, combiner="add"))


@pytest.mark.parametrize(
    ("attention", "scaling", "masked"),
    [
        ("additive", "none", True),
        ("additive", "learned", False),
        ("multiplicative", "none", False),
        ("multiplicative", "sqrt", True),
        ("multiplicative", "learned", True),
        ("none_state", "none", True),
        ("none_input", "none", True),
    ],
)
def test_every_attention(attention: str, scaling: str, masked: bool) -> None:
    check(model_config(attention=attention, scaling=scaling, masked=masked, dropout=0.3))


def test_dot_attention_asks_with_the_decoders_output_itself() -> None:
    check(model_config(encoder="unidirectional", attention="dot", units=(6, 6), dropout=0.3))


@pytest.mark.parametrize(("combiner", "dense"), RESIDUALS)
def test_every_residual_connection(combiner: str, dense: bool) -> None:
    check(model_config(combiner=combiner, dense=dense, decoder_layers=3, dropout=0.3))


def test_without_dropout_layers_read_each_others_buffers() -> None:
    check(model_config(decoder_layers=3))
    check(model_config(decoder_layers=2, combiner="add", attention="none_state", units=(5, 6)))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("cell", "attention", "residual", "dropout"),
    list(product(CELLS, ATTENTIONS, [("none", False), *RESIDUALS], [0, 0.3])),
)
def test_every_combination(cell: tuple[str, str], attention: str, residual: tuple[str, bool], dropout: float) -> None:
    (kind, family), (combiner, dense) = cell, residual
    check(
        model_config(
            kind=kind, family=family, attention=attention, combiner=combiner, dense=dense, dropout=dropout,
            decoder_layers=3, encoder_layers=2,
        )
    )  # fmt: skip


def test_gradients_by_finite_differences() -> None:
    """Along one direction of all parameters, without autograd's step-by-step form as a witness."""
    model = random_model(model_config(attention="additive", kind="lstm", dropout=0.3, combiner="add"))
    batch, dropout = padded_batch(SOURCES, TARGETS), AddressedDropout(1, 2, 3)

    def loss() -> Tensor:
        return model(batch, dropout).sum()

    generator = torch.Generator().manual_seed(5)
    parameters = list(model.parameters())
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))

    def moved(by: float) -> float:
        with torch.no_grad():
            for parameter, step in zip(parameters, direction, strict=True):
                parameter.add_(step, alpha=by)
            value = float(loss())
            for parameter, step in zip(parameters, direction, strict=True):
                parameter.sub_(step, alpha=by)
        return value

    assert slope == pytest.approx((moved(1e-6) - moved(-1e-6)) / 2e-6, rel=1e-5)


def test_in_low_precision_only_products_lose_digits() -> None:
    config = model_config(dropout=0.3, units=(16, 16))
    _, *exact = mix_and_gradients(random_model(config).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, *rough = mix_and_gradients(random_model(config).float())
    assert {gradient.dtype for gradient in rough} == {torch.float32}
    one, other = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (exact, rough))
    assert 0.001 < float((one - other).norm() / one.norm()) < 0.05


def test_a_loop_runs_back_once_and_says_where_to_turn() -> None:
    model = random_model(model_config())
    batch, dropout = padded_batch(SOURCES, TARGETS), AddressedDropout(1, 2, 3)
    total = model(batch, dropout).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="plain_autograd"):
        total.backward()


@pytest.mark.parametrize("upstream", ["constant", "of the outputs"])
def test_second_derivatives_are_refused_with_a_way_out(upstream: str) -> None:
    """Where the gradient of a loop's outputs is a constant too, and torch would take that of its inputs for one."""
    model = random_model(model_config())
    batch, parameters = padded_batch(SOURCES, TARGETS), list(model.encoder.parameters())
    outputs = model.encoder(model.source_embedding(batch.source.t()), batch.source_lengths, NO_DROPOUT).outputs
    total = outputs.sum() if upstream == "constant" else outputs.square().sum()
    with pytest.raises(RuntimeError, match=r"within plain_autograd\(\)"):
        first = torch.autograd.grad(total, parameters, create_graph=True)
        torch.autograd.grad(torch.cat([gradient.flatten() for gradient in first]).square().sum(), parameters)
    total.backward()  # nothing was used up
    assert all(parameter.grad is not None for parameter in parameters)


def test_the_plain_form_can_be_differentiated_twice() -> None:
    model = random_model(model_config(attention="additive"))
    with plain_autograd():
        _, *gradients = mix_and_gradients(model, create_graph=True)
    norm = sum((gradient.square().sum() for gradient in gradients), start=torch.zeros(()).double())
    second = torch.autograd.grad(norm, list(model.decoder.parameters()))
    assert all(float(gradient.abs().max()) > 0 for gradient in second)


def test_what_a_loop_keeps_is_freed_with_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Program]] = []

    def seen(program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
        alive.append(weakref.ref(program))
        return run(program, *inputs)

    for module in ("sequence", "decoder_loop"):
        monkeypatch.setattr(f"nmt.models.recurrent.{module}.run", seen)
    model = random_model(model_config())
    batch = padded_batch(SOURCES, TARGETS)
    gc.disable()  # freed by the last reference, not by a collection that may come late
    try:
        loss = model(batch).sum()
        assert [reference() is not None for reference in alive] == [True, True]
        loss.backward()
        assert [reference() is None for reference in alive] == [True, True]
        loss = model(batch).sum()
        del loss
        assert all(reference() is None for reference in alive)
    finally:
        gc.enable()


def test_a_cell_with_a_step_of_its_own_does_not_inherit_a_kernel() -> None:
    class Frozen(TfGru):
        def step(self, projected: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return state

    class Renamed(TfLstm):
        pass

    assert Frozen(2, 3, CellConfig()).usable_kernel() is None
    assert Renamed(2, 3, CellConfig(kind="lstm")).usable_kernel() is TfLstm.kernel


lengths_of = st.lists(st.integers(1, 9), min_size=1, max_size=2 * LEAST_ROWS)


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_of, extra=st.integers(0, 2), directions=st.integers(1, 2))
def test_packing_moves_rows_and_nothing_else(lengths: list[int], extra: int, directions: int) -> None:
    time, batch = max(lengths) + extra, len(lengths)
    packing = SentencePacking(torch.tensor(lengths), time, directions)
    x = torch.arange(1.0, time * batch + 1).view(time, batch, 1)
    real = (torch.arange(time).unsqueeze(1) < torch.tensor(lengths)).unsqueeze(-1)
    packed = packing.pack(x)
    assert packed.shape == (directions, sum(packing.sizes), 1)
    assert torch.equal(packing.unpack(packed), (x * real).expand(-1, -1, directions))
    assert sorted(packing.sizes, reverse=True) == packing.sizes
    assert packing.sizes[-1] >= min(LEAST_ROWS, batch)
    # Step by step, each direction meets the tokens of a sentence in its own order.
    steps = packed.split(packing.sizes, dim=1)
    order = torch.tensor(lengths).sort(descending=True, stable=True).indices.tolist()
    for row, sentence in enumerate(order):
        met = [step[:, row, 0].tolist() for step in steps[: lengths[sentence]]]
        words = x[: lengths[sentence], sentence, 0].tolist()
        assert [each[0] for each in met] == words
        if directions == 2:
            assert [each[1] for each in met] == words[::-1]
    last = packed[0].index_select(0, packing.last).squeeze(1)
    assert last.tolist() == [float(x[length - 1, n]) for n, length in enumerate(lengths)]
    before = packed[0].index_select(0, packing.before).squeeze(1).split(packing.sizes[1:])
    assert all(torch.equal(rows, step[0, : len(rows), 0]) for rows, step in zip(before, steps, strict=False))


@pytest.mark.parametrize("directions", [1, 2])
def test_gradients_of_packing_and_unpacking(directions: int) -> None:
    packing = SentencePacking(torch.tensor([3, 1, 4, 2]), 5, directions)
    x = torch.randn(5, 4, 2, dtype=torch.float64, requires_grad=True)

    def there_and_back(x: Tensor) -> Tensor:
        return packing.unpack(packing.pack(x).tanh())

    assert torch.autograd.gradcheck(there_and_back, (x,))
    assert torch.autograd.gradgradcheck(there_and_back, (x,))


def test_a_logistic_function_from_the_hyperbolic_tangent() -> None:
    x = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    torch.testing.assert_close(sigmoid_(x.clone()), torch.sigmoid(x), rtol=0, atol=1e-15)
