"""Whose memory a worker goes on with where workers keep gradients back (`distribution.top_k`) and runs are resumed.

What a worker keeps back is made by all that it has pushed, so a replay needs a process for each such memory, not for
each number. A worker that comes later has a number of its own and begins with nothing. A resumed run numbers its
workers anew, and says in the traces which of them got which memory: MEMORY records, one for each worker, behind the
horizon that it goes on from. Here each stretch between them gets the numbers of the memories, which stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distributed.parameter_server.trace import NOBODY, EventKind, Trace, TraceError


def by_memory(traces: Sequence[Trace]) -> list[np.ndarray]:
    """The records of each trace, with workers numbered by their memories.

    Raises TraceError where the traces do not speak of the same interruptions.
    """
    stretches = [_stretches(trace.records) for trace in traces]
    if len({len(own) for own in stretches}) > 1:
        raise TraceError("the traces of the shards do not agree on how often the run was resumed")
    if len(stretches[0]) == 1:
        return [trace.records for trace in traces]
    fresh = 1 + max(int(trace.records["worker"].max(initial=0)) for trace in traces)
    named: dict[int, int] = {}
    found: list[list[np.ndarray]] = [[] for _ in traces]
    for number in range(len(stretches[0])):
        heirs, _ = stretches[0][number]
        seen = np.unique(np.concatenate([own[number][1]["worker"] for own in stretches])).tolist()
        before, named = named, {}
        for worker in sorted({*seen, *heirs}):
            source = heirs.get(worker, NOBODY)
            if number == 0:
                named[worker] = worker
            elif source in before:
                named[worker] = before[source]
            else:
                named[worker], fresh = fresh, fresh + 1
        names = np.arange(1 + max(named, default=0), dtype=np.uint16)
        for worker, name in named.items():
            names[worker] = name
        for own, shard in zip(stretches, found, strict=True):
            records = own[number][1].copy()
            records["worker"] = names[records["worker"]]
            shard.append(records)
    return [np.concatenate(parts) for parts in found]


def _stretches(records: np.ndarray) -> list[tuple[dict[int, int], np.ndarray]]:
    """What stands between two groups of MEMORY records, and which worker has whose memory there."""
    is_memory = records["kind"] == EventKind.MEMORY
    borders = np.flatnonzero(np.diff(is_memory.astype(np.int8), prepend=0))  # where a group begins, and where it ends
    found = []
    heirs: dict[int, int] = {}
    at = 0
    for begin, end in zip(borders[::2], [*borders[1::2], len(records)][: len(borders[::2])], strict=True):
        found.append((heirs, records[at:begin]))
        group = records[begin:end]
        heirs = dict(zip(group["worker"].tolist(), group["share"].tolist(), strict=True))
        at = end
    return [*found, (heirs, records[at:])]
