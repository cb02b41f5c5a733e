"""`nmt evaluate`: the test split through trained checkpoints and any search; or two plain files, scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.arguments import names, option, parse
from nmt.errors import UserError
from nmt.runs import RunStore

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig, SearchConfig
    from nmt.training.checkpoint import LoadedModel

    Lend = Callable[[Path], AbstractContextManager[LoadedModel]]

DEVICES = ("auto", "cpu", "cuda")
COMBINATIONS = ("log_prob", "prob")

_EXAMPLES = """
Overrides: search=<name>, search.<key>=..., data.test.source=..., data.test.target=..., data.dir=..., paths.cache=...
Without any, the search is the run's own. A decoding is kept in the run directory and never made twice. Several runs or
checkpoints make an ensemble, whose decoding is kept in the first one's directory.
grid=<sweep> decodes with the search of each row of conf/sweep/<sweep>.yaml and prints the table over the runs given,
mean ± sd (max); a run id without a seed stands for all its replicates. What is there is not decoded again.

Examples:
  nmt evaluate run=3f2a
  nmt evaluate run=3f2a91c07be4/s2 search=beam10 search.length_penalty=0.8
  nmt evaluate run=3f2a91c07be4/s1,3f2a91c07be4/s2 ensemble=prob
  nmt evaluate run=3f2a91c07be4 grid=table6_beam
  nmt evaluate hypotheses=output.de references=test.de language=de
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What `nmt evaluate` takes beside config overrides."""

    run: list[str] = option(list, "run ids, unique beginnings of them, or run directories: the best checkpoint of each")
    checkpoint: list[str] = option(list, "instead of runs: checkpoint files inside run directories")
    ensemble: str = option("log_prob", "what several checkpoints average", choices=COMBINATIONS)
    grid: str = option("", "a sweep whose rows differ in their search: decode every run with each of them")
    sweep: str = option("", "with grid, instead of runs: all that this sweep has trained, at the scale=... given")
    hypotheses: str = option("", "instead of a run: a file with one output a line, plain or .gz")
    references: str = option("", "the file of reference translations that goes with it")
    language: str = option("", "target language of these files (de): chooses the Moses rules")
    device: str = option("auto", "where to decode", choices=DEVICES)
    threads: int = option(0, "CPU threads; 0: all cores", minimum=0)
    runs: str = option("", "directory of runs; unset: $NMT_RUNS, else runs", key="paths.runs")


def evaluate_run(
    store: RunStore,
    run_id: str,
    search: SearchConfig | None = None,
    *,
    config: RunConfig | None = None,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    checkpoints: Sequence[Path] = (),
    ensemble: str = "log_prob",
    lend: Lend | None = None,
) -> dict[str, Any]:
    """Decode and score the test split with a run's best checkpoint; the record of `decodes/<decode_id>.json`.

    A decoding that is there already is returned as it stands. The hypotheses lie beside it as `.txt`.

    Parameters
    ----------
    search: how to decode; None: as `config` says.
    config: the run's configuration, where another test text, device or path is wanted than in its `config.yaml`.
    device: `auto`, `cpu` or `cuda`, in place of `config.device`.
    progress: called with sentences done and sentences in all.
    checkpoints: files to decode with in place of the run's best; several form an ensemble that averages what `ensemble`
        names, and their digests are all in the decoding's identity.
    lend: makes the model of the best checkpoint, as long as it is needed, where this process cannot hold it.

    Raises UserError where the run has no checkpoint, the data has no test split or it cannot be read.
    """
    from nmt.config import load_run_config

    config = config or load_run_config(store.directory(run_id) / "config.yaml")
    config = replace(config, search=search or config.search, device=device or config.device)
    kept = None if checkpoints else kept_decoding(store, run_id, config)
    if kept is not None:
        return kept

    from nmt.evaluation.models import load_models
    from nmt.training.checkpoint import find_checkpoint
    from nmt.training.device import prepare_device

    target = prepare_device(config)
    paths = list(checkpoints) or [find_checkpoint(store, run_id, "best")]
    lent = nullcontext(load_models(paths, ensemble, target)) if lend is None else lend(paths[0])
    about: dict[str, Any] = {"checkpoints": [_in_store(path) for path in paths]} if checkpoints else {}
    about |= {"ensemble": ensemble} if len(paths) > 1 else {}
    with lent as loaded:
        return _decoded(store, run_id, config, loaded, target, progress, about)


def _decoded(
    store: RunStore,
    run_id: str,
    config: RunConfig,
    loaded: LoadedModel,
    target: str,
    progress: Callable[[int, int], None] | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of decoding with a model, which may be kept already; `about` is added to a new one."""
    from nmt.config import decode_id
    from nmt.data.prepare import prepare
    from nmt.evaluation.catalogue import DECODED, key
    from nmt.evaluation.decode import decode, teacher_forced
    from nmt.evaluation.metrics import score
    from nmt.evaluation.postprocess import Postprocessor
    from nmt.search.ensemble import Ensemble
    from nmt.training.workload import precision_context

    identity = decode_id(loaded.digest, config)
    kept = _kept(store, run_id, identity)
    if kept is not None:
        return kept
    test = prepare(config).test
    if not len(test.source):
        raise UserError("the data has no test split", where="data.test", hint="give data.test.source and .target")
    post = Postprocessor(loaded.source_tokenizer, loaded.target_tokenizer, config.data, config.search)
    began = time.perf_counter()
    with precision_context(config, target, config.search):
        n_best = decode(loaded.model, test.source, config.search, target, progress, attention=post.needs_attention)
    seconds = time.perf_counter() - began
    forced: dict[str, float] = {}
    if not isinstance(loaded.model, Ensemble):
        with precision_context(config, target):
            forced = teacher_forced(loaded.model, test, target)._asdict()
    lines = [post.text(best, line) for (best, *_), line in zip(n_best, test.source_text, strict=True)]
    scores = score(lines, test.target_text, config.data.target_language)
    record = {
        "decode_id": identity,
        "run_id": run_id,
        "checkpoint_digest": loaded.digest,
        "step": loaded.step,
        "search": asdict(config.search),
        "split": "test",
        "metrics": {key("test", name): scores[name] for name in DECODED}
        | {f"test/teacher_forced/{name}": value for name, value in forced.items()},
        "signatures": scores["signatures"],
        "sentences": len(lines),
        "seconds": seconds,
        "device": target,
        **about,
    }
    store.write_text(run_id, _name(identity, "txt"), "".join(f"{line}\n" for line in lines))
    store.write_json(run_id, _name(identity, "json"), record)  # last: it says that both are there
    return store.read_json(run_id, _name(identity, "json")) or record


def kept_decoding(store: RunStore, run_id: str, config: RunConfig) -> dict[str, Any] | None:
    """The record of decoding the test split with a run's best checkpoint as `config` says; None where there is none."""
    from nmt.config import decode_id

    result = store.read_json(run_id, "result.json")
    return None if result is None else _kept(store, run_id, decode_id(result["best"]["checkpoint_digest"], config))


def evaluate_files(hypotheses: str, references: str, language: str) -> dict[str, Any]:
    """Every metric of two files with a line a sentence; see `nmt.evaluation.metrics.score`.

    Raises UserError for a file that cannot be read and for unequal numbers of lines.
    """
    from nmt.data.corpus import read_lines
    from nmt.evaluation.metrics import score

    outputs, correct = read_lines(Path(hypotheses)), read_lines(Path(references))
    if len(outputs) != len(correct):
        raise UserError(
            f"has {len(outputs)} lines, and {references} has {len(correct)}",
            where=hypotheses,
            hint="each hypothesis needs its reference",
        )
    return score(outputs, correct, language)


def main(argv: Sequence[str]) -> int:
    """Evaluate what the command line asks for and print the figures; returns the exit code."""
    options, words = parse(
        EvaluateOptions,
        argv,
        verb="nmt evaluate",
        summary="Decode the test split with trained checkpoints and score it; or score two files.",
        epilog=_EXAMPLES,
        rest=True,
    )
    if words:  # otherwise two files are scored without loading Hydra
        from nmt.config.override import refuse_unknown

        refuse_unknown(words, names(EvaluateOptions))
    if options.grid or options.sweep:
        from nmt.registry import load

        return int(load("sweeps.grid:main")(options, words))
    given = [bool(options.run or options.checkpoint), bool(options.hypotheses or options.references)]
    if given.count(True) != 1:
        raise UserError("give run=..., or hypotheses=... and references=...", where="nmt evaluate")
    if given[0]:
        return _evaluate_checkpoints(options, words)
    if words:
        raise UserError("needs a run", where=words[0])
    for key in ("hypotheses", "references"):
        if not getattr(options, key):
            raise UserError("is missing", where=key)
    found = evaluate_files(options.hypotheses, options.references, options.language)
    print(table(found, found["signatures"]))
    return 0


def table(metrics: Mapping[str, Any], signatures: Mapping[str, str]) -> str:
    """A line a metric: name, value, signature; of ROUGE precision and recall at its end."""
    values = {name: metrics.get(f"test/decode/{name}", metrics.get(name)) for name in signatures}
    lines = []
    for name, signature in signatures.items():
        if name.endswith(("_p", "_r")):
            continue
        line = f"{name:<12}{values[name]:>7.2f}  {signature}"
        if f"{name}_p" in values:
            line += f"  (precision {values[f'{name}_p']:.2f}, recall {values[f'{name}_r']:.2f})"
        lines.append(line)
    forced = {name: metrics.get(f"test/teacher_forced/{name}") for name in ("token_accuracy", "log_perplexity")}
    if None not in forced.values():
        text = "teacher-forced: token accuracy {token_accuracy:.2f}, log-perplexity {log_perplexity:.3f} nats a token"
        lines.append(text.format(**forced))
    return "\n".join(lines)


def _evaluate_checkpoints(options: EvaluateOptions, words: Sequence[str]) -> int:
    from nmt.config.override import override
    from nmt.evaluation.models import configurations, find_checkpoints, run_of
    from nmt.evaluation.progress import progress_bar

    paths = find_checkpoints(options.run, options.checkpoint, options.runs, "nmt evaluate")
    store, run_id = run_of(paths[0])
    directory = store.directory(run_id)
    first, *others = configurations(paths)
    config = override(first, words, options=names(EvaluateOptions), members=others)
    config = placed(config, directory, options.device, options.threads)
    best_of_one_run = len(options.run) == 1
    with progress_bar("decoding") as progress:
        record = evaluate_run(
            store,
            run_id,
            config=config,
            progress=progress,
            checkpoints=() if best_of_one_run else paths,
            ensemble=options.ensemble,
        )
    who = f"run {run_id}, step {record['step']}"
    if not best_of_one_run:
        who = ", ".join(map(_in_store, paths))
        who = f"ensemble ({options.ensemble}) of {who}" if len(paths) > 1 else f"checkpoint {who}"
    print(f"{who}, {record['split']} split, {record['sentences']} sentences")
    print(f"{describe_search(config.search)}, {record['seconds']:.1f} s decoding")
    print(table(record["metrics"], record["signatures"]))
    print(f"hypotheses: {directory / _name(record['decode_id'], 'txt')}")
    return 0


def placed(config: RunConfig, directory: Path, device: str, threads: int) -> RunConfig:
    """A run's configuration for work here: a run may have moved since it was trained, its prepared data with it."""
    paths = replace(config.paths, runs=str(directory.parents[1]))
    return replace(config, device=device, threads=threads, paths=paths)


def describe_search(search: SearchConfig) -> str:
    """`beam 5, length penalty 0.5`, and every other key of the search that is not at its default."""
    from nmt.config.identity import canonical
    from nmt.config.schema import TRAIN

    words = [f"beam {search.beam}", f"length penalty {search.length_penalty:g}"]
    others = [name for name in canonical(search, {TRAIN}) if name not in ("beam", "length_penalty")]
    return ", ".join([*words, *(f"{name} {getattr(search, name)}" for name in others)])


def _in_store(path: Path) -> str:
    """A checkpoint as `<train_id>/s<seed>/checkpoints/<file>`."""
    return "/".join(path.parts[-4:])


def _name(identity: str, suffix: str) -> str:
    return f"decodes/{identity}.{suffix}"


def _kept(store: RunStore, run_id: str, identity: str) -> dict[str, Any] | None:
    if not (store.directory(run_id) / _name(identity, "txt")).is_file():
        return None
    return store.read_json(run_id, _name(identity, "json"))
