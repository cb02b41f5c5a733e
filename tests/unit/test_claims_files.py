"""The checked-in claims: what is claimed, what is printed, and that their page lists them as they are."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from nmt.errors import UserError
from sweeps.claims.claim import ALONE, Claim, PlannedContrast, available_claims, load_claims, read_claim, sweep_spec
from sweeps.claims.runs import sources_of
from sweeps.claims.sides import published_effect

ROOT = Path(__file__).resolve().parents[2]
GOOD = """\
statement: More is better.
table: 2
place: table 2
notes: [one]
contrast:
  sweep: table2_cells
  measure: score
  rows: [LSTM]
  against: [GRU]
  expect: greater
  minimum: 0.1
"""


@pytest.fixture(scope="module")
def claims() -> list[Claim]:
    return load_claims()


def test_every_file_is_a_claim(claims: list[Claim]) -> None:
    assert [claim.id for claim in claims] == sorted(available_claims(), key=lambda name: (tables(claims)[name], name))
    assert {claim.table for claim in claims} == {"1", "2", "3", "4", "5", "6"}
    for claim in claims:
        header = (ROOT / "conf" / "claims" / f"{claim.id}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert header == f"# nmt claims claims={claim.id}"
        assert len(sources_of(claim)) == {"output_share": 0, "rank_correlation": 2}.get(claim.contrast.measure, 1)


def tables(claims: list[Claim]) -> dict[str, str]:
    return {claim.id: claim.table for claim in claims}


def printed_numbers_agree(contrast: PlannedContrast, effect: float) -> bool:
    """Whether a published effect is what the claim expects, its minimum or margin included."""
    if contrast.expect == "greater":
        return effect >= contrast.effect
    margin = 1 / contrast.effect if contrast.kind.log else -contrast.effect
    return effect > margin if contrast.expect == "not_less" else abs(effect) < contrast.effect


def test_printed_numbers_carry_each_claim_or_it_is_said_why_not(claims: list[Claim]) -> None:
    for claim in claims:
        contrast = claim.contrast
        effect = published_effect(contrast, sweep_spec(contrast.sweep))
        if contrast.measure in ("score", "collapsed") and contrast.sweep.startswith("table"):
            assert effect is not None, claim.id
            assert contrast.published is None, claim.id  # worked out from the sweep's file, not said twice
            assert printed_numbers_agree(contrast, effect) == (not claim.printed_otherwise), claim.id
        else:
            assert not claim.printed_otherwise, claim.id


@pytest.mark.parametrize(
    ("name", "effect"),
    # By hand from the tables of docs/published.md.
    [
        ("attention_beats_none_input", 21.78 - 11.57),
        ("reversed_source_helps", (21.16 + 21.76 + 21.32 - 20.54 - 20.98 - 21.47) / 3),
        ("reversed_source_helps_at_every_depth", 21.32 - 21.47),
        ("dense_residual_beats_residual", 21.10 - 17.48),
        ("attention_width_matters_little", 22.10 - 22.23),
        ("dec_8_collapses", 1.0),
        ("wide_beams_hurt", 21.57 - 21.10),
        ("coverage_adds_nothing", None),
    ],
)
def test_published_effects_by_hand(claims: list[Claim], name: str, effect: float | None) -> None:
    (contrast,) = [claim.contrast for claim in claims if claim.id == name]
    found = published_effect(contrast, sweep_spec(contrast.sweep))
    assert found == (None if effect is None else pytest.approx(effect))


def test_claims_of_shared_trainings_are_paired_and_no_others(claims: list[Claim]) -> None:
    for claim in claims:
        shared = {row.experiment for row in sweep_spec(claim.contrast.sweep).rows} == {"baseline"}
        assert claim.contrast.paired == (shared and claim.contrast.measure not in ALONE), claim.id


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("statement:", "statment:", "unknown key 'statment'.*did you mean statement"),
        ("table: 2", "table: two", "'two' is not the number of a table"),
        ("[one]", "one", "notes: must be a list of text"),
        ("table2_cells", "table2_cell", "unknown sweep 'table2_cell'; did you mean table2_cells"),
        ("[LSTM]", "[LSTN]", "table2_cells has no row 'LSTN'; allowed: LSTM, GRU.*did you mean LSTM"),
        ("[LSTM]", "[128]", "rows: must be a list of text; write numbers in quotes"),
        ("[GRU]", "[]", "against: must be a list of text"),
        ("measure: score", "measure: scores", "'scores' is not a choice.*did you mean score"),
        ("measure: score", "measure: collapsed", "'below' is missing; it goes with measure: collapsed"),
        ("measure: score", "measure: output_share", "takes one list of rows and a minimum"),
        ("[GRU]\n", "[GRU, Vanilla-Dec]\n  combine: each\n  below: 5\n", "'below' has no meaning here"),
        ("expect: greater", "", "expect: is missing; allowed: greater, not_less, equal"),
        ("expect: greater", "expect: equal", "expect equal: needs margin and no minimum"),
        ("minimum: 0.1", "minimum: 0", "minimum: 0 is not above 0"),
        ("minimum: 0.1", "minimum: a lot", "'a lot' is not a number"),
        ("measure: score", "measure: convergence_steps", "minimum: 0.1 is no ratio above 1"),
        ("[GRU]", "[GRU, Vanilla-Dec]", "combine: is missing; allowed: mean, each, pairs"),
        ("[GRU]", "[GRU, Vanilla-Dec]\n  combine: pairs", "1 rows cannot be paired with 2"),
        ("minimum: 0.1", "minimum: 0.1\n  paired: 1", "'1' is neither true nor false"),
        ("minimum: 0.1", "minimum: 0.1\n  overrides: [label=x]", "would apply to every row"),
    ],
)
def test_a_file_is_read_strictly(tmp_path: Path, right: str, wrong: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert read_claim(path).id == "mine"
    path.write_text(GOOD.replace(right, wrong, 1), encoding="utf-8")
    with pytest.raises(UserError, match=complaint):
        read_claim(path)


def test_an_unknown_claim_is_told_what_there_is() -> None:
    with pytest.raises(UserError, match=r"unknown claim 'lstm_beats_gro'.*did you mean lstm_beats_gru"):
        load_claims(["lstm_beats_gro"])


def test_the_page_lists_the_claims_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("claims_table")
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert script.updated(page) == page, "python scripts/claims_table.py"


def test_what_a_measure_cannot_compare_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    shares = GOOD.replace("measure: score", "measure: collapsed\n  below: 5")
    path.write_text(shares, encoding="utf-8")
    assert read_claim(path).contrast.below == 5.0
    path.write_text(shares.replace("[GRU]", "[GRU, Vanilla-Dec]\n  combine: each"), encoding="utf-8")
    with pytest.raises(UserError, match="measure collapsed: takes one row a side"):
        read_claim(path)
    ranks = GOOD.replace("measure: score", "measure: rank_correlation\n  other_overrides: [seed=7]")
    path.write_text(ranks.replace("  against: [GRU]\n", ""), encoding="utf-8")
    with pytest.raises(UserError, match="1 rows have no order to compare"):
        read_claim(path)
