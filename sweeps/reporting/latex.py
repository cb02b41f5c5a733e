r"""The table of a sweep for a paper: LaTeX with booktabs, to be read by `\input`."""

from __future__ import annotations

import re

from sweeps.reporting.columns import MARKS
from sweeps.reporting.table import Table

SIGNS = {  # what LaTeX reads as a command (after a line's end * and [ too), and signs that its fonts may lack
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}",
    ">": r"\textgreater{}", '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}", "*": "{*}", "\n": " ",
    "±": r"$\pm$", "×": r"$\times$", "÷": r"$\div$", "−": r"$-$", "≤": r"$\leq$", "≥": r"$\geq$",
    "→": r"$\rightarrow$", "–": "--", "…": r"\ldots{}",
}  # fmt: skip
_SIGN = re.compile("|".join(map(re.escape, SIGNS)))


def to_latex(table: Table, name: str) -> str:
    """A `table` environment labelled `tab:<name>`; marks stand beside the rows' names, and below what they mean."""
    columns = [place for place, title in enumerate(table.columns) if title != MARKS]
    aligned = "".join("r" if table.numeric[place] else "l" for place in columns)
    letters = table.columns.index(MARKS) if MARKS in table.columns else None
    lines = [
        r"% Written by nmt report. Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}; read it by \input.",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(table.title)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9:.-]+', '-', name)}}}",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{@{{}}{aligned}@{{}}}}",
        r"\toprule",
        _line([escaped(table.columns[place]) for place in columns]),
        r"\midrule",
    ]
    for row in table.rows:
        cells = [escaped(row[place]) for place in columns]
        if letters is not None and row[letters]:
            cells[0] += rf"\textsuperscript{{{escaped(row[letters].replace(' ', ','))}}}"
        lines.append(_line(cells))
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = [*([table.conditions] if table.conditions else []), *table.legend, *table.notes]
    lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\raggedright\scriptsize"]
    lines += [escaped(note) + r"\par" for note in notes]
    lines += [r"\end{minipage}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX sets as it stands here."""
    return _SIGN.sub(lambda found: SIGNS[found[0]], text)


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
