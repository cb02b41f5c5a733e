"""Rewriting or checking a page of docs of which a part is generated; what the scripts for such pages share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nmt.arguments import option
from nmt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """What a script that rewrites a page takes."""

    page: str = option("", "the page to rewrite; unset: that of docs")
    check: bool = option(False, "rewrite nothing; exit code 1 where the page is not as it would be written")


def rewrite(options: PageOptions, page: Path, rewritten: Callable[[str], str], script: str) -> int:
    """Put what `rewritten` makes of the page, or of `options.page`, in its place, or say whether that would change it.

    Returns the exit code. Raises UserError where the page cannot be read or written.
    """
    path = Path(options.page) if options.page else page
    try:
        before = path.read_text(encoding="utf-8")
        after = rewritten(before)
        if options.check:
            print("up to date" if after == before else f"{path}: would change; run python scripts/{script}")
            return int(after != before)
        path.write_text(after, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be rewritten: {error.strerror}", where=f"page={path}") from error
    print(path)
    return 0
