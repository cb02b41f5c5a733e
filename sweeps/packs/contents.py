"""What goes into a pack: a sweep's plan and its complete replicates, as files by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import nmt
from nmt.config import load_run_config
from nmt.environment import package_versions
from nmt.errors import UserError
from nmt.evaluation.sentence_statistics import has_sentence_statistics, sentence_statistics
from nmt.provenance.evidence import read_lines
from nmt.records import read_record
from sweeps.aggregate import RowResult, aggregate
from sweeps.imported.rows import find_test_set, imported_rows
from sweeps.imported.store import FOLDER as IMPORTED
from sweeps.imported.store import TestSet, imported_systems
from sweeps.packs.cleaning import cleaned, cleaned_config, cleaned_words
from sweeps.packs.files import ABOUT, CSV, FORMAT_VERSION, README, REFERENCES, RUNS, SPEC, STATISTICS, TABLE, as_json
from sweeps.plan import SweepPlan
from sweeps.reporting.full_table import to_csv
from sweeps.reporting.table import baseline_tests, make_table, to_markdown
from sweeps.results import Replicate
from sweeps.sentences import hypotheses
from sweeps.spec import SweepSpec

KEPT_METRICS = ("bleu", "chrf", "ter")  # whose sentence statistics a pack has, beside the table's own metric
RECORDS = ("identity.json", "env.json", "result.json")

Files = dict[str, bytes]
Progress = Callable[[int, int], None]


def pack_files(plan: SweepPlan, *, with_references: bool = False, progress: Progress | None = None) -> Files:
    """Every file of a sweep's pack but the manifest, by name.

    `progress` is called with decodings done and decodings in all: statistics of a thousand sentences take a second.
    Raises UserError where nothing of the sweep is complete, and where the references are not at hand: without them
    neither statistics of sentences can be made, nor the digest that says what the rows were scored on.
    """
    plan = dataclasses.replace(plan, superseded=())  # of this store's history; not of what was measured
    results = aggregate(plan)
    if not any(row.complete for row in results):
        raise UserError(
            "nothing of it is complete", where=f"sweep={plan.name}", hint="nmt sweep first, or results=docs/results"
        )
    test_sets, tests = _test_sets(plan), baseline_tests(plan, results)
    files: Files = {
        SPEC: spec_yaml(plan.spec, plan.config.replicates).encode(),
        TABLE: to_markdown(make_table(plan, results, tests=tests)).encode(),
        CSV: to_csv(plan, results, tests).encode(),
    }
    if with_references:
        for number, (_, lines) in enumerate(test_sets.values()):
            files[_references_name(number)] = "".join(f"{line}\n" for line in lines).encode()
    metrics = (*KEPT_METRICS, plan.config.validation.metric)
    done, total = 0, sum(len(row.complete) for row in results)
    for planned, row in zip(plan.rows, results, strict=True):
        test, lines = test_sets[str(planned.config.data.test)]
        for replicate in row.complete:
            files |= run_files(replicate)
            if not with_references and statistics_name(replicate) not in files:
                files |= statistics_file(replicate, lines, test.language, metrics)
            done += 1
            if progress:
                progress(done, total)
    for row in imported_rows(plan):
        files |= _imported_files(plan, row)
        (test, lines), *_ = test_sets.values()
        for replicate in row.complete if not with_references else ():
            files |= statistics_file(replicate, lines, test.language, metrics)
    files[ABOUT] = as_json(_about(plan, results, test_sets, with_references))
    files[README] = _readme(plan, with_references).encode()
    return files


def spec_yaml(spec: SweepSpec, replicates: int) -> str:
    """The sweep as `sweeps.spec` reads it, with all that it says and its number of replicates as resolved."""
    data = dataclasses.asdict(dataclasses.replace(spec, replicates=replicates, until="", overrides=()))
    data["overrides"] = cleaned_words(spec.overrides)
    data["rows"] = [row | {"overrides": cleaned_words(tuple(row["overrides"]))} for row in data["rows"]]
    del data["name"]
    return yaml.safe_dump(_without_empty(data), sort_keys=False, allow_unicode=True, width=116)


def run_files(replicate: Replicate) -> Files:
    """The files of a run that its row's figures rest on."""
    source, place = replicate.directory, f"{RUNS}/{replicate.run_id}"
    config = cleaned_config(load_run_config(source / "config.yaml"))
    files = {f"{place}/config.yaml": yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()}
    for name in RECORDS:
        if record := read_record(source, name):
            files[f"{place}/{name}"] = as_json(cleaned(record))
    lines = [json.dumps(cleaned(dict(line)), ensure_ascii=False) for line in read_lines(source / "metrics.jsonl")]
    files[f"{place}/metrics.jsonl"] = "".join(f"{line}\n" for line in lines).encode()
    decoding = f"decodes/{replicate.decode_id}"
    if replicate.decode_id and (record := read_record(source, f"{decoding}.json")):
        files[f"{place}/{decoding}.json"] = as_json(cleaned(record))
        files[f"{place}/{decoding}.txt"] = (source / f"{decoding}.txt").read_bytes()
    return files


def statistics_file(replicate: Replicate, lines: Sequence[str], language: str, metrics: Sequence[str]) -> Files:
    """The sufficient statistics of each sentence: a line of JSON each, a list of numbers for each metric."""
    if not replicate.metrics:
        return {}
    outputs = hypotheses(replicate)
    names = [name for name in dict.fromkeys(metrics) if has_sentence_statistics(name) and name in replicate.metrics]
    parts = {name: sentence_statistics(outputs, lines, language, name).tolist() for name in names}
    text = "".join(
        json.dumps({name: [_whole(value) for value in rows[number]] for name, rows in parts.items()}) + "\n"
        for number in range(len(outputs))
    )
    return {statistics_name(replicate): text.encode()}


def statistics_name(replicate: Replicate) -> str:
    """Where the pack keeps the statistics of a replicate's sentences."""
    return f"{STATISTICS}/{replicate.run_id}/{replicate.decode_id}.jsonl"


def _references_name(number: int) -> str:
    return REFERENCES if not number else REFERENCES.replace(".", f"-{number + 1}.")


def _test_sets(plan: SweepPlan) -> dict[str, tuple[TestSet, list[str]]]:
    """The test set of each row, by the files that its configuration names."""
    found: dict[str, tuple[TestSet, list[str]]] = {}
    for row in plan.rows:
        name = str(row.config.data.test)
        if name not in found:
            found[name] = find_test_set(row.config)
    return found


def _about(
    plan: SweepPlan,
    results: Sequence[RowResult],
    test_sets: Mapping[str, tuple[TestSet, list[str]]],
    with_references: bool,
) -> dict[str, Any]:
    numbers = {name: number for number, name in enumerate(test_sets)}
    known = {one.code for row in results for one in row.complete if one.code}
    return {
        "format_version": FORMAT_VERSION,
        "sweep": plan.name,
        "scale": plan.config.scale.name,
        "overrides": cleaned_words(plan.overrides),
        "metric": plan.config.validation.metric,
        "made_with": {"nmt": nmt.__version__, "code": plan.code.name, "packages": package_versions()},
        "codes_that_count_as_one": sorted(code for code in known if plan.code.made(code)),
        "test_sets": [
            {
                "references_sha256": test.references_sha256,
                "sentences": test.sentences,
                "language": test.language,
                "corpus": test.corpus,
                "file": _references_name(number) if with_references else None,
            }
            for number, (test, _) in enumerate(test_sets.values())
        ],
        "rows": [
            {
                "label": row.label,
                "train_id": planned.train_id,
                "differs": list(planned.differs),
                "same_runs_as": planned.same_runs_as,
                "test_set": numbers[str(planned.config.data.test)],
                "config": cleaned_config(planned.config),
                "runs": [
                    {"run_id": one.run_id, "seed": one.seed, "decode_id": one.decode_id, "complete": one.complete}
                    for one in row.replicates
                ],
            }
            for planned, row in zip(plan.rows, results, strict=True)
        ],
    }


def _imported_files(plan: SweepPlan, row: RowResult) -> Files:
    """What was imported for a row, under the name that it has beside the runs."""
    files: Files = {}
    for system in imported_systems(plan.store.root):
        if system.directory == row.replicates[0].directory:
            for path in _files_below(system.directory):
                name = f"{RUNS}/{IMPORTED}/{path.relative_to(system.directory.parents[1]).as_posix()}"
                files[name] = path.read_bytes()
    return files


def _files_below(folder: Path) -> Iterator[Path]:
    yield folder / "about.json"
    yield from sorted((folder / "decodes").glob("*.*"))


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _without_empty(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _without_empty(value) for name, value in data.items() if value not in (None, "", [], (), {})}
    return [_without_empty(value) for value in data] if isinstance(data, list | tuple) else data


def _readme(plan: SweepPlan, with_references: bool) -> str:
    given = "are in it" if with_references else "are not in it: a corpus has a licence of its own"
    return f"""# {plan.spec.title}

The evidence behind `{TABLE}`: the sweep `{plan.name}` at scale `{plan.config.scale.name}`, its runs' configurations,
environments, results, learning curves and outputs on the test set. Checkpoints are not in it. The references {given}.

    nmt verify pack=<this file or folder>

recomputes every cell of the table without training: from the outputs and the references where these are at hand
(`data.dir=` says where the corpus lies), else from the statistics of each sentence in `{STATISTICS}/`.
`{ABOUT}` says what was asked, of which code, and which runs each row rests on; `manifest.json` has all files' sums.
`nmt sweep sweep={SPEC}` trains the same runs again.
"""
