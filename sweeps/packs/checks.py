"""The checks of a pack: its sums, its records against each other, its scores, the cells of its table.

Each check yields findings: what agrees, what contradicts, and what could not be looked at with what is at hand.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nmt.config import RunConfig
from nmt.config.identity import canonical, digest, explain_difference
from nmt.config.schema import TRAIN
from nmt.evaluation.catalogue import DECODED
from nmt.evaluation.metrics import score
from nmt.evaluation.sentence_statistics import corpus_scores, sentence_statistics
from nmt.provenance.evidence import Evidence, read_evidence
from sweeps.imported.rows import imported_rows
from sweeps.imported.store import digest_of
from sweeps.packs.contents import Progress, statistics_name
from sweeps.packs.files import CSV, MANIFEST, RUNS, TABLE, manifest_of, names_in
from sweeps.packs.rebuilt import Rebuilt
from sweeps.reporting.full_table import to_csv
from sweeps.reporting.table import baseline_tests, make_table, to_markdown
from sweeps.results import LOG_PERPLEXITY, Replicate
from sweeps.sentences import hypotheses

CODE = ("components", "numerics_version", "chunked_loss_version")  # what of an identity is the code's
TOLERANCE = 1e-6  # of a score that another version of a library, or a sum of sentences, gives
AGREES, DIFFERS, UNCHECKED = "ok", "DIFFERS", "not checked"

References = Mapping[int, Sequence[str] | None]
"""The references of each test set of a pack; None where they are not at hand."""


@dataclass(frozen=True)
class Finding:
    """One line of a verification."""

    verdict: str
    what: str


def check_files(folder: Path) -> Iterator[Finding]:
    """Every file is what the manifest says, none is missing and none is too many."""
    said = json.loads((folder / MANIFEST).read_bytes()).get("files", {})
    names = names_in(folder)
    found = manifest_of({name: (folder / name).read_bytes() for name in names if name in said})["files"]
    wrong = [name for name in said if name in found and found[name] != said[name]]
    for what, which in (
        ("is not what the manifest says", wrong),
        ("is missing", sorted(said.keys() - set(names))),
        ("is not in the manifest", [name for name in names if name not in said]),
    ):
        yield from (Finding(DIFFERS, f"{name} {what}") for name in which)
    if found == said and len(names) == len(said):
        yield Finding(AGREES, f"{len(said)} files are what the manifest says")


def check_records(folder: Path, rebuilt: Rebuilt) -> Iterator[Finding]:
    """Each run's files say one thing: identity and id, configuration and identity, result and evaluations."""
    checked = 0
    for replicate in _replicates(rebuilt):
        contradictions = list(_contradictions(read_evidence(folder / RUNS / replicate.run_id), replicate))
        yield from (Finding(DIFFERS, f"run {replicate.run_id}: {text}") for text in contradictions)
        checked += not contradictions
    yield Finding(AGREES, f"records of {checked} runs agree: id, configuration, evaluations, chosen checkpoint")


def check_scores(
    folder: Path, rebuilt: Rebuilt, references: References, progress: Progress | None = None
) -> Iterator[Finding]:
    """Each score on record comes out of the outputs again, or of the statistics of their sentences."""
    exact, weaker = 0, 0
    scored = _scored(rebuilt)
    for number, (label, test_set, replicate) in enumerate(scored):
        if progress:
            progress(number, len(scored))
        language = rebuilt.about["test_sets"][test_set]["language"]
        outputs, lines = hypotheses(replicate), references[test_set]
        if lines is not None:
            problems = list(_wrong_scores(replicate, outputs, lines, language))
            exact += not problems
        else:
            problems = list(_wrong_statistics(replicate, outputs, folder / statistics_name(replicate), language))
            weaker += not problems
        yield from (Finding(DIFFERS, f"{label}, run {replicate.run_id}: {text}") for text in problems)
    if exact:
        yield Finding(AGREES, f"scores of {exact} decodings, from outputs and references")
    if weaker:
        yield Finding(AGREES, f"scores of {weaker} decodings, from the statistics of their sentences alone")
        yield Finding(
            UNCHECKED,
            "whether these statistics are of the outputs, beyond their lengths, and the other metrics of table.csv: "
            "the references are not at hand (data.dir=...)",
        )


def check_references(rebuilt: Rebuilt, references: References) -> Iterator[Finding]:
    """The references at hand are those that the rows were scored on."""
    for number, test in enumerate(rebuilt.about["test_sets"]):
        lines = references[number]
        if lines is not None and digest_of(lines) != test["references_sha256"]:
            yield Finding(DIFFERS, f"the references at hand of {test['corpus']} are not those that were scored on")
        elif lines is not None:
            yield Finding(AGREES, f"references of {test['corpus']}: {len(lines)} sentences, as their digest says")


def check_table(folder: Path, rebuilt: Rebuilt, same_code: bool) -> Iterator[Finding]:
    """Every cell of table.md and table.csv comes out again; lines around the table too, where the code is the same."""
    tests = baseline_tests(rebuilt.plan, rebuilt.results)
    made = to_markdown(make_table(rebuilt.plan, rebuilt.results, tests=tests))
    said = (folder / TABLE).read_text(encoding="utf-8")
    yield from _compare_cells(TABLE, _markdown_cells(said), _markdown_cells(made))
    yield from _compare_cells(
        CSV,
        _csv_cells((folder / CSV).read_text(encoding="utf-8")),
        _csv_cells(to_csv(rebuilt.plan, rebuilt.results, tests)),
    )
    around, now = ([line for line in text.splitlines() if line and not line.startswith("|")] for text in (said, made))
    if around == now:
        yield Finding(AGREES, f"{len(now)} lines of title, marks and notes around {TABLE}")
    else:
        other = next(line for line in around + now if line not in around or line not in now)
        verdict = DIFFERS if same_code else UNCHECKED
        yield Finding(verdict, f"lines around {TABLE}, which {'this' if same_code else 'other'} code wrote: {other}")
    yield Finding(
        UNCHECKED, "times, memory and parameters: as the runs recorded them; nothing else in a pack says them"
    )


def _scored(rebuilt: Rebuilt) -> list[tuple[str, int, Replicate]]:
    """Every decoding behind the table, with its row and the number of its test set; imported ones are of the first."""
    rows = zip(rebuilt.about["rows"], rebuilt.results, strict=True)
    ours = [(result.label, row["test_set"], one) for row, result in rows for one in result.complete if one.metrics]
    return ours + [(row.label, 0, one) for row in imported_rows(rebuilt.plan) for one in row.complete]


def _contradictions(run: Evidence, replicate: Replicate) -> Iterator[str]:
    identity = {name: value for name, value in run.identity.items() if name != "format_version"}
    name = replicate.run_id.partition("/")[0]
    if digest(identity) != name:
        yield f"identity.json makes {digest(identity)}, not {name}"
    if run.config.seed != replicate.seed or replicate.run_id != f"{name}/s{replicate.seed}":
        yield f"has seed {run.config.seed}"
    if differences := explain_difference(_hashed(canonical(_without_files(run.config), {TRAIN})), _hashed(identity)):
        yield f"config.yaml is not what was hashed: {', '.join(differences[:3])}"
    best = run.result.get("best") or {}
    line = next((one for one in run.records if one.get("kind") == "evaluation" and one["step"] == best.get("step")), {})
    if line.get("parameters_sha256") != best.get("checkpoint_digest"):
        yield f"the chosen checkpoint is not the one of the evaluation at step {best.get('step')}"
    metrics = best.get("metrics") or {}
    if any(line.get(metric) != value for metric, value in metrics.items()):
        yield f"validation scores of result.json are not those of the evaluation at step {best.get('step')}"
    if replicate.log_perplexity != line.get(LOG_PERPLEXITY):
        yield "the log-perplexity is not that of its evaluation"
    record = run.decodings[replicate.decode_id].record if replicate.decode_id in run.decodings else {}
    if replicate.metrics and record.get("checkpoint_digest") != best.get("checkpoint_digest"):
        yield f"decodes/{replicate.decode_id}.json is of another checkpoint"
    if replicate.metrics and record.get("decode_id") != replicate.decode_id:
        yield f"decodes/{replicate.decode_id}.json is of another decoding"


def _without_files(config: RunConfig) -> RunConfig:
    """The configuration without the files that count by their content, which is not in a pack."""
    search = replace(config.validation.search, dictionary="")
    return replace(
        config,
        tokenizer=replace(config.tokenizer, source_vocabulary="", target_vocabulary=""),
        validation=replace(config.validation, search=search),
    )


def _hashed(form: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's identity that its configuration says by itself: not its text, nor the code."""
    names = ("lowercase", "moses", "overlong", "max_length", "max_ratio", "max_sentences", "generator", "options")
    tokenizer = form.get("tokenizer") or {}
    own = {name: value for name, value in form.items() if name not in CODE}
    return own | {
        "data": {name: value for name, value in (form.get("data") or {}).items() if name in names},
        "tokenizer": {name: value for name, value in tokenizer.items() if not name.endswith("_vocabulary")},
    }


def _wrong_scores(replicate: Replicate, outputs: Sequence[str], lines: Sequence[str], language: str) -> Iterator[str]:
    if len(outputs) != len(lines):
        yield f"{len(outputs)} outputs for {len(lines)} references"
        return
    names = [name for name in replicate.metrics if name in DECODED]
    found = score(outputs, lines, language, names)
    wrong = []
    for name in names:
        same = found["signatures"][name] == replicate.signatures.get(name)
        tolerance = 0.0 if same else TOLERANCE
        if not abs(found[name] - replicate.metrics[name]) <= tolerance:
            wrong.append(f"{name} is {found[name]!r} on these outputs, and {replicate.metrics[name]!r} on record")
    if wrong:
        yield wrong[0] + (f"; and {len(wrong) - 1} more metrics" if len(wrong) > 1 else "")


def _wrong_statistics(replicate: Replicate, outputs: Sequence[str], path: Path, language: str) -> Iterator[str]:
    if not path.is_file():
        yield "there are no statistics of its sentences"
        return
    sentences = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(sentences) != len(outputs):
        yield f"statistics of {len(sentences)} sentences for {len(outputs)} outputs"
        return
    for name in sentences[0] if sentences else ():
        parts = np.array([sentence[name] for sentence in sentences], dtype=np.float64)
        found = float(corpus_scores(name, parts.sum(axis=0)))
        if not abs(found - replicate.metrics[name]) <= TOLERANCE:
            yield f"{name} is {found!r} of the sentences' statistics, and {replicate.metrics[name]!r} on record"
        if name in ("bleu", "bleu_lc", "bleu_tok", "bleu_tok_lc"):
            # The lengths of outputs and the numbers of their n-grams do not need the references.
            own = [0, *range(6, 10)]
            ours = sentence_statistics(outputs, outputs, language, name)
            wrong = np.flatnonzero((ours[:, own] != parts[:, own]).any(axis=1))
            if len(wrong):
                yield f"the statistics of sentence {wrong[0] + 1} are not of its output (its length differs)"


def _compare_cells(
    file: str, said: Mapping[tuple[str, str], str], made: Mapping[tuple[str, str], str]
) -> Iterator[Finding]:
    wrong = [cell for cell in said if cell in made and said[cell] != made[cell]]
    for row, column in wrong:
        cell = (row, column)
        yield Finding(DIFFERS, f"{file}, row {row}, column {column}: '{said[cell]}', and it comes to '{made[cell]}'")
    rows, columns = ({cell[part] for cell in made} for part in (0, 1))
    for row in dict.fromkeys(row for row, _ in said if row not in rows):
        yield Finding(DIFFERS, f"{file}, row {row}: nothing in the pack makes one")
    for column in dict.fromkeys(column for _, column in said if column not in columns):
        yield Finding(UNCHECKED, f"{file}, column {column}: this code makes none")
    missing = [cell for cell in made if cell not in said and cell[0] not in {row for row, _ in said}]
    for row in dict.fromkeys(row for row, _ in missing):
        yield Finding(DIFFERS, f"{file} has no row {row}")
    agree = sum(said[cell] == made[cell] for cell in said if cell in made)
    yield Finding(AGREES, f"{agree} of {len(said)} cells of {file} come out again")


def _markdown_cells(text: str) -> dict[tuple[str, str], str]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return _by_row_and_column(rows[0], rows[2:]) if len(rows) > 1 else {}


def _csv_cells(text: str) -> dict[tuple[str, str], str]:
    rows = list(csv.reader(io.StringIO(text)))
    return _by_row_and_column(rows[0], rows[1:]) if rows else {}


def _by_row_and_column(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[tuple[str, str], str]:
    return {(row[0], column): cell for row in rows for column, cell in zip(columns, row, strict=False)}


def _replicates(rebuilt: Rebuilt) -> list[Replicate]:
    """Each complete replicate once for each way in which it was decoded."""
    found = {(one.run_id, one.decode_id): one for row in rebuilt.results for one in row.complete}
    return list(found.values())
