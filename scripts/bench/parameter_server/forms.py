"""Bytes of gradients in every form, in runs of real processes on a corpus, and what rounding does to a step's loss.

    PYTHONPATH=scripts python -m bench.parameter_server.forms data.dir=data/multi30k

Words are those of a configuration, laid over experiment=baseline scale=cpu_table.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.tables import table

STEPS = 20
BASE = ["experiment=baseline", "scale=cpu_table", "tracking=none", "device=cpu", "threads=1"]
SIZES = ["distribution=parameter_server", "distribution.workers=2", "distribution.servers=2"]
BSP = ["batch.micro_batches=2"]
ASP = ["distribution.mode=asp", "batch.per=push"]
FORMS = {
    "bsp": BSP,
    "bsp, bf16": [*BSP, "distribution.wire=bf16"],
    "bsp, sparse": [*BSP, "distribution.sparse=true"],
    "bsp, sparse, bf16": [*BSP, "distribution.sparse=true", "distribution.wire=bf16"],
    "asp": ASP,
    "asp, sparse": [*ASP, "distribution.sparse=true"],
    "asp, top 1 %": [*ASP, "distribution.top_k=0.01"],
    "asp, top 0.1 %, bf16": [*ASP, "distribution.top_k=0.001", "distribution.wire=bf16"],
}


def measure(words: Sequence[str], steps: int = STEPS) -> tuple[list[float], dict[str, float]]:
    """The losses of a run's first steps, and what its workers sent: the sums of `Sent.to_dict`, and what links counted.

    `formula` is what the parts of all payloads come to.
    """
    from distributed.parameter_server.strategy import ParameterServerStrategy
    from nmt.config import compose
    from nmt.training.fit import strategy_options
    from nmt.training.workload import workload_spec

    config = compose([*BASE, *SIZES, *words])
    with tempfile.TemporaryDirectory() as directory:
        strategy = ParameterServerStrategy(strategy_options(config, "bench/s1", Path(directory), 1))
        try:
            strategy.start(workload_spec(config, "cpu"))
            losses = [strategy.step(index, horizon=steps).loss for index in range(1, steps + 1)]
            strategy.synchronize()
            report = strategy.report()
        finally:
            strategy.close()
    own = [said for name, said in report["processes"].items() if name.startswith("worker")]
    found: dict[str, float] = {name: sum(said["wire"][name] for said in own) for name in own[0]["wire"]}
    size = {"fp32": 4, "bf16": 2}[config.distribution.wire]
    found["formula"] = found["head_bytes"] + size * found["elements"] + found["place_bytes"]
    found["links"] = sum(_pushed(said["links"]) for said in own)
    return losses, found


def _pushed(links: dict[str, Any]) -> int:
    """Payload bytes that a worker sent to servers; beside gradients the few of its facts."""
    return sum(link["sent"]["payload_bytes"] + link["sent"]["shared_bytes"] for link in links.values())


def main(words: Sequence[str]) -> int:
    """Print a table; returns the exit code."""
    rows = []
    exact: list[float] = []
    for name, own in FORMS.items():
        losses, sent = measure([*own, *words])
        exact = losses if own is BSP else exact
        change = max(abs(one - other) for one, other in zip(losses, exact, strict=True)) if own[0] in BSP else None
        rows.append(
            [
                name,
                f"{sent['bytes'] / STEPS:,.0f}",
                f"{100 * sent['bytes'] / sent['fp32_bytes']:.2f} %",
                f"{sent['rows'] / STEPS:,.0f}",
                f"{sent['bytes'] / sent['formula']:.4f}",
                f"{sent['links'] / sent['bytes']:.4f}",
                "" if change is None else f"{change:.1e}",
            ]
        )
    heads = ["form", "bytes a step", "of fp32", "rows a step", "÷ formula", "links ÷ bytes", "largest change of a loss"]
    print(table(heads, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
