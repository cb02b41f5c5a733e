"""Run directories as a finished training leaves them, written by hand, for tests of what reads them."""

from __future__ import annotations

from typing import Any

from nmt.config import RunConfig, decode_id
from nmt.config.identity import run_id
from nmt.runs import LocalRunStore, RunStatus


def finish(config: RunConfig, bleu: float | None, *, state: str = "finished", **result: Any) -> str:
    """Write a finished run of `config` with this test BLEU (None: not decoded); returns its id."""
    store, name = LocalRunStore(config.paths.runs), run_id(config)
    checkpoint = f"{name}-checkpoint"
    store.write_text(name, "config.yaml", "")
    record = {
        "state": state,
        "reason": "budget",
        "steps": 100,
        "best": {
            "step": 80,
            "checkpoint_digest": checkpoint,
            "metrics": {"val/decode/bleu": 50.0, "val/teacher_forced/log_perplexity": 1.5},
        },
        "convergence": {"steps": 80, "target_tokens": 8000, "seconds": 4.0},
        "tokens_per_second": 2000.0,
        "timing": "exclusive",
        "parameters": 1_230_000,
    }
    store.write_json(name, "result.json", record | result)
    store.set_status(name, RunStatus(state=state, step=100, max_steps=100))
    if bleu is not None:
        decode(config, checkpoint, bleu)
    return name


def decode(config: RunConfig, checkpoint: str, bleu: float, metrics: dict[str, float] | None = None) -> None:
    """Write the record of decoding the test split with `config.search`; `metrics` stand beside BLEU and chrF."""
    record = {
        "decode_id": decode_id(checkpoint, config),
        "metrics": {"test/decode/bleu": bleu, "test/decode/chrf": bleu + 10} | (metrics or {}),
        "signatures": {"bleu": "nrefs:1|tok:13a"},
        "sentences": 500,
    }
    store = LocalRunStore(config.paths.runs)
    store.write_json(run_id(config), f"decodes/{record['decode_id']}.json", record)
