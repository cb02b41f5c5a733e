"""Claims of a study: what is compared with what, and the verdict in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from nmt.errors import UserError
from sweeps.spec import load_spec
from sweeps.studies.claims import (
    HELD,
    NOT_HELD,
    NOT_MEASURED,
    ONLY_WHERE,
    StudyClaim,
    judge,
    load_study_claims,
)
from sweeps.studies.points import EMULATED, Findings, Point
from sweeps.studies.study import load_study


def claim(expect: str = "less", rows: tuple[str, ...] = ("ring",), against: tuple[str, ...] = ("ps",)) -> StudyClaim:
    return StudyClaim(
        id="c", statement="S", place="P", experiment="e", figure="f", rows=rows, against=against, expect=expect
    )


def found(*points: tuple[str, float | None, str], kind: str = "measured") -> Findings:
    return Findings(
        points=tuple(
            Point(row=row, figure="f", value=value, condition=tuple(where.split("/")) if where else (), kind=kind,
                  refused="" if value is not None else "two on one core")
            for row, value, where in points
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("expect", "ring", "ps", "verdict"),
    [
        ("less", 1.0, 2.0, HELD),
        ("less", 2.0, 2.0, NOT_HELD),
        ("greater", 3.0, 2.0, HELD),
        ("not_greater", 2.0, 2.0, HELD),
        ("same", 0.1 + 0.2, 0.3, NOT_HELD),
        ("same", 0.3, 0.3, HELD),
        ("differs", 0.1 + 0.2, 0.3, HELD),
    ],
)
def test_expectations(expect: str, ring: float, ps: float, verdict: str) -> None:
    assert judge(claim(expect), found(("ring", ring, ""), ("ps", ps, ""))).verdict == verdict


def test_a_value_that_is_expected_needs_no_other_row() -> None:
    points = found(("ring", 0.0, ""), ("double", 4.0, ""))
    assert judge(claim("0", against=()), points).verdict == HELD
    both = judge(claim("0", rows=("ring", "double"), against=()), points)
    assert (both.verdict, both.where) == (ONLY_WHERE, "ring; double: nowhere")


def test_where_it_holds_is_said_by_condition() -> None:
    values = [("slow/2 nodes", 1, 2), ("slow/4 nodes", 1, 2), ("fast/2 nodes", 1, 2), ("fast/4 nodes", 3, 2)]
    points = found(
        *(("ring", float(one), where) for where, one, _ in values),
        *(("ps", float(other), where) for where, _, other in values),
        ("asp", 0.0, "slow/2 nodes"),
    )
    verdict = judge(claim(against=("ps", "asp")), points)
    assert verdict.verdict == ONLY_WHERE
    assert verdict.where == "against ps: slow or fast (2 nodes); against asp: nowhere"
    assert sum(one.holds for one in verdict.comparisons) == 3


def test_what_was_refused_is_no_comparison_and_is_said() -> None:
    nothing = judge(claim(), found(("ring", None, ""), ("ps", 1.0, "")))
    assert (nothing.verdict, nothing.where) == (NOT_MEASURED, "ring: two on one core")
    assert judge(claim(), Findings()).verdict == NOT_MEASURED
    assert judge(claim(), None).where == "its experiment was not asked for"
    some = judge(claim(), found(("ring", None, ""), ("ring", 1.0, "a"), ("ps", 2.0, "a")))
    assert (some.verdict, some.refused) == (HELD, (("ring: two on one core", 1),))


def test_conditions_must_be_the_same() -> None:
    assert judge(claim(), found(("ring", 1.0, "a"), ("ps", 2.0, "b"))).verdict == NOT_MEASURED


def test_a_verdict_knows_that_it_is_emulated() -> None:
    assert judge(claim(), found(("ring", 1.0, ""), ("ps", 2.0, ""), kind=EMULATED)).emulated
    assert not judge(claim(), found(("ring", 1.0, ""), ("ps", 2.0, ""))).emulated


def test_every_row_that_a_checked_in_claim_names_is_there() -> None:
    study = load_study("ringtmp")
    claims = load_study_claims(study)
    assert {one.experiment for one in claims} == {one.name for one in study.experiments}
    for one in claims:
        (experiment,) = study.of([one.experiment])
        labels = {row.label for row in load_spec(experiment.sweep).rows} if experiment.sweep else set()
        labels |= {row.label for row in experiment.emulated.rows} if experiment.emulated else set()
        for part in (experiment.largest, experiment.network):
            labels |= {row["label"] for row in part["rows"]} if part else set()
        assert {*one.rows, *one.against} <= labels, one.id


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"experiment": "e2"}, "unknown experiment 'e2'"),
        ({"expect": "more"}, "'more' is no expectation"),
        ({"expect": 0}, "goes with a word in expect"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"rows": "ring"}, "must be a list of text"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    import yaml

    study = load_study("ringtmp")
    data = {
        "statement": "S", "place": "P", "experiment": "idle", "figure": "f", "rows": ["a"], "against": ["b"],
        "expect": "less",
    } | changed  # fmt: skip
    folder = tmp_path / "claims" / "ringtmp"
    folder.mkdir(parents=True)
    (folder / "c.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match=words):
        load_study_claims(study, tmp_path)


def test_a_study_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown study 'ringtmo'.*did you mean ringtmp"):
        load_study("ringtmo")
    with pytest.raises(UserError, match="unknown experiment 'idel'"):
        load_study("ringtmp").of(["idel"])
