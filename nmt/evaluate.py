"""`nmt evaluate`: the test split of a run through its best checkpoint and any search; or two plain files, scored."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.arguments import option, parse
from nmt.errors import UserError, did_you_mean
from nmt.runs import LocalRunStore, RunStore

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig, SearchConfig

DEVICES = ("auto", "cpu", "cuda")
_OVERRIDABLE = ("search.", "data.dir", "data.test.", "paths.cache")

_EXAMPLES = """
Overrides: search=<name>, search.<key>=..., data.test.source=..., data.test.target=..., data.dir=..., paths.cache=...
Without any, the search is the run's own. A decoding is kept in the run directory and never made twice.

Examples:
  nmt evaluate run=3f2a
  nmt evaluate run=3f2a91c07be4/s2 search=beam10 search.length_penalty=0.8
  nmt evaluate hypotheses=output.de references=test.de language=de
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What `nmt evaluate` takes beside config overrides."""

    run: str = option("", "run id, a unique beginning of one, or a run directory")
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
) -> dict[str, Any]:
    """Decode and score the test split with a run's best checkpoint; the record of `decodes/<decode_id>.json`.

    A decoding that is there already is returned as it stands. The hypotheses lie beside it as `.txt`.

    Parameters
    ----------
    search: how to decode; None: as `config` says.
    config: the run's configuration, where another test text, device or path is wanted than in its `config.yaml`.
    device: `auto`, `cpu` or `cuda`, in place of `config.device`.
    progress: called with sentences done and sentences in all.

    Raises UserError where the run has no checkpoint, the data has no test split or it cannot be read.
    """
    from nmt.config import decode_id, load_run_config

    config = config or load_run_config(store.directory(run_id) / "config.yaml")
    config = replace(config, search=search or config.search, device=device or config.device)
    result = store.read_json(run_id, "result.json")
    if result is not None:
        kept = _kept(store, run_id, decode_id(result["best"]["checkpoint_digest"], config))
        if kept is not None:
            return kept

    from nmt.data.prepare import prepare
    from nmt.data.tokenizer import to_text
    from nmt.evaluation.catalogue import DECODED, key
    from nmt.evaluation.decode import decode, teacher_forced
    from nmt.evaluation.metrics import score
    from nmt.models.seq2seq import Seq2Seq
    from nmt.training.checkpoint import find_checkpoint, load_model
    from nmt.training.device import prepare_device
    from nmt.training.workload import precision_context

    target = prepare_device(config)
    loaded = load_model(find_checkpoint(store, run_id, "best"), target)
    identity = decode_id(loaded.digest, config)
    kept = _kept(store, run_id, identity)
    if kept is not None:
        return kept
    test = prepare(config).test
    if not len(test.source):
        raise UserError("the data has no test split", where="data.test", hint="give data.test.source and .target")
    began = time.perf_counter()
    with precision_context(config, target):
        n_best = decode(loaded.model, test.source, config.search, target, progress)
    seconds = time.perf_counter() - began
    forced: dict[str, float] = {}
    if isinstance(loaded.model, Seq2Seq):
        with precision_context(config, target):
            forced = teacher_forced(loaded.model, test, target)._asdict()
    language = config.data.target_language
    lines = [to_text(loaded.target_tokenizer, best.tokens, config.data, language) for best, *_ in n_best]
    scores = score(lines, test.target_text, language)
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
    }
    store.write_text(run_id, _name(identity, "txt"), "".join(f"{line}\n" for line in lines))
    store.write_json(run_id, _name(identity, "json"), record)  # last: it says that both are there
    return store.read_json(run_id, _name(identity, "json")) or record


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


def locate_run(text: str, runs: str = "") -> tuple[RunStore, str]:
    """The store and run id that `run=<text>` means: an id, a unique beginning of one, or a run directory anywhere.

    `runs` is the directory of runs; empty means $NMT_RUNS, else `runs`. Raises UserError where no one run is meant.
    """
    path = Path(text).expanduser().resolve()
    if (path / "config.yaml").is_file():
        return LocalRunStore(path.parents[1]), f"{path.parent.name}/{path.name}"
    store = LocalRunStore(runs or os.environ.get("NMT_RUNS", "runs"))
    return store, store.resolve(text)


def override(config: RunConfig, words: Sequence[str]) -> RunConfig:
    """A run's configuration with another search, test text or place, as `key=value` words say.

    Raises UserError for an unknown key or option, and for a key that would make it another training.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from nmt.config import from_dict, to_dict
    from nmt.config.compose import CONF, groups, known_keys, read_yaml
    from nmt.config.schema import SearchConfig
    from nmt.config.validation import validate

    data = OmegaConf.create(to_dict(config))
    for word in sorted(words, key=lambda word: not word.startswith("search=")):  # an option first, then single keys
        key, _, value = word.partition("=")
        if key == "search":
            known = groups()["search"]
            if value not in known:
                hint = did_you_mean(value, known)
                raise UserError(f"unknown option '{value}'", where="search", allowed=known, hint=hint)
            data.search = asdict(SearchConfig()) | read_yaml(CONF / "search" / f"{value}.yaml")
        elif key not in (keys := known_keys()):
            raise UserError("unknown key", where=key, hint=did_you_mean(key, [*keys, "search"]) or "see --help")
        elif key != "data.test" and not key.startswith(_OVERRIDABLE):
            allowed = ["search", "search.<key>", "data.test", "data.test.<side>", "data.dir", "paths.cache"]
            raise UserError("belongs to the training, which is done", where=key, allowed=allowed)
        else:
            try:
                data.merge_with_dotlist([word])
                from_dict(OmegaConf.to_container(data))  # type: ignore[arg-type]
            except (UserError, OmegaConfBaseException, YAMLError) as error:
                raise UserError(f"'{value}' does not fit", where=key) from error
    changed = from_dict(OmegaConf.to_container(data))  # type: ignore[arg-type]
    validate(changed)
    return changed


def main(argv: Sequence[str]) -> int:
    """Evaluate what the command line asks for and print the figures; returns the exit code."""
    options, words = parse(
        EvaluateOptions,
        argv,
        verb="nmt evaluate",
        summary="Decode the test split with a run's best checkpoint and score it; or score two files.",
        epilog=_EXAMPLES,
        rest=True,
    )
    given = [bool(options.run), bool(options.hypotheses or options.references)]
    if given.count(True) != 1:
        raise UserError("give run=..., or hypotheses=... and references=...", where="nmt evaluate")
    if options.run:
        return _evaluate_run(options, words)
    if words:
        raise UserError("needs a run", where=words[0])
    for key in ("hypotheses", "references"):
        if not getattr(options, key):
            raise UserError("is missing", where=key)
    found = evaluate_files(options.hypotheses, options.references, options.language)
    print(table(found, found["signatures"]))
    return 0


def table(metrics: Mapping[str, Any], signatures: Mapping[str, str]) -> str:
    """A line a metric: name, value, signature."""
    rows = [(name, metrics.get(f"test/decode/{name}", metrics.get(name)), signatures[name]) for name in signatures]
    lines = [f"{name:<12}{value:>7.2f}  {signature}" for name, value, signature in rows]
    forced = {name: metrics.get(f"test/teacher_forced/{name}") for name in ("token_accuracy", "log_perplexity")}
    if None not in forced.values():
        text = "teacher-forced: token accuracy {token_accuracy:.2f}, log-perplexity {log_perplexity:.3f} nats a token"
        lines.append(text.format(**forced))
    return "\n".join(lines)


def _evaluate_run(options: EvaluateOptions, words: Sequence[str]) -> int:
    from nmt.config import load_run_config
    from nmt.evaluation.progress import progress_bar

    store, run_id = locate_run(options.run, options.runs)
    directory = store.directory(run_id)
    config = override(load_run_config(directory / "config.yaml"), words)
    # A run may have moved since it was trained, and its prepared data with it.
    paths = replace(config.paths, runs=str(directory.parents[1]))
    config = replace(config, device=options.device, threads=options.threads, paths=paths)
    with progress_bar("decoding") as progress:
        record = evaluate_run(store, run_id, config=config, progress=progress)
    search = record["search"]
    print(f"run {run_id}, step {record['step']}, {record['split']} split, {record['sentences']} sentences")
    print(f"beam {search['beam']}, length penalty {search['length_penalty']:g}, {record['seconds']:.1f} s decoding")
    print(table(record["metrics"], record["signatures"]))
    print(f"hypotheses: {directory / _name(record['decode_id'], 'txt')}")
    return 0


def _name(identity: str, suffix: str) -> str:
    return f"decodes/{identity}.{suffix}"


def _kept(store: RunStore, run_id: str, identity: str) -> dict[str, Any] | None:
    if not (store.directory(run_id) / _name(identity, "txt")).is_file():
        return None
    return store.read_json(run_id, _name(identity, "json"))
