"""`nmt claims` and `nmt reproduce` as a person types them, over runs that are there and runs that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finished_runs import decode, finish

from nmt.cli import main
from sweeps.plan import make_plan
from sweeps.spec import load_spec

WORDS = ["replicates=4", "scale=smoke", "data.options.test_size=20", "tracking=none", "executor=inline"]
# Of Table 6 and the coverage sweep: B1 < B3 < B5, B10 > B25 > B100, length penalties help, coverage does not.
AS_PUBLISHED = {
    "B1": 20.0,
    "B3": 22.0,
    "B5": 25.0,
    "B10": 25.0,
    "B25": 23.0,
    "B100": 21.0,
    "B10-LP-0.5": 26.0,
    "B10-LP-1.0": 27.0,
    "B10-LP-1.0-Cov-0.2": 25.0,
}


def decode_all(scores: dict[str, float]) -> None:
    """Four finished trainings, each decoded in every way that the claims on Table 6 ask for."""
    for sweep in ("table6_beam", "coverage_penalty"):
        for row in make_plan(load_spec(sweep), WORDS).rows:
            for number, run in enumerate(row.runs):
                decode(run.config, f"{finish(run.config, None)}-checkpoint", scores[row.label] + number / 100)


def test_claims_of_a_table_as_they_are_published(capsys: pytest.CaptureFixture[str]) -> None:
    decode_all(AS_PUBLISHED)
    assert main(["claims", "table=6", *WORDS]) == 0
    shown = capsys.readouterr().out
    assert "4 claims: 4 held" in shown
    assert "+5.00 [" in shown
    assert main(["claims", "table=6", "json=true", *WORDS]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [claim["verdict"] for claim in record["claims"]] == ["held"] * 4
    assert record["claims"][0]["p"] == pytest.approx(1 / 70)
    assert len(record["claims"][0]["rows"][0]["runs"]) == 4


def test_exit_codes_and_one_claim_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    decode_all(AS_PUBLISHED | {"B100": 30.0})
    assert main(["claims", "table=6", "format=md", *WORDS]) == 1
    assert "| 6 | `wide_beams_hurt` |" in capsys.readouterr().out
    assert main(["claims", "claims=wide_beams_hurt", *WORDS]) == 1
    shown = capsys.readouterr().out
    for text in (
        "+0.47 (B5 21.60 ± 0.28",
        "verdict   reversed",
        "4 against 4",
        "B5 against B100: -5.00",
        "paired from five",
    ):
        assert text in shown
    more = [word.replace("replicates=4", "replicates=5") for word in WORDS]
    assert main(["claims", "claims=beam_beats_greedy", *more]) == 2
    shown = capsys.readouterr().out
    assert "not run: 3 replicates missing, of B5, B10, B1" in shown
    assert f"nmt sweep sweep=table6_beam {' '.join(more)}" in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["claims", "claims=beam_beats_greed"], "unknown claim 'beam_beats_greed'; allowed: additive_beats"),
        (["claims", "claims=beam_beats_greedy", "table=5"], "error: claims=beam_beats_greedy: is not about this table"),
        (["claims", "table=9"], "error: table: '9' is not a choice; allowed: 1, 2, 3, 4, 5, 6"),
        (["claims", "table=6", "scale=smok"], "error: scale: unknown option 'smok'"),
        (
            ["reproduce"],
            "error: table: '' is no table of the paper with rows to train; allowed: 1, 2, 3, 4, 5, 6, 8, all",
        ),
        (["reproduce", "table=6", "results=nowhere"], "error: results=nowhere: no such directory"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    found = capsys.readouterr()
    assert complaint in found.err
    assert found.err.count("\n") == 1


def test_a_dry_run_starts_nothing(capsys: pytest.CaptureFixture[str], isolated_runs: Path) -> None:
    assert main(["reproduce", "table=6", "dry_run=true", *WORDS]) == 0
    shown = capsys.readouterr().out
    assert "table6_beam: Table 6" in shown
    assert "coverage_penalty-coverage_adds_nothing" in shown
    assert "4 claims would be judged: beam_beats_greedy, coverage_adds_nothing" in shown
    assert not isolated_runs.exists()
    assert main(["reproduce", "table=6", "claims=false", "dry_run=true", *WORDS]) == 0
    assert "coverage_penalty-" not in capsys.readouterr().out


def test_reproducing_a_table_reports_it_and_judges_its_claims(
    capsys: pytest.CaptureFixture[str], isolated_runs: Path
) -> None:
    decode_all(AS_PUBLISHED)
    assert main(["reproduce", "table=6", *WORDS]) == 0
    shown = capsys.readouterr().out
    assert "all 4 runs are there, nothing to train" in shown
    assert "| B100 " in shown
    assert "4 claims: 4 held" in shown
    assert (isolated_runs / "reports" / "table6_beam" / "table.md").is_file()
    decode_all(AS_PUBLISHED | {"B1": 30.0})
    assert main(["reproduce", "table=6", *WORDS]) == 1


@pytest.mark.exhaustive
def test_reproducing_trains_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["training.max_steps=4", "validation.every_steps=4", "data.options.train_size=200", "search.max_length=5"]
    words = [*(word.replace("replicates=4", "replicates=1") for word in WORDS), *tiny]
    assert main(["reproduce", "table=6", *words]) == 0
    shown = capsys.readouterr().out
    assert "table6_beam: Table 6" in shown
    assert "1 of 1 runs to do" in shown
    assert "coverage_penalty-coverage_adds_nothing: " in shown  # the same training, decoded once more
    assert "4 claims: 4 undecided" in shown  # a single replicate decides nothing
