"""Verdicts from run directories: every one of them, and what is not compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from finished_runs import decode, finish

from nmt.errors import UserError
from nmt.runs import LocalRunStore
from sweeps.claims.claim import Claim, PlannedContrast
from sweeps.claims.command import exit_code_of
from sweeps.claims.judging import HELD, NOT_RUN, REVERSED, UNDECIDED
from sweeps.claims.reproduce import plans_of, sweeps_of
from sweeps.claims.runs import ClaimRuns, Source, sources_of
from sweeps.claims.scoreboard import in_full, to_json, to_markdown, to_screen
from sweeps.claims.verdicts import Assessment, assess, assess_one
from sweeps.plan import PlannedRow

WORDS = ["replicates=4", "scale=smoke"]
GOOD, BAD = (30.0, 30.5, 31.0, 31.5), (20.0, 20.5, 21.0, 21.5)


def claim(**contrast: Any) -> Claim:
    """A claim on two rows of Table 2 (two trainings), changed as asked."""
    known: dict[str, Any] = {
        "sweep": "table2_cells",
        "measure": "score",
        "rows": ("LSTM",),
        "against": ("GRU",),
        "expect": "greater",
        "effect": 1.0,
    }
    return Claim(
        id="a_claim", statement="A | B", table="2", place="table 2", contrast=PlannedContrast(**known | contrast)
    )


def rows_of(one: Claim, words: Sequence[str] = WORDS) -> dict[str, PlannedRow]:
    runs = ClaimRuns([one], words)
    return {label: row for source in sources_of(one) for label in labels_of(one) if (row := runs.row(source, label))}


def labels_of(one: Claim) -> tuple[str, ...]:
    return (*one.contrast.rows, *one.contrast.against)


def finish_rows(one: Claim, scores: dict[str, Sequence[float]], **result: Any) -> None:
    for label, row in rows_of(one).items():
        for run, bleu in zip(row.runs, scores[label], strict=False):
            finish(run.config, bleu, **result)


def judged(one: Claim, words: Sequence[str] = WORDS) -> Assessment:
    return assess_one(one, ClaimRuns([one], words))


def test_not_run_says_which_runs_and_how_to_make_them() -> None:
    one = claim(overrides=("training.max_steps=7",))
    finish_rows(one, {"LSTM": GOOD, "GRU": BAD[:3]})
    found = judged(one)
    assert (found.verdict, found.judgement.p, found.judgement.effect) == (NOT_RUN, None, None)
    assert found.judgement.reason == "1 replicate missing, of GRU"
    assert list(found.commands.values()) == [
        "nmt sweep sweep=table2_cells training.max_steps=7 replicates=4 scale=smoke"
    ]
    assert [len(row.run_ids) for row in found.rows] == [4, 4]
    costs = {source: ClaimRuns([one], WORDS).cost(source) for source in found.commands}
    assert list(costs.values()) == ["1 run to train, 7 steps; time unknown: no run of like shape has ended here"]
    assert in_full(found, costs).splitlines()[-1].strip() == costs[sources_of(one)[0]]
    assert judged(one, ["replicates=3", "scale=smoke"]).verdict == HELD  # three were planned, three are there


def test_held_reversed_and_undecided() -> None:
    one = claim()
    finish_rows(one, {"LSTM": GOOD, "GRU": BAD})
    held = judged(one)
    assert (held.verdict, held.judgement.p, held.judgement.effect) == (HELD, pytest.approx(1 / 70), pytest.approx(10.0))
    assert held.published == pytest.approx(0.44)  # 22.22 - 21.78, from the sweep's file
    other = judged(claim(rows=("GRU",), against=("LSTM",)))
    assert (other.verdict, other.judgement.effect) == (REVERSED, pytest.approx(-10.0))
    assert judged(claim(effect=10.5)).verdict == UNDECIDED
    board = [held, other]
    assert (exit_code_of(board), exit_code_of([held])) == (1, 0)
    missing = judged(claim(overrides=("training.max_steps=7",)))
    assert (exit_code_of([held, missing]), exit_code_of([other, missing])) == (2, 1)


def test_undecided_says_the_replicates_it_would_take() -> None:
    one = claim()
    finish_rows(one, {"LSTM": (20.4, 20.8, 21.2, 21.6), "GRU": BAD})
    found = judged(one)
    assert found.verdict == UNDECIDED
    assert found.judgement.needed is not None
    assert 4 < found.judgement.needed < 12
    assert f"undecided ({found.judgement.needed} replicates)" in to_markdown([found])


def test_collapses_count_by_state_and_by_score() -> None:
    one = claim(measure="collapsed", below=5.0, effect=0.75)
    finish_rows(one, {"LSTM": (1.0, 2.0, 3.0, 4.0), "GRU": BAD})
    assert judged(one).verdict == HELD
    lstm = rows_of(one)["LSTM"].runs
    for run in lstm:
        finish(run.config, 20.0)
    assert judged(one).verdict == REVERSED
    # One that diverged before it had a checkpoint has no score, and one that diverged later has a good one.
    finish(lstm[0].config, None, state="diverged", best=None)
    for run in lstm[1:]:
        finish(run.config, 20.0, state="diverged")
    assert judged(one).verdict == HELD
    assert judged(claim()).remark == "4 of 8 runs diverged, and count with what they reached"


def test_times_of_shared_runs_and_of_other_machines_are_not_compared() -> None:
    one = claim(measure="tokens_per_second", expect="not_less", effect=1.1)
    finish_rows(one, {"LSTM": GOOD, "GRU": BAD})
    found = judged(one)
    assert (found.verdict, found.judgement.effect) == (HELD, 0.0)  # all as fast, on a log scale
    assert "×1.00" in to_markdown([found])
    lstm = rows_of(one)["LSTM"].runs
    store = LocalRunStore(lstm[0].config.paths.runs)
    store.write_json(lstm[0].run_id, "env.json", {"device": {"name": "another"}, "threads": 8})
    assert judged(one).judgement.reason == "measured on 2 kinds of machine"
    finish(lstm[1].config, 30.0, timing="shared")
    slower = judged(one)
    assert (slower.verdict, "1 of 8 runs shared the machine" in slower.judgement.reason) == (NOT_RUN, True)


def test_a_ratio_of_steps_to_convergence() -> None:
    one = claim(measure="convergence_steps", effect=1.5, published=2.0)
    for label, steps in (("LSTM", 80), ("GRU", 40)):
        for number, run in enumerate(rows_of(one)[label].runs):
            finish(run.config, 20.0, convergence={"steps": steps + number, "target_tokens": 1, "seconds": 1.0})
    found = judged(one)
    assert found.verdict == HELD
    record = to_json([found])["claims"][0]
    assert record["effect"] == pytest.approx((80 * 81 * 82 * 83 / (40 * 41 * 42 * 43)) ** 0.25)
    assert record["rows"][0]["values"] == pytest.approx([80, 81, 82, 83])
    finish(rows_of(one)["GRU"].runs[0].config, 20.0, convergence={})
    assert judged(one).verdict == NOT_RUN


def test_probes_are_joined_and_their_median_taken(isolated_runs: Path) -> None:
    one = claim(measure="probe", probe=("probe/state_gradient/decoder.*",), effect=1.2)
    finish_rows(one, {"LSTM": GOOD, "GRU": BAD})
    bare = judged(one)
    assert (bare.verdict, "trained without these probes" in bare.judgement.reason) == (NOT_RUN, True)
    (command,) = bare.commands.values()
    assert command.endswith(f"paths.runs={isolated_runs}-anew")  # here they are complete, and nothing would happen
    for label, norm in (("LSTM", 4.0), ("GRU", 2.0)):
        for run in rows_of(one)[label].runs:
            curve = [0.1, 1.0, 50.0]  # the median is 1
            lines: list[dict[str, Any]] = [{"kind": "header"}, {"kind": "train", "note": "probe"}]
            for value in curve:
                parts = {
                    f"probe/state_gradient/decoder.{layer}": value * norm * part for layer, part in ((0, 0.6), (1, 0.8))
                }
                lines.append({"kind": "probe", "step": 1, "probe/update/all": 9.0} | parts)
            text = "".join(json.dumps(line) + "\n" for line in lines)
            LocalRunStore(run.config.paths.runs).write_text(run.run_id, "metrics.jsonl", text)
    found = judged(one)
    assert (found.verdict, found.natural(found.judgement.effect or 0.0)) == (HELD, pytest.approx(2.0))


def test_rows_in_the_same_order_on_two_corpora() -> None:
    # Rows of Table 6 are one training: three of its searches stand for rows that differ.
    one = claim(
        sweep="table6_beam",
        measure="rank_correlation",
        rows=("B1", "B3", "B5", "B10", "B25"),
        against=(),
        overrides=(),
        other_overrides=("training.max_steps=5",),
        effect=0.6,
    )
    few = ["replicates=2", "scale=smoke"]
    runs = ClaimRuns([one], few)
    for source in sources_of(one):
        finish_table6(runs, source, {label: 10.0 + place for place, label in enumerate(one.contrast.rows)})
    found = judged(one, few)
    assert (found.verdict, found.judgement.p, found.judgement.effect) == (
        HELD,
        pytest.approx(1 / 120),
        pytest.approx(1.0),
    )
    finish_table6(runs, sources_of(one)[1], {label: 10.0 - place for place, label in enumerate(one.contrast.rows)})
    assert judged(one, few).verdict == REVERSED


def finish_table6(runs: ClaimRuns, source: Source, scores: dict[str, float]) -> None:
    for label, bleu in scores.items():
        row = runs.row(source, label)
        assert row is not None
        for number, run in enumerate(row.runs):
            checkpoint = f"{finish(run.config, None)}-checkpoint"
            decode(run.config, checkpoint, bleu + number / 100)


def test_the_scoreboard_names_every_claim_once(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    one = claim()
    finish_rows(one, {"LSTM": GOOD, "GRU": BAD})
    board = assess(
        [one, claim(overrides=("training.max_steps=7",))],
        ClaimRuns([one, claim(overrides=("training.max_steps=7",))], WORDS),
    )
    Console(width=150).print(to_screen(board))
    shown = capsys.readouterr().out
    assert "2 claims: 1 held, 1 not run" in shown
    assert shown.count("a_claim") == 2
    markdown = to_markdown(board)
    assert r"A \| B" in markdown  # or the table would have a column more
    assert "of 1 tested claims about 0.1 would pass by chance" in markdown
    record = to_json(board)
    json.dumps(record, allow_nan=False)
    assert record["verdicts"] == {"held": 1, "reversed": 0, "undecided": 0, "not run": 1}
    full = in_full(board[0])
    said = ("LSTM 22.22 ± 0.08", "minimum 1.00", "as small as 0.014", "30, 30.5, 31, 31.5; mean 30.75")
    assert all(text in full for text in (*said, *board[0].rows[0].run_ids))


def test_tables_are_found_by_their_number() -> None:
    assert sweeps_of("5") == ["table5_attention"]
    assert sweeps_of("all")[0] == "table1_embedding"
    with pytest.raises(UserError, match=r"'7' is no table of the paper with rows to train; allowed: 1, 2.*all"):
        sweeps_of("7")


def test_reproducing_gives_probes_to_the_tables_own_runs(isolated_runs: Path) -> None:
    probed = claim(sweep="table6_beam", rows=("B1",), against=("B3",), overrides=("training.probe.every_steps=5",))
    timed = claim(sweep="table6_beam", rows=("B1",), against=("B3",), overrides=("training.max_steps=3",))
    (table, _), (own, words) = plans_of(["table6_beam"], [probed, timed], WORDS, [])
    assert (table.name, len(table.rows), table.config.training.probe.every_steps) == ("table6_beam", 8, 5)
    assert (own.name, [row.label for row in own.rows]) == ("table6_beam-a_claim", ["B1", "B3"])
    assert words == ["sweep=table6_beam", "training.max_steps=3", *WORDS]
    assert table.reports != own.reports
    assert not isolated_runs.exists()
