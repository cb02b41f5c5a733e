"""`nmt pack`: a sweep's evidence as one file to publish."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nmt.archives import RESULTS_HELP, archive_directories
from nmt.arguments import option, parse
from nmt.errors import UserError

EXAMPLES = """
A pack has configurations, identities, environments, results, learning curves and outputs of every complete replicate,
the table as it was made, and sums of all files; no checkpoints, no directories, no names of machines, no passwords.
References belong to the corpus and its licence: without references=true the pack has their digest, and of each
sentence the statistics that the scores are made of. The same runs make the same bytes.

Examples:
  nmt pack sweep=quickstart to=quickstart.zip
  nmt pack sweep=table5_attention scale=cpu_table results=docs/results to=table5.zip data.dir=data/multi30k
"""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """What `nmt pack` takes beside config overrides."""

    sweep: str = option("", "a sweep of conf/sweep, or a YAML file")
    to: str = option("", "the pack: name.zip, or a folder")
    references: bool = option(False, "put the references in: only where the corpus's licence allows it")
    results: str = option("", RESULTS_HELP)


def main(argv: Sequence[str]) -> int:
    """Make the pack that the command line asks for; returns 0."""
    options, words = parse(
        PackOptions,
        argv,
        verb="nmt pack",
        summary="Put the evidence behind a sweep's table into one file that can be published and checked without "
        "training anything (nmt verify).",
        epilog=EXAMPLES,
        rest=True,
    )
    for name in ("sweep", "to"):
        if not getattr(options, name):
            raise UserError("is missing", where=name, hint="nmt pack sweep=<name> to=<name>.zip")
    from nmt.evaluation.progress import progress_bar
    from sweeps.packs.contents import pack_files
    from sweeps.packs.files import write_files
    from sweeps.plan import make_plan
    from sweeps.screen import near
    from sweeps.spec import load_spec

    spec = load_spec(options.sweep)
    if spec.apart:
        what = "keeps its runs apart, and a pack knows them by their ids alone"
        raise UserError(what, where=f"sweep={options.sweep}", hint="nmt report writes its table and its sweep.json")
    plan = make_plan(spec, words, archives=archive_directories(options.results))
    with progress_bar("sentence statistics") as progress:
        files = pack_files(plan, with_references=options.references, progress=progress)
    to = Path(options.to).expanduser()
    whole = write_files(files, to)
    runs = sum(name.endswith("/result.json") for name in files)
    size = sum(map(len, files.values())) if to.is_dir() else to.stat().st_size
    missing = len(plan.missing)
    sys.stdout.write(
        f"{near(to)}: {runs} runs, {len(files)} files, {size / 1e6:.1f} MB, "
        f"references {'included' if options.references else 'not included'}\n"
        + (f"{missing} replicates are not complete and not in it\n" if missing else "")
        + f"sha256 of its manifest, to publish beside it: {whole}\n"
        f"check: nmt verify pack={near(to)}\n"
    )
    return 0
