"""A sweep's runs written by hand with all that a report reads: curves, environments, decodings and their texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

from finished_runs import decode, finish

from nmt.config import RunConfig
from nmt.config.identity import decode_id
from nmt.data.corpus import ParallelText
from nmt.runs import LocalRunStore
from sweeps.plan import SweepPlan
from sweeps.spec import Published, RowSpec, SweepSpec

SPEC = SweepSpec(
    name="test",
    title="A <b>bold</b> question",
    replicates=2,
    baseline="B",
    published_source="a paper",
    rows=(
        RowSpec(label="A", experiment="t2_lstm", published=Published(mean=22.0)),
        RowSpec(label="B", published=Published(mean=21.5)),
        RowSpec(label="C", experiment="t5_none_state"),
    ),
)
OVERRIDES = ["batch.size=8", "tracking.uri=postgresql://ann:secret@host/db"]
SOURCES = ["one", "one two three", "one two", "a b c d", "a b c d e", "f", "g"]
REFERENCES = ["eins", "eins zwei drei", "eins zwei", "A B C D", "A B C D E", "F", "G"]
TEST_TEXT = ParallelText(SOURCES, REFERENCES)

ENVIRONMENT = {
    "code": {"version": "0.1.0", "commit": "ab" * 20, "patch_sha256": None},
    "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    "python": "3.11.7",
    "host": "secret-host",
    "cpu": {"model": "a processor", "cores": 2, "capability": "AVX512"},
    "threads": 1,
    "fingerprint": "cd" * 32,
    "data": {"test": {"kept": 500, "target_tokens": 6137}},
}


def evaluations(
    config: RunConfig, name: str, points: Sequence[tuple[int, float, float]], timing: str = "exclusive"
) -> None:
    """Evaluation lines of (step, BLEU, log-perplexity), a line of kind `train` before each, and a torn one behind."""
    lines = [json.dumps({"kind": "header", "format_version": 1, "run_id": name})]
    for step, bleu, log_perplexity in points:
        common = {"step": step, "target_tokens": 100 * step, "seconds": step / 10 * config.seed, "timing": timing}
        lines.append(json.dumps({"kind": "train", "loss": 1.0} | common))
        scores = {"val/decode/bleu": bleu, "val/teacher_forced/log_perplexity": log_perplexity}
        lines.append(json.dumps({"kind": "evaluation"} | common | scores))
    text = "\n".join([*lines, '{"kind": "evaluation", "ste'])
    LocalRunStore(config.paths.runs).write_text(name, "metrics.jsonl", text)


def whole(
    config: RunConfig,
    bleu: float,
    points: Sequence[tuple[int, float, float]],
    lines: Sequence[str] = (),
    **result: object,
) -> str:
    """A finished run with curves, environment and, where `lines` are given, outputs."""
    name = finish(config, bleu, **result)
    store = LocalRunStore(config.paths.runs)
    evaluations(config, name, points, str(result.get("timing", "exclusive")))
    store.write_json(name, "env.json", ENVIRONMENT)
    decode(config, f"{name}-checkpoint", bleu)
    if lines:
        text = "".join(f"{line}\n" for line in lines)
        store.write_text(name, f"decodes/{decode_id(f'{name}-checkpoint', config)}.txt", text)
    return name


def write_runs(plan: SweepPlan) -> None:
    """The runs of `SPEC`: A and B are there, A's outputs are wrong in lines 2 and 5; C has no run yet."""
    shutil.rmtree(plan.store.root, ignore_errors=True)
    wrong = [*REFERENCES[:1], "eins zwei", *REFERENCES[2:4], "x", *REFERENCES[5:]]
    for row, lines, shift in ((plan.rows[0], wrong, 0.0), (plan.rows[1], REFERENCES, 10.0)):
        for run in row.runs:
            points = [(10, 1.0 + run.config.seed, 4.0), (20, 5.0 * run.config.seed + shift, 3.0)]
            whole(run.config, 20.0 + run.config.seed + shift, points, lines)
