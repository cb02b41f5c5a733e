"""`nmt verify`: every cell of a published table recomputed from its pack, without training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nmt.arguments import option, parse
from nmt.errors import UserError

if TYPE_CHECKING:
    from nmt.config.schema import DataConfig
    from sweeps.packs.checks import Finding, References
    from sweeps.packs.contents import Progress
    from sweeps.packs.rebuilt import Rebuilt

SHOWN = 20  # differences that are listed; the others are counted
EXAMPLES = """
Exit codes: 0 nothing contradicts the table, 1 something does. What could not be looked at is listed too.

Whoever changes a pack and all its sums leaves no contradiction of sums: compare the digest that is printed with the one
that was published, or give it as digest=...

Examples:
  nmt verify pack=table5.zip
  nmt verify pack=table5.zip data.dir=data/multi30k digest=5f0c…
"""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What `nmt verify` takes."""

    pack: str = option("", "a pack: a zip, or a folder")
    data_dir: str = option("", "where the corpus lies; unset: where conf/data says", key="data.dir")
    digest: str = option("", "sha256 of the manifest as it was published, or its beginning")


def main(argv: Sequence[str]) -> int:
    """Verify the pack that the command line names; returns the exit code."""
    options = parse(
        VerifyOptions,
        argv,
        verb="nmt verify",
        summary="Recompute every cell of a published table from the outputs and records in its pack.",
        epilog=EXAMPLES,
    )
    if not options.pack:
        raise UserError("is missing", where="pack", hint="nmt verify pack=<name>.zip")
    from nmt.evaluation.progress import progress_bar
    from sweeps.packs.checks import AGREES, DIFFERS
    from sweeps.packs.files import MANIFEST, opened, pack_digest

    with opened(Path(options.pack).expanduser()) as folder, progress_bar("scoring") as progress:
        whole = pack_digest((folder / MANIFEST).read_bytes())
        findings = verify(folder, options.data_dir, progress)
    wrong = [finding for finding in findings if finding.verdict == DIFFERS]
    if options.digest and not (len(options.digest) >= 8 and whole.startswith(options.digest.lower())):
        sys.stdout.write(f"{DIFFERS:<12}the manifest has sha256 {whole}, not {options.digest}\n")
        wrong = wrong or [findings[0]]
    shown = [finding for finding in findings if finding not in wrong[SHOWN:]]
    sys.stdout.write("".join(f"{finding.verdict:<12}{finding.what}\n" for finding in shown))
    if len(wrong) > SHOWN:
        sys.stdout.write(f"{DIFFERS:<12}… and {len(wrong) - SHOWN} more\n")
    agree = sum(finding.verdict == AGREES for finding in findings)
    verdict = f"does not hold: {len(wrong)} contradictions" if wrong else f"holds: {agree} checks, no contradiction"
    sys.stdout.write(f"sha256 of its manifest: {whole}\n{options.pack} {verdict}\n")
    return 1 if wrong else 0


def verify(folder: Path, data_dir: str = "", progress: Progress | None = None) -> list[Finding]:
    """All findings about an unpacked pack.

    `data_dir` says where the corpus lies whose references are not in the pack; `progress` is called with decodings done
    and decodings in all. A file that cannot be read as what it
    should be is a finding, not an error.
    """
    from nmt.environment import describe_code
    from sweeps.packs.checks import DIFFERS, Finding, check_files, check_records, check_references, check_scores
    from sweeps.packs.checks import check_table as check_cells
    from sweeps.packs.rebuilt import rebuild
    from sweeps.reuse import code_name

    findings = list(check_files(folder))
    try:
        rebuilt = rebuild(folder)
        references = _references(folder, rebuilt, data_dir)
        same_code = code_name(describe_code()) == rebuilt.about["made_with"]["code"]
        findings += check_references(rebuilt, references)
        findings += check_records(folder, rebuilt)
        findings += check_scores(folder, rebuilt, references, progress)
        findings += check_cells(folder, rebuilt, same_code)
    except (UserError, KeyError, ValueError, TypeError, OSError) as error:
        findings.append(Finding(DIFFERS, f"cannot be read further: {error}"))
    return findings


def _references(folder: Path, rebuilt: Rebuilt, data_dir: str) -> References:
    """The references of each test set: from the pack, else from the corpus; None where neither has them."""
    from nmt.data.corpus import read_lines

    found: dict[int, Sequence[str] | None] = {}
    for number, test in enumerate(rebuilt.about["test_sets"]):
        if test["file"]:
            found[number] = read_lines(folder / Path(test["file"]).name)
            continue
        config = next(
            planned.config
            for planned, row in zip(rebuilt.plan.rows, rebuilt.about["rows"], strict=True)
            if row["test_set"] == number
        )
        found[number] = _of_corpus(config.data, data_dir)
    return found


def _of_corpus(data: DataConfig, data_dir: str) -> list[str] | None:
    """The references as the corpus has them here. Raises UserError where `data_dir` is given, and wrong."""
    from nmt.archives import at_usual_place
    from nmt.data.corpus import load_test

    try:
        return load_test(at_usual_place(replace(data, dir=data_dir) if data.kind == "files" else data)).target
    except UserError:
        if data_dir:
            raise
        return None
