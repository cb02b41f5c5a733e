"""What the wire forms of a gradient cost beside a copy of it, and how many bytes they are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from bench.children import Job, Report
from bench.machine import Spread
from bench.tables import Part, table

ELEMENTS = 8 << 20
WIDTH, TOUCHED = 512, 0.1  # of an embedding table that fills the gradient
COPY = "copy"


def wire_form_jobs(rounds: int, elements: int = ELEMENTS) -> list[Job]:
    """One job, in a process of its own."""
    return [Job("wire forms", measure_wire_forms, (rounds, elements), units=rounds)]


def measure_wire_forms(report: Report, rounds: int, elements: int) -> dict[str, Any]:
    """CPU seconds of one thread for encoding, decoding and adding a gradient in every form, a copy of it beside them.

    Every round times each once, after one that does not count. In the embedding table a tenth of the rows were touched.
    """
    import torch

    from distributed.parameter_server.compression import Dense, Rows, SparseRows
    from distributed.parameter_server.top_k import ErrorFeedback, TopK

    torch.set_num_threads(1)
    torch.manual_seed(0)
    elements = elements // WIDTH * WIDTH
    dense, out = torch.randn(elements) * 1e-3, torch.zeros(elements)
    embedding = torch.where(torch.rand(elements // WIDTH, 1) < TOUCHED, dense.view(-1, WIDTH), 0.0).view(-1)
    tables = [Rows(0, elements // WIDTH, WIDTH)]
    forms: dict[str, tuple[Any, Any]] = {
        "fp32": (Dense(elements), dense),
        "bf16": (Dense(elements, "bf16"), dense),
        "touched rows, a tenth": (SparseRows(elements, tables), embedding),
        "touched rows, a tenth, bf16": (SparseRows(elements, tables, "bf16"), embedding),
        "touched rows, all": (SparseRows(elements, tables), dense),
        "top 1 %": (TopK(0, elements, 0.01, ErrorFeedback(elements)), dense),
        "top 0.1 %, momentum": (TopK(0, elements, 0.001, ErrorFeedback(elements, 0.9)), dense),
    }
    room = torch.empty(4 * elements + (1 << 20), dtype=torch.uint8)
    times: dict[str, dict[str, list[float]]] = {COPY: {COPY: []}}
    sizes: dict[str, int] = {}
    for number in range(rounds + 1):
        times[COPY][COPY].append(_seconds(out.copy_, dense))
        for name, (form, gradient) in forms.items():
            own = times.setdefault(name, {"encode": [], "decode": [], "add": []})
            payload = form.encode(gradient, number + 1, room).clone()
            sizes[name] = payload.numel()
            own["encode"].append(_seconds(form.encode, gradient, number + 1, room))
            own["decode"].append(_seconds(form.decode, payload, out))
            own["add"].append(_seconds(form.decode, payload, out, True))
        if number:
            report()
    return {
        "elements": elements,
        "load_average": os.getloadavg()[0],
        "bytes": sizes,
        "seconds": {
            name: {what: asdict(Spread.of(found[1:])) for what, found in own.items()} for name, own in times.items()
        },
    }


def wire_form_part(found: Sequence[dict[str, Any]]) -> Part:
    """Milliseconds of each form; ratios are bytes by those of fp32, and encoding and decoding by a copy."""
    (figures,) = found
    rows, ratios = [], {}
    copy = figures["seconds"][COPY][COPY]["median"]
    for name, size in figures["bytes"].items():
        own = figures["seconds"][name]
        ratios[f"wire/{name}/bytes"] = size / (4 * figures["elements"])
        ratios[f"wire/{name}/over_copy"] = (own["encode"]["median"] + own["decode"]["median"]) / copy
        shown = [Spread(**own[what]).shown(lambda value: f"{1e3 * value:.1f}") for what in ("encode", "decode", "add")]
        rows.append([name, f"{100 * ratios[f'wire/{name}/bytes']:.2f} %", *shown])
    heads = ["form", "bytes of fp32", "encode, ms", "decode, ms", "add, ms"]
    text = (
        f"{figures['elements']:,} elements, CPU milliseconds of one thread; a copy takes {1e3 * copy:.1f}. "
        f"Load average {figures['load_average']:.1f}."
    )
    return Part("Wire forms of a gradient", [text, table(heads, rows)], list(found), ratios)


def _seconds(run: Callable[..., Any], *arguments: Any) -> float:
    began = time.thread_time()
    run(*arguments)
    return time.thread_time() - began


if __name__ == "__main__":
    print(wire_form_part([measure_wire_forms(lambda: None, 5, ELEMENTS)]).markdown())
