"""The console command `nmt`: a table of verbs, each imported only when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nmt.arguments import exit_code
from nmt.errors import UserError, did_you_mean

VERBS = {
    "train": ("nmt.train:main", "train one run, or resume it"),
    "translate": ("nmt.translate:main", "translate text with a trained run, or several as an ensemble"),
    "evaluate": ("nmt.evaluate:main", "score a run's test split, with any search or a whole grid of them"),
    "score": ("nmt.score:main", "log-probabilities of given pairs of sentences under a trained run"),
    "average": ("nmt.average:main", "average the checkpoints of a run"),
    "convert": ("nmt.convert:main", "put a checkpoint's parts into one file, or the other way round"),
    "sweep": ("sweeps.sweep:main", "train rows x replicates and print the table mean ± sd (max)"),
    "report": ("sweeps.report:main", "write the report of a sweep as it stands: page, Markdown, CSV, LaTeX"),
    "claims": ("sweeps.claims.command:main", "the paper's claims: held, reversed, undecided or not run"),
    "reproduce": ("sweeps.claims.reproduce:main", "run what a table of the paper lacks, report it, judge its claims"),
    "compare": ("sweeps.compare:main", "is a better than b: two questions, tested and kept apart"),
    "power": ("sweeps.power:main", "how many replicates it takes to see a difference"),
    "status": ("sweeps.status:main", "show sweeps and runs: states, steps, heartbeats, errors"),
    "analyse": ("sweeps.analysis.command:main", "systems side by side, by sentence length and word frequency"),
    "import": ("sweeps.imported.command:main", "put another system's outputs into our tables and tests"),
    "pack": ("sweeps.packs.pack:main", "put the evidence behind a table into one file to publish"),
    "verify": ("sweeps.packs.verify:main", "recompute a published table from its pack, without training"),
    "rerun": ("nmt.rerun:main", "train a run once more from its own directory, and compare the bits"),
    "why": ("nmt.why:main", "explain why two runs differ"),
    "variance": ("sweeps.variance:main", "which source of randomness makes replicates differ, and by how much"),
    "vocabulary": ("nmt.vocabulary:main", "make a vocabulary file of text, or describe a corpus's vocabulary"),
    "profile": ("nmt.profile:main", "what a configuration costs: parameters, operations, memory, time by phase"),
    "sync": ("sweeps.tracking.sync:main", "rebuild MLflow's view from the run directories"),
    "ui": ("sweeps.tracking.ui:main", "browse runs and sweeps in MLflow"),
    "completion": ("nmt.completion:main", "print the script by which a shell completes all this on TAB"),
}
OURS = ("nmt", "distributed", "sweeps")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; a user's mistake is one line on stderr and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] in ("--version", "version"):
        import nmt

        print(f"nmt {nmt.__version__}")
        return 0
    try:
        return exit_code(_call, words)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has left, which is its right; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def check_packages() -> None:
    """Refuse to start where another package answers to one of our names (Dask owns `distributed` too)."""
    import importlib.util

    root = Path(__file__).resolve().parents[1]
    for name in OURS:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or root not in origin.parents:
            raise UserError(
                f"the package '{name}' that Python finds is not ours but {origin or 'missing'}",
                hint="install into a virtual environment of its own, without Dask's `distributed`",
            )


def _call(words: Sequence[str]) -> int:
    check_packages()
    verb = words[0]
    if verb not in VERBS:
        raise UserError(f"unknown verb '{verb}'", allowed=list(VERBS), hint=did_you_mean(verb, VERBS))
    from distributed.strategy import load

    return int(load(VERBS[verb][0])(list(words[1:])))


def _help() -> str:
    width = max(len(verb) for verb in VERBS)
    verbs = "\n".join(f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items())
    return (
        "Usage: nmt <verb> [key=value ...]\n\n"
        "Architecture studies of sequence-to-sequence models: declare, train in replicates, compare.\n\n"
        f"{verbs}\n\n"
        "`nmt <verb> --help` tells what a verb takes. Start with: nmt sweep sweep=quickstart\n"
        "Exit codes: 0 done, 1 failed, 2 a mistake in what was asked, 3 diverged, 75 interrupted and resumable."
    )


if __name__ == "__main__":
    sys.exit(main())
