"""The output layer in chunks of the vocabulary: times and memory of one process, and of a chunk on a node of a ring.

    PYTHONPATH=scripts python -m bench.ring_softmax            # the shape of the published baseline
    PYTHONPATH=scripts python -m bench.ring_softmax 960 8000   # tokens, words

Times are CPU seconds of one thread, medians over rounds in which every form has its turn. Memory is what a process of
its own holds at most, less what it held before the first pass.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.machine import resident_bytes
from bench.tables import mega, table

TOKENS, WORDS, UNITS = 3840, 32_000, 512
CHUNKS = (1, 2, 4, 8)
NODES = (4, 8)  # of which the second holds the chunk that is looked at
SLOTS = 8  # micro-batches of a step on a ring
ROUNDS = 5


def loss_pass(tokens: int, words: int, chunks: int) -> Callable[[], None]:
    """Forward and backward pass of the loss in one process."""
    import torch

    from nmt.models.loss import training_loss

    hidden, output, targets = _layer(tokens, words)
    leaf = hidden.requires_grad_()

    def run() -> None:
        for tensor in (leaf, *output.parameters()):
            tensor.grad = None
        loss = training_loss(leaf, output.weight, output.bias, targets, 0.1, chunks)
        (loss / tokens).backward()

    torch.set_num_threads(1)
    return run


def visit(tokens: int, words: int, nodes: int, keep: bool) -> Callable[[], None]:
    """A chunk's part in the loss of one slot, there and back, between two other chunks."""
    import torch

    from nmt.models.ring_softmax import HIDDEN, STATISTICS, ChunkedAffine, RingSoftmax
    from nmt.models.vocabulary_chunk import normaliser_of

    hidden, output, targets = _layer(tokens, words)
    lengths = torch.tensor([tokens])
    slot: Any = SimpleNamespace(
        batch=SimpleNamespace(target_output=targets.unsqueeze(0), target_lengths=lengths),
        target_tokens=tokens,
        is_scored=False,
    )
    cut = ChunkedAffine(output, nodes)
    part = RingSoftmax(cut, 0.1, keep).parts()[1]
    with torch.no_grad():
        logits = output(hidden)
        largest = logits.amax(dim=-1)
        before = torch.stack([largest, (logits - largest.unsqueeze(1)).exp().sum(dim=-1), largest * 0, largest * 0])
    back = torch.cat([normaliser_of(before), torch.ones(2, tokens)])
    del logits
    torch.set_num_threads(1)

    def run() -> None:
        for parameter in cut.parameters():
            parameter.grad = None
        leaves = {HIDDEN: hidden.detach().requires_grad_(), STATISTICS: before.detach().requires_grad_()}
        made = part.run(slot, leaves)
        torch.autograd.backward([made[HIDDEN], made[STATISTICS]], [torch.zeros_like(hidden), back])

    return run


def _layer(tokens: int, words: int) -> Any:
    import torch

    from nmt.models.layers import Affine

    generator = torch.Generator().manual_seed(1)
    output = Affine(UNITS, words)
    output.weight.data = torch.randn(words, UNITS, generator=generator) * 0.05
    output.bias.data = torch.zeros(words)
    hidden = torch.randn(tokens, UNITS, generator=generator)
    return hidden, output, torch.randint(0, words, (tokens,), generator=generator)


def growth(make: Callable[..., Callable[[], None]], arguments: Sequence[Any]) -> int:
    """Bytes by which a process grows in three passes, beyond what it held before them."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe(duplex=False)
    process = context.Process(target=_grown, args=(child, make, arguments))
    process.start()
    found: int = parent.recv()
    process.join()
    return found


def _grown(answer: Any, make: Callable[..., Callable[[], None]], arguments: Sequence[Any]) -> None:
    import torch

    small = make(64, 64, *arguments[2:])
    small()  # libraries load
    run = make(*arguments)
    torch.zeros(1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_bytes()
    for _ in range(3):
        run()
    # Not what getrusage says: after a fork that counts what the parent once held, too.
    status = Path("/proc/self/status").read_text()
    answer.send(1024 * int(status.partition("VmHWM:")[2].split()[0]) - before)


def seconds(passes: dict[str, Callable[[], None]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median CPU seconds of each; the first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds + 1):
        for name, run in passes.items():
            began = time.thread_time()
            run()
            found[name].append(time.thread_time() - began)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def main(words: Sequence[str]) -> int:
    """Print two tables; returns the exit code."""
    tokens, vocabulary = map(int, words) if words else (TOKENS, WORDS)
    took = seconds({str(chunks): loss_pass(tokens, vocabulary, chunks) for chunks in CHUNKS})
    rows = [
        [
            str(chunks),
            f"{tokens / took[str(chunks)]:,.0f}",
            f"{took[str(chunks)] / took['1']:.3f}",
            mega(growth(loss_pass, (tokens, vocabulary, chunks))),
        ]
        for chunks in CHUNKS
    ]
    print(f"One process: {tokens:,} tokens, {vocabulary:,} words, {UNITS} units, fp32, forward and backward pass\n")
    print(table(["chunks", "tokens a CPU second", "time beside one chunk", "growth, MB"], rows))
    rows = []
    for nodes in NODES:
        forms = {"kept": True, "computed again": False}
        own = {name: (tokens // SLOTS, vocabulary, nodes, keep) for name, keep in forms.items()}
        took = seconds({name: visit(*arguments) for name, arguments in own.items()})
        rows += [
            [
                str(nodes),
                name,
                f"{1000 * took[name]:.1f}",
                f"{took[name] / took['kept']:.3f}",
                mega(4 * arguments[0] * vocabulary / nodes if arguments[3] else 0),
                mega(growth(visit, arguments)),
            ]
            for name, arguments in own.items()
        ]
    print(f"\nA chunk of a ring: a slot of {tokens // SLOTS:,} tokens, there and back\n")
    heads = ["nodes", "exponentials", "CPU ms", "time beside kept", "kept a slot in flight, MB", "growth, MB"]
    print(table(heads, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
