"""What tests against the baseline look like in a table: columns, notes that explain them, and figures for the CSV."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.aggregate import RowResult
from sweeps.significance import MOST_DUNNETT, NOT_FINITE, SIGNIFICANT, RowContrast, Significance
from sweeps.statistics.contrasts import Contrast
from sweeps.statistics.families import POOLING_LEVEL
from sweeps.statistics.power import ALPHA, MOST_REPLICATES, POWER
from sweeps.wording import NOTHING, counted


def significance_columns(results: Sequence[RowResult], found: Significance) -> list[tuple[str, bool, list[str]]]:
    """Name, whether it is numeric, and a cell for each row: difference with its mark, p values, replicates needed."""
    rows = [found.rows.get(row.label) for row in results]
    return [
        ("vs baseline", True, [_difference(row) for row in rows]),
        ("p Holm", True, [p_value(row.p_holm if row else None) for row in rows]),
        ("p exact", True, [p_value(row.contrast.p_exact if row else None) for row in rows]),
        ("needed", True, [_needed(row) for row in rows]),
    ]


def significance_notes(found: Significance) -> list[str]:
    """What the columns say and do not say, a line each; none where nothing was compared."""
    if not found.rows:
        return []
    notes = [f"vs baseline: mean of the row minus that of {found.baseline}, over these configurations' replicates"]
    if found.family:
        notes.append(
            f"{SIGNIFICANT}: p Holm at most {ALPHA:g}: {_test(found)}, two-sided, corrected by Holm over "
            f"{counted(len(found.family), 'row')}{_family_error(found)}"
        )
    if any(row.mark == NOT_FINITE for row in found.rows.values()):
        notes.append(f"{NOT_FINITE}: a score is not finite, so that nothing can be tested")
    if any(row.contrast.p_exact is not None for row in found.rows.values()):
        smallest = {_against(row.contrast): row.contrast for row in found.rows.values()}
        reach = ", ".join(f"{sizes}: {_fraction(one)}" for sizes, one in smallest.items())
        notes.append(f"p exact: exact permutation test, two-sided, uncorrected; the smallest it can be is {reach}")
    if any(row.contrast.paired for row in found.rows.values()):
        notes.append("rows that decode the baseline's trainings are paired with it: the paired t test, and exact signs")
    if any(_needed(row) != NOTHING for row in found.rows.values()):
        notes.append(
            f"needed: replicates a side for a power of {POWER:g} at {ALPHA:g}, uncorrected, were the true difference "
            "and sds those observed"
        )
    if found.variances and found.variances.p is not None:
        notes.append(_variances(found))
    return notes


def significance_record(row: RowContrast | None) -> dict[str, object]:
    """The figures of one row with full precision, under the names of their CSV columns."""
    contrast = row.contrast if row else None
    low, high = (contrast.interval if contrast else None) or (None, None)
    return {
        "difference": contrast.difference if contrast else None,
        "interval_low": low,
        "interval_high": high,
        "p_welch": contrast.p_welch if contrast else None,
        "p_holm": row.p_holm if row else None,
        "p_dunnett": row.p_dunnett if row else None,
        "p_exact": contrast.p_exact if contrast else None,
        "p_exact_smallest": contrast.p_smallest if contrast else None,
        "paired": contrast.paired if contrast else None,
        "replicates_needed": row.replicates_needed if row else None,
    }


def p_value(p: float | None) -> str:
    """A p value as tables print it: three decimals, or `< 0.001`."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def signed(difference: float) -> str:
    """A difference with its sign and two decimals; the minus is the typographic one."""
    return f"{difference:+.2f}".replace("-", "−")


def _test(found: Significance) -> str:
    kinds = {one.paired for one in found.family}
    if kinds == {True}:
        return "the paired t test"
    return "Welch's t test, or the paired one" if True in kinds else "Welch's t test"


def _difference(row: RowContrast | None) -> str:
    if row is None:
        return NOTHING
    return f"{signed(row.contrast.difference)} {row.mark}".rstrip()


def _needed(row: RowContrast | None) -> str:
    if row is None or row.contrast.p_welch is None:
        return NOTHING
    return f"> {MOST_REPLICATES}" if row.replicates_needed is None else str(row.replicates_needed)


def _against(contrast: Contrast) -> str:
    return f"{contrast.n_a} pairs" if contrast.paired else f"{contrast.n_a} v {contrast.n_b}"


def _fraction(contrast: Contrast) -> str:
    p = contrast.p_smallest
    if contrast.sampled or p == 1 or round(2 / p) > 10_000:
        return p_value(p)
    return f"2/{round(2 / p)} = {p:.2g}"


def _family_error(found: Significance) -> str:
    """How often such a table has a mark where there is nothing to find, by simulation; empty of paired rows."""
    from sweeps.statistics.simulation import family_error

    if any(one.paired for one in found.family):
        return ""
    wrong = family_error(tuple(sorted(one.n_a for one in found.family)), found.family[0].n_b)
    return f"; were all rows alike, {wrong.value:.1%} of such tables had a mark (simulated)"


def _variances(found: Significance) -> str:
    check = found.variances
    assert check is not None and check.p is not None and check.sd_ratio is not None
    said = (
        f"variances: Brown and Forsythe's test over {counted(check.samples, 'row')} p = {p_value(check.p)}, largest sd "
        f"{check.sd_ratio:.1f} times the smallest: "
    )
    if not check.allows_pooling:
        return f"{said}not pooled (p < {POOLING_LEVEL:g}), so no Dunnett's test"
    dunnett = {label: row.p_dunnett for label, row in found.rows.items() if row.p_dunnett is not None}
    if not dunnett:
        return f"{said}could be pooled, but Dunnett's test is left out (no rows for it, or more than {MOST_DUNNETT})"
    marked = ", ".join(label for label, p in dunnett.items() if p <= ALPHA)
    return f"{said}pooled; Dunnett's test at {ALPHA:g} over {counted(len(dunnett), 'row')} marks {marked or 'none'}"
