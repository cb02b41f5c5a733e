"""Wire forms: what decodes equals what was encoded, to the bit where that is promised; damage is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.errors import FrameError
from distributed.parameter_server.compression import Dense, Rows, SparseRows, WireForm, whole_rows
from distributed.parameter_server.top_k import ErrorFeedback, TopK, density

TABLES = {"words": (48, (100, 24)), "bias": (16, (32,)), "output": (2448, (70, 16)), "odd": (3600, (45, 7))}
ELEMENTS = 4000


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.view(torch.int32).tolist()


def sparse_gradient(seed: int, touched: float = 0.1) -> torch.Tensor:
    """A flat gradient [ELEMENTS] in which some rows of every table were touched, and odd values stand."""
    torch.manual_seed(seed)
    flat = torch.randn(ELEMENTS)
    for offset, shape in TABLES.values():
        if len(shape) == 2:
            rows = flat[offset : offset + shape[0] * shape[1]].view(shape)
            rows[torch.rand(shape[0]) >= touched] = 0.0
    for value in (float("nan"), float("inf"), -0.0, 1e-42):
        flat[random.Random(seed).randrange(ELEMENTS)] = value
    return flat


def test_rows_that_a_border_cuts_are_not_whole() -> None:
    assert whole_rows(0, ELEMENTS, TABLES) == [Rows(48, 100, 24), Rows(2448, 70, 16), Rows(3600, 45, 7)]
    assert whole_rows(60, 100, TABLES) == [Rows(12, 1, 24)]  # elements 72 to 96 are row 1
    assert whole_rows(50, 71, TABLES) == []
    assert whole_rows(2460, 2500, TABLES) == [Rows(4, 2, 16)]


@given(st.integers(0, 10**6), st.integers(0, ELEMENTS), st.integers(0, ELEMENTS), st.sampled_from([0.0, 0.1, 0.9]))
@settings(max_examples=150, deadline=None)
def test_sparse_rows_are_exact_wherever_a_piece_is_cut(seed: int, one: int, other: int, touched: float) -> None:
    start, stop = sorted((one, other))
    gradient = sparse_gradient(seed, touched)[start:stop]
    form = SparseRows(stop - start, whole_rows(start, stop, TABLES))
    payload = form.encode(gradient)
    decoded = torch.full((stop - start,), 7.0)
    form.decode(payload, decoded)
    assert bits(decoded) == bits(gradient)
    assert payload.numel() <= form.most_bytes
    place = torch.full((form.most_bytes + 3,), 255, dtype=torch.uint8)
    assert torch.equal(form.encode(gradient, out=place), payload)
    base = torch.randn(stop - start)
    added = base.clone()
    form.decode(payload, added, add=True)
    assert bits(added) == bits(base + gradient)
    rounded = SparseRows(stop - start, whole_rows(start, stop, TABLES), "bf16")
    rounded.decode(rounded.encode(gradient), decoded)
    assert bits(decoded) == bits(gradient.bfloat16().float())


def test_sparse_rows_send_what_was_touched_and_little_else() -> None:
    table = Rows(8, 1000, 64)
    gradient = torch.zeros(8 + 64_000)
    gradient.view(-1)[8 + 64 * 3] = 1.0
    gradient[8 + 64 * 700 + 63] = -0.0  # its bits are not those of a zero row
    form = SparseRows(len(gradient), [table])
    payload = form.encode(gradient)
    assert payload.numel() == 8 + 8 * 4 + 2 * 64 * 4 + 2 * 2  # head, bias, two rows, ids 3 and 697 in two bytes
    assert payload[-4:].view(torch.int16).tolist() == [3, 697]
    decoded = torch.ones_like(gradient)
    form.decode(payload, decoded)
    assert bits(decoded) == bits(gradient)


def test_a_table_that_was_touched_all_over_goes_as_it_is() -> None:
    gradient = torch.ones(2000)
    form = SparseRows(2000, [Rows(0, 100, 10), Rows(1000, 100, 10)])
    gradient[1000:] = 0.0
    assert form.encode(gradient).numel() == 16 + 1000 * 4
    gradient[1000:1500] = 1.0  # half of the rows: still one by one
    assert form.encode(gradient).numel() == 16 + 1000 * 4 + 50 * (10 * 4 + 1)
    gradient[1500] = 1.0
    assert form.encode(gradient).numel() == 16 + 2000 * 4 <= form.most_bytes


def test_bf16_rounds_to_the_nearest_even_and_sums_in_fp32() -> None:
    values = torch.tensor([1.0, 1.0 + 2**-8, 1.0 + 3 * 2**-8, 1.0 + 2**-8 + 2**-20, -3.0, float("inf")])
    form = Dense(6, "bf16")
    out = torch.full((6,), 1.0 + 2**-20)
    payload = form.encode(values)
    assert payload.numel() == form.most_bytes == 12
    form.decode(payload, out, add=True)
    rounded = torch.tensor([1.0, 1.0, 1.0 + 2**-6, 1.0 + 2**-7, -3.0, float("inf")])
    assert torch.equal(out, rounded + (1.0 + 2**-20))
    form.decode(payload, out)
    assert torch.equal(out, rounded)


def test_fp32_is_the_gradient_itself() -> None:
    gradient = torch.randn(100)
    form = Dense(100)
    payload = form.encode(gradient)
    assert payload.data_ptr() == gradient.data_ptr() and payload.numel() == 400
    place = torch.zeros(500, dtype=torch.uint8)
    copy = form.encode(gradient, out=place)
    assert copy.data_ptr() == place.data_ptr() and torch.equal(copy, payload)


FORMS = {
    "fp32": lambda: Dense(4000),
    "bf16": lambda: Dense(4000, "bf16"),
    "sparse": lambda: SparseRows(4000, whole_rows(0, 4000, TABLES)),
    "top_k": lambda: TopK(0, 4000, 0.05, ErrorFeedback(4000)),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_payload_of_another_length_is_refused(name: str) -> None:
    form: WireForm = FORMS[name]()
    payload = form.encode(torch.where(torch.isfinite(g := sparse_gradient(1)), g, 0.0)).clone()
    for wrong in (payload[:-2], torch.cat([payload, payload[:2]]), payload[:0]):
        with pytest.raises(FrameError, match=r"(gradient|payload) of"):
            form.decode(wrong, torch.zeros(4000))


def test_rows_outside_their_table_are_refused() -> None:
    form = SparseRows(2000, [Rows(0, 200, 10)])
    gradient = torch.zeros(2000)
    gradient[1990:] = gradient[0] = 1.0
    payload = form.encode(gradient)
    assert payload[-2:].tolist() == [0, 199]
    for where, value in ((-1, 200), (-1, 0), (0, 201), (4, 3)):
        damaged = payload.clone()
        damaged[where] = value
        with pytest.raises(FrameError):
            form.decode(damaged, torch.zeros(2000))


@given(st.integers(0, 10**6), st.sampled_from([1, 50, 70_000, 140_000]), st.sampled_from([0.0, 0.9]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_top_k_follows_its_algorithm(seed: int, elements: int, momentum: float, rounded: bool) -> None:
    """Algorithm 1 of Lin et al. in NumPy; nothing that was kept is larger than anything that was sent."""
    start, share = 5, 0.02
    feedback = ErrorFeedback(elements + 9, momentum)
    form = TopK(start, start + elements, share, feedback, wire="bf16" if rounded else "fp32")
    u, v = np.zeros(elements, np.float32), np.zeros(elements, np.float32)
    torch.manual_seed(seed)
    for update in range(1, 4):
        gradient = torch.randn(elements) * torch.rand(elements) ** 8
        payload = form.encode(gradient, update)
        out = torch.full((elements,), 3.0)
        form.decode(payload, out)
        if momentum:
            u = np.float32(momentum) * u + gradient.numpy()
            v = v + u
        else:
            v = v + gradient.numpy()
        sent = out.numpy() != 0
        wanted = max(1, round(share * elements))
        assert 0 < sent.sum() <= 1.5 * wanted and payload.numel() <= form.most_bytes
        assert elements < 1000 or sent.sum() > 0.5 * wanted
        if not sent.all():
            assert np.abs(v[sent]).min() >= np.abs(v[~sent]).max()
        expected = torch.from_numpy(v[sent])
        assert torch.equal(out[sent], expected.bfloat16().float() if rounded else expected)
        v[sent] -= out.numpy()[sent]
        u[sent] = 0.0
        np.testing.assert_array_equal(feedback.residual[start : start + elements].numpy(), v)
        if feedback.velocity is not None:
            np.testing.assert_allclose(feedback.velocity[start : start + elements].numpy(), u, rtol=1e-6)
            u = feedback.velocity[start : start + elements].numpy().copy()
        base = torch.ones(elements)
        form.decode(payload, base, add=True)
        assert torch.equal(base, 1.0 + out)
    assert not feedback.residual[:start].any() and not feedback.residual[start + elements :].any()


def test_nothing_is_lost_to_error_feedback() -> None:
    """After the gradients stop, what was kept back is sent to the last element."""
    form = TopK(0, 300, 0.1, feedback := ErrorFeedback(300))
    gradient, total, out = torch.arange(1.0, 301.0), torch.zeros(300), torch.zeros(300)
    form.decode(form.encode(gradient, 1), total, add=True)
    for update in range(2, 14):
        form.decode(form.encode(torch.zeros(300), update), out)
        total += out
    assert torch.equal(total, gradient) and not feedback.residual.any()
    assert form.encode(torch.zeros(300), 14).numel() == 8  # nothing to send


def test_the_warm_up_is_that_of_the_paper() -> None:
    shares = [density(0.001, update, 4) for update in (1, 2, 3, 4, 5, 99)]
    assert shares == pytest.approx([0.25, 0.0629, 0.0158, 0.00398, 0.001, 0.001], rel=1e-3)
    assert density(0.5, 1, 10) == 0.5 and density(0.01, 1, 0) == 0.01


def test_a_memory_goes_through_a_checkpoint_and_another_cut() -> None:
    gradient = torch.randn(400)
    first = ErrorFeedback(400, momentum=0.9)
    for start, stop in ((0, 128), (128, 400)):
        TopK(start, stop, 0.1, first).encode(gradient[start:stop])
    second = ErrorFeedback(400, momentum=0.9)
    second.load({name: buffer.clone() for name, buffer in first.buffers.items()})
    assert sorted(second.buffers) == ["residual", "velocity"] and first.residual.any()
    payloads = [TopK(0, 400, 0.1, one).encode(gradient, 2) for one in (first, second)]
    assert torch.equal(*payloads)


@pytest.mark.parametrize(("row", "size"), [(255, 1), (256, 2), (65535, 2), (65536, 4)])
def test_ids_take_as_many_bytes_as_the_widest_distance(row: int, size: int) -> None:
    gradient = torch.zeros(70_000, 2)
    gradient[row] = 1.0
    form = SparseRows(140_000, [Rows(0, 70_000, 2)])
    payload = form.encode(gradient.view(-1))
    assert payload.numel() == 8 + 8 + size
    decoded = torch.ones(140_000)
    form.decode(payload, decoded)
    assert torch.equal(decoded, gradient.view(-1))


def test_elements_outside_the_piece_or_told_twice_are_refused() -> None:
    form = TopK(0, 1000, 0.002, ErrorFeedback(1000))
    gradient = torch.zeros(1000)
    gradient[998] = gradient[999] = 1.0
    payload = form.encode(gradient)
    assert payload[-4:].view(torch.int16).tolist() == [998, 999]
    for wrong in (1000, 998):
        damaged = payload.clone()
        damaged[-2:].view(torch.int16)[0] = wrong
        with pytest.raises(FrameError, match="not in the piece, or come twice"):
            form.decode(damaged, torch.zeros(1000))
