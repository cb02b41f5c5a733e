"""Parameters and gradients on their way between a device and the host: every copy is needed, and waited for.

No test here needs a GPU. Copies inside the host's memory are made at exactly the points where a GPU's would be, as late
or as early as the rules allow; what a GPU is asked for is seen through fakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_workload import BOTH_CLIPPINGS, ToyWorkload, workload_spec

from distributed.arithmetic import FlatParameters, clip_, clip_parameters_, norm, square_sums
from distributed.errors import DistributedError
from distributed.gradients import NodeGradients
from distributed.optimizers import build_optimizer
from distributed.shards import cut
from distributed.single import SingleStrategy
from distributed.staging import Copies, Copy, CudaCopies, LateCopies, Staged, choose_device, is_staged
from distributed.timeline import Timeline

GROUPS, STEPS, SHARDS = 3, 3, 4


def toy() -> ToyWorkload:
    return ToyWorkload(GROUPS, BOTH_CLIPPINGS, "")


class EarlyCopies(LateCopies):
    """Each copy is made at the moment when it is asked for."""

    def download(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        return self._now(super().download(source, target))

    def upload(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        return self._now(super().upload(source, target))

    def _now(self, copy: Copy) -> Copy:
        copy.wait()
        return copy


class Forgetful(LateCopies):
    """One copy, of all that are asked for, is never made."""

    def __init__(self, kind: str, number: int):
        self.kind, self.number = kind, number
        self.asked = {"download": 0, "upload": 0}

    def download(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        return self._unless_forgotten("download", super().download(source, target))

    def upload(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        return self._unless_forgotten("upload", super().upload(source, target))

    def _unless_forgotten(self, kind: str, copy: Copy) -> Copy:
        self.asked[kind] += 1
        if (kind, self.asked[kind] - 1) != (self.kind, self.number):
            return copy
        nothing: Any = SimpleNamespace(wait=lambda: None, precede=lambda: None)
        return nothing


class Worker:
    """A worker that computes all of each step, and a server that is what its pieces are pushed to."""

    def __init__(self, copies: Copies):
        self.workload = toy()
        model = self.workload.build_model()
        self.flat = FlatParameters(model)
        elements = self.flat.values.numel()
        self.pieces = cut(elements, SHARDS).pieces
        self.values = self.flat.values.clone()  # the server's, like what is below
        self.gradient = torch.empty(elements)
        self.rule = build_optimizer(self.workload.optimizer)
        self.moments = {slot: torch.zeros(elements) for slot in self.rule.slots}
        self.flat.values.fill_(torch.nan)  # the device has what was uploaded, and nothing else
        self.staged = Staged(self.flat, self.pieces, copies, None, Timeline("worker 0").main)
        self.gradients = NodeGradients(self.workload, model, self.flat, self.pieces, self.staged.use)
        self.order: list[int] = []
        self.answer()

    def step(self, index: int) -> None:
        def push(piece: int, host: torch.Tensor) -> None:
            self.order.append(piece)
            self.pieces[piece].of(self.gradient).copy_(self.pieces[piece].of(host))

        def ready(piece: int, gradient: torch.Tensor) -> None:
            self.staged.hand_on(piece, gradient, push)

        with torch.enable_grad():
            _, computed = self.gradients.compute(index, (0, GROUPS), False, ready)
        host = self.staged.finish(computed)
        self.apply(index, self.gradient)
        self.staged.release(host.fill_(torch.nan))
        self.answer()

    def apply(self, index: int, gradient: torch.Tensor) -> None:
        specification = self.workload.optimizer
        clip_(gradient, norm(square_sums(gradient)), specification.max_norm)
        clip_parameters_(self.flat, gradient, specification.parameter_max_norms)
        self.rule.apply(self.values, gradient, self.moments, index, self.workload.learning_rate(index))

    def answer(self) -> None:
        for piece in reversed(self.pieces):
            piece.of(self.staged.values).copy_(piece.of(self.values))
            self.staged.arrived(piece.index)

    def end(self) -> torch.Tensor:
        """The parameters on the device."""
        self.staged.use(range(len(self.pieces)))
        self.staged.close()
        return self.flat.values


def parameters_after(copies: Copies) -> torch.Tensor:
    worker = Worker(copies)
    for index in range(1, STEPS + 1):
        worker.step(index)
    return worker.end()


@pytest.fixture(scope="module")
def single() -> torch.Tensor:
    strategy = SingleStrategy({})
    strategy.start(workload_spec(GROUPS, BOTH_CLIPPINGS))
    for index in range(1, STEPS + 1):
        strategy.step(index)
    return strategy.flat.values


@pytest.mark.parametrize("copies", [LateCopies, EarlyCopies])
def test_staged_parameters_have_the_bits_of_one_process(copies: Callable[[], Copies], single: torch.Tensor) -> None:
    assert torch.equal(parameters_after(copies()), single)


@pytest.mark.parametrize("kind", ["download", "upload"])
def test_no_copy_can_be_left_out(kind: str, single: torch.Tensor) -> None:
    seen = Forgetful("", 0)
    assert torch.equal(parameters_after(seen), single)
    pieces = len(cut(len(single), SHARDS).pieces)
    assert seen.asked == {"download": STEPS * pieces, "upload": (STEPS + 1) * pieces}
    for number in range(seen.asked[kind]):
        assert not torch.equal(parameters_after(Forgetful(kind, number)), single), number


def test_a_stage_that_does_not_wait_is_found_out(single: torch.Tensor) -> None:
    class Careless(Worker):
        def __init__(self, copies: Copies, forgotten: int):
            super().__init__(copies)
            real, calls = self.staged.use, iter(range(1000))
            self.gradients._wait = lambda pieces: None if next(calls) == forgotten else real(pieces)

    last_step = 2 * 2 * GROUPS * (STEPS - 1)  # two stages of two slots
    for forgotten in (0, 1, last_step, last_step + 1):  # later slots of a step find what the first one waited for
        worker = Careless(LateCopies(), forgotten)
        for index in range(1, STEPS + 1):
            worker.step(index)
        assert not torch.equal(worker.end(), single), forgotten


def test_a_push_that_does_not_wait_is_found_out(single: torch.Tensor) -> None:
    class Hasty(LateCopies):
        """Its first download is made when the one after it is waited for, behind the first push."""

        def __init__(self) -> None:
            self.late: list[Copy] = []

        def download(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
            copy = super().download(source, target)
            self.late.append(copy)
            waits: list[Callable[[], None]] = [] if len(self.late) == 1 else [self.late[0].wait, copy.wait]
            made: Any = SimpleNamespace(wait=lambda: [wait() for wait in waits])
            return made

    assert not torch.equal(parameters_after(Hasty()), single)


def test_pieces_leave_in_the_order_of_the_backward_pass() -> None:
    worker = Worker(LateCopies())
    worker.step(1)
    assert worker.order == [1, 2, 3, 0]  # that of the hidden layer, which the buffer begins with, comes last
    worker.end()


def test_buffers_are_used_again() -> None:
    worker = Worker(LateCopies())
    for index in range(1, STEPS + 1):
        worker.step(index)
    assert len(worker.staged._spare) == 1
    worker.staged.release(worker.staged._spare[0])
    assert len(worker.staged._spare) == 1
    worker.end()


def test_what_goes_wrong_with_a_piece_is_raised_by_the_thread_that_computes() -> None:
    worker = Worker(LateCopies())
    gradient = worker.flat.new_buffer()

    def push(piece: int, host: torch.Tensor) -> None:
        raise DistributedError("is gone", where="server 1")

    worker.staged.hand_on(0, gradient, push)
    with pytest.raises(DistributedError, match="server 1: is gone"):
        worker.staged.finish(gradient)
    worker.end()


def test_a_gradient_that_was_given_up_leaves_no_buffer_behind() -> None:
    class Withdrawn(Exception):
        pass

    worker = Worker(LateCopies())
    worker.step(1)
    stages = iter(range(100))

    def wait(pieces: object) -> None:
        if next(stages) == 5:  # in the second group of slots
            raise Withdrawn

    worker.gradients._wait = wait
    for _ in range(2):
        stages = iter(range(100))
        with pytest.raises(Withdrawn), torch.enable_grad():
            worker.gradients.compute(2, (0, GROUPS), False, lambda index, gradient: None)
        assert len(worker.flat._spare) == 2
    worker.end()


def test_only_the_memory_of_gpus_is_staged_unless_it_is_asked_for() -> None:
    assert [is_staged(torch.device(name), False) for name in ("cpu", "cuda", "cuda:1")] == [False, True, True]
    assert is_staged(torch.device("cpu"), True)
    with pytest.raises(DistributedError, match=r"^device: parameters on 'mps' cannot be sent; allowed: cpu, cuda$"):
        is_staged(torch.device("mps"), False)


# ------------------------------------------------------------------------------------------------ what a GPU is asked


class FakeGpu:
    """Streams and events that write down what they are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[str] = []
        self.now = "computing"
        names = iter(["down", "up"])
        numbers = iter(range(100))
        self.status = 0
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self._stream(next(names)))
        monkeypatch.setattr(torch.cuda, "Event", lambda blocking=False: self._event(next(numbers), blocking))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self._stream(self.now))
        monkeypatch.setattr(torch.cuda, "stream", self._within)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: self)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("nobody waits for the whole GPU"))

    def tensor(self, name: str) -> Any:
        def copy(source: Any, non_blocking: bool = False) -> None:
            self.calls.append(f"{self.now}: {name} <- {source.name}{', unblocked' * non_blocking}")

        return SimpleNamespace(name=name, copy_=copy)

    def cudaHostRegister(self, address: int, length: int, flags: int) -> int:
        self.calls.append(f"pin {length} bytes")
        return self.status

    def cudaGetErrorString(self, status: int) -> str:
        return "operation not permitted"

    def _stream(self, name: str) -> Any:
        return SimpleNamespace(
            name=name, wait_event=lambda event: self.calls.append(f"{name} waits for event {event.name}")
        )

    def _event(self, name: int, blocking: bool) -> Any:
        return SimpleNamespace(
            name=name,
            record=lambda stream: self.calls.append(f"event {name} on {stream.name}"),
            synchronize=lambda: self.calls.append(f"the host {'sleeps' if blocking else 'spins'} until event {name}"),
        )

    @contextmanager
    def _within(self, stream: Any) -> Iterator[None]:
        before, self.now = self.now, stream.name
        yield
        self.now = before


def test_a_gpu_copies_beside_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    copies = CudaCopies(torch.device("cuda"))
    copies.download(gpu.tensor("gradient"), gpu.tensor("host")).wait()
    assert gpu.calls == [
        *("event 0 on computing", "down waits for event 0"),  # the gradient is final
        *("down: host <- gradient, unblocked", "event 1 on down", "the host sleeps until event 1"),
    ]
    gpu.calls.clear()
    upload = copies.upload(gpu.tensor("host"), gpu.tensor("values"))
    assert gpu.calls == ["up: values <- host, unblocked", "event 2 on up"]  # at once, whatever is being computed
    gpu.calls.clear()
    upload.precede()
    assert gpu.calls == ["computing waits for event 2"]  # and the host does not


def test_shared_memory_that_cannot_be_pinned_ends_the_run_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    copies, buffer = CudaCopies(torch.device("cuda")), torch.zeros(100)
    assert copies.pin(buffer) is buffer
    assert gpu.calls == ["pin 400 bytes"]
    gpu.status = 800
    with pytest.raises(DistributedError, match=r"not permitted; allowed: tcp; distribution\.link=tcp takes memory"):
        copies.pin(buffer)


def test_workers_take_turns_on_the_gpus_that_they_see(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for number in range(3):
        choose_device("cuda", number)
    choose_device("cpu", 1)
    assert chosen == [0, 1, 0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    choose_device("cpu", 0)
    with pytest.raises(DistributedError, match=r"sees no GPU.*distribution\.resources\.worker\.gpu=1"):
        choose_device("cuda", 0)
