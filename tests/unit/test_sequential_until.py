"""`replicates=until …`: what is asked, how many replicates come of it, and a sweep that grows row by row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from finished_runs import finish

from nmt.config import from_dict
from nmt.errors import UserError
from sweeps.ad_hoc import ad_hoc_spec
from sweeps.executors.inline import InlineExecutor
from sweeps.packs.contents import spec_yaml
from sweeps.plan import make_plan, plan_again
from sweeps.saved import save_spec
from sweeps.spec import RowSpec, SweepSpec, load_spec
from sweeps.statistics.sequential import calibrate, half_width
from sweeps.sweep import main
from sweeps.until import Decision, Until, decide, forecast, read_until, split_until, stopping_notes
from sweeps.worker import WorkItem

RULE = Until(kind="ci", width=1.0, looks=(4, 6, 8))
QUIET = [20.0, 20.1, 20.2, 20.1]
NOISY = [20.0, 26.0, 21.0, 19.0, 24.0, 18.0, 25.0, 20.0, 22.0, 23.0]


def scores(values: Sequence[float | None]) -> Callable[[int], float | None]:
    return lambda replicate: values[replicate] if replicate < len(values) else None


def test_a_rule_is_read_with_its_defaults() -> None:
    assert read_until("until ci<0.3 max=12") == Until(kind="ci", width=0.3, looks=(4, 6, 8, 10, 12))
    assert read_until("until ci_difference<.5 min=3 step=4 max=12") == Until(
        kind="ci_difference", width=0.5, looks=(3, 7, 11, 12)
    )
    assert read_until("until ci<1 max=4") == Until(kind="ci", width=1.0, looks=(4,))
    assert read_until("4") is read_until("") is None
    assert read_until(str(read_until("until ci<0.3 max=9"))) == read_until("until ci<0.3 max=9")
    assert split_until(["seed=3", "replicates=until ci<1 min=5 max=9"])[1] == ["seed=3", "replicates=5"]
    assert split_until(["replicates=3", "seed=3"]) == (None, ["replicates=3", "seed=3"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("until", "'until' what?"),
        ("until ci", "'ci' is no condition"),
        ("until sd<1 max=9", "unknown 'sd'; allowed: ci, ci_difference"),
        ("until ci<wide max=9", "'wide' is no width"),
        ("until ci<0 max=9", "'0' is no width"),
        ("until ci<1", "max: is missing"),
        ("until ci<1 max=3", "3 is less than min=4"),
        ("until ci<1 max=ten", "'ten' is no number"),
        ("until ci<1 min=1 max=9", "min: '1' is no number of replicates; allowed: >= 2"),
        ("until ci<1 maks=9", "did you mean max"),
    ],
)
def test_a_mistake_in_a_rule_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match="replicates") as error:
        read_until(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_stops_at_the_first_look_that_is_narrow_enough() -> None:
    error = calibrate(RULE.looks).error
    (quiet,) = decide(RULE, {"A": scores(QUIET)}, None).values()
    assert quiet == Decision(replicates=4, state="narrow", half_width=half_width(QUIET, None, error))
    (more_than_needed,) = decide(RULE, {"A": scores([*QUIET, *NOISY])}, None).values()
    assert more_than_needed == quiet
    at_six = half_width(NOISY[:6], None, error)
    for width, stops in ((at_six, 6), (at_six * 0.999, 8)):
        (one,) = decide(dataclasses.replace(RULE, width=width), {"A": scores(NOISY)}, None).values()
        assert (one.replicates, one.state) == (stops, "narrow")
    (wide,) = decide(RULE, {"A": scores(NOISY)}, None).values()
    assert wide == Decision(replicates=8, state="wide", half_width=half_width(NOISY[:8], None, error))


def test_a_row_waits_for_the_replicates_of_its_next_look() -> None:
    def states(values: Sequence[float | None]) -> tuple[int, str, bool]:
        (one,) = decide(RULE, {"A": scores(values)}, None).values()
        return one.replicates, one.state, one.half_width is not None

    assert states([]) == states(NOISY[:3]) == (4, "waiting", False)
    assert states(NOISY[:4]) == states(NOISY[:5]) == (6, "waiting", True)
    assert states([*NOISY[:4], None, *NOISY[5:]]) == (6, "waiting", True)  # a hole waits, whatever follows it
    assert states([20.0, math.nan, 20.0, 20.0]) == (4, "undefined", False)


def test_a_difference_has_as_many_replicates_on_either_side() -> None:
    rule = dataclasses.replace(RULE, kind="ci_difference")
    rows = {"base": scores(QUIET), "quiet": scores([one + 5 for one in QUIET]), "noisy": scores(NOISY)}
    found = decide(rule, rows, "base")
    assert {label: (one.replicates, one.state) for label, one in found.items()} == {
        "base": (6, "baseline"),
        "quiet": (4, "narrow"),
        "noisy": (6, "waiting"),
    }
    with pytest.raises(UserError, match="ci_difference needs a baseline"):
        decide(rule, rows, None)


SPEC = SweepSpec(
    name="grown",
    title="Rows that need different numbers of replicates",
    rows=(RowSpec(label="quiet"), RowSpec(label="noisy", experiment="t2_lstm")),
)
WORDS = ["tracking=none", "executor=inline", "replicates=until ci<4 max=8"]
BLEU = {"quiet": QUIET, "noisy": NOISY}


def score_of(label: str, seed: int) -> float:
    return BLEU[label][seed - 1]


def test_a_plan_grows_with_the_results_and_comes_to_the_same_numbers_in_any_order() -> None:
    plan = make_plan(SPEC, WORDS)
    assert [len(row.runs) for row in plan.rows] == [4, 4]
    assert forecast(plan)[1:] == [
        "quiet: 4 to 8; nothing is known of its sd yet",
        "noisy: 4 to 8; nothing is known of its sd yet",
        "8 to 16 replicates in all",
    ]
    everything = make_plan(SPEC, [*WORDS[:-1], "replicates=8"])
    for run in reversed(everything.rows[1].runs):  # the last replicates are there first
        finish(run.config, score_of("noisy", run.config.seed))
    for run in plan.rows[0].runs:
        finish(run.config, score_of("quiet", run.config.seed))
    grown = make_plan(SPEC, WORDS)
    assert [len(row.runs) for row in grown.rows] == [4, 6]
    assert grown.missing == []
    assert [one.state for one in grown.decisions.values()] == ["narrow", "narrow"]
    notes = stopping_notes(grown)
    assert notes[0].startswith(
        "replicates until ci<4 min=4 step=2 max=8: the interval of a row's mean, at each look with 96.8%"
    )
    assert "simulated coverage 95.0% at the worst true sd" in notes[0]
    assert notes[2].startswith("noisy: ± 3.69 with 6 replicates; simulated coverage 9")


class Playing(InlineExecutor):
    """Finishes what it is given at once; `fails` names runs (label, seed) that never do.

    With `patience`, Ctrl-C comes after so many runs.
    """

    batches: ClassVar[list[list[str]]] = []
    patience: ClassVar[int | None] = None
    fails: ClassVar[set[tuple[str, int]]] = set()

    def execute(self, items: list[WorkItem], on_poll: object, tell: object = None) -> None:  # type: ignore[override]
        configs = [from_dict(item.configs[0]) for item in items]
        self.batches.append([f"{config.label}/{config.seed}" for config in configs])
        for config in configs[: self.patience]:
            if (config.label, config.seed) not in self.fails:
                finish(config, score_of(config.label, config.seed))
        if self.patience is not None and len(configs) > self.patience:
            raise KeyboardInterrupt


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    monkeypatch.setattr("sweeps.executors.inline.InlineExecutor", Playing)
    monkeypatch.setattr(Playing, "batches", [])
    monkeypatch.setattr(Playing, "fails", set())
    monkeypatch.setattr(Playing, "patience", None)
    return Playing.batches


@pytest.fixture
def sweep_file(tmp_path: Path) -> str:
    path = tmp_path / "grown.yaml"
    path.write_text("title: T\nrows:\n  - {label: quiet}\n  - {label: noisy, experiment: t2_lstm}\n", encoding="utf-8")
    return f"sweep={path}"


def test_a_sweep_adds_replicates_where_they_are_needed_and_not_elsewhere(
    batches: list[list[str]], sweep_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([sweep_file, *WORDS]) == 0
    assert batches == [
        ["quiet/1", "noisy/1", "quiet/2", "noisy/2", "quiet/3", "noisy/3", "quiet/4", "noisy/4"],
        ["noisy/5", "noisy/6"],
    ]
    out = capsys.readouterr().out
    assert "2 rows, replicates until ci<4 min=4 step=2 max=8: 8 of 8 runs to do" in out
    assert "noisy ± 5.88" in out  # after the first look
    assert "so far, 6 replicates next" in out
    assert "add replicates" not in out
    assert main([sweep_file, *WORDS]) == 0
    assert len(batches) == 2  # nothing was left to do
    assert "all 10 runs are there, nothing to train" in capsys.readouterr().out


def test_an_interrupted_sweep_comes_to_the_same_numbers(
    batches: list[list[str]], sweep_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Playing, "patience", 3)
    codes = [main([sweep_file, *WORDS]) for _ in range(4)]
    assert codes == [75, 75, 0, 0]  # 3 of 8 runs, 3 of 5, the last 2 and what the next look wants
    assert [len(batch) for batch in batches] == [8, 5, 2, 2]
    assert batches[-1] == ["noisy/5", "noisy/6"]


def test_a_replicate_that_fails_holds_its_row_up_and_no_other(
    batches: list[list[str]], sweep_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Playing, "fails", {("quiet", 2)})
    assert main([sweep_file, *WORDS]) == 1
    assert batches[1:] == [["noisy/5", "noisy/6"]]  # the failed one is not tried at every look
    monkeypatch.setattr(Playing, "fails", set())
    assert main([sweep_file, *WORDS]) == 0
    assert batches[2:] == [["quiet/2"]]


def test_the_rule_may_stand_in_the_sweeps_yaml_and_the_command_line_takes_its_place(
    batches: list[list[str]], sweep_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grown.yaml"
    path.write_text(path.read_text() + "replicates: until ci<4 max=8\n", encoding="utf-8")
    assert main([sweep_file, *WORDS[:-1]]) == 0
    assert [len(batch) for batch in batches] == [8, 2]
    assert "2 rows, replicates until ci<4 min=4 step=2 max=8" in capsys.readouterr().out
    plan = make_plan(load_spec(str(path)), WORDS[:-1])
    assert [len(row.runs) for row in plan.rows] == [4, 6]
    assert plan_again(plan).decisions == plan.decisions
    assert [len(row.runs) for row in make_plan(plan.spec, ["replicates=3"]).rows] == [3, 3]
    assert [len(row.runs) for row in make_plan(plan.spec, ["replicates=until ci<9 max=4"]).rows] == [4, 4]
    spec = yaml.safe_load(spec_yaml(plan.spec, plan.config.replicates))  # a pack's: its rule stands in pack.json
    assert (spec["replicates"], "until" in spec) == (4, False)
    path.write_text(path.read_text().replace("max=8", "max=3"), encoding="utf-8")
    with pytest.raises(UserError, match=r"grown\.yaml\.replicates: max: 3 is less than min=4; raise it"):
        load_spec(str(path))


def test_a_grid_is_saved_with_its_rule(tmp_path: Path) -> None:
    spec, here = ad_hoc_spec(["batch.size=8,16"], ["experiment=baseline", *WORDS], "mine")
    assert (spec.until, spec.replicates, here) == ("until ci<4 max=8", None, WORDS[:2])
    assert save_spec(tmp_path / "mine.yaml", spec, [])
    assert load_spec(str(tmp_path / "mine.yaml")) == spec


def test_a_grid_takes_a_rule_and_a_search_says_that_it_does_not(
    batches: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f"{__name__}.score_of", lambda label, seed: QUIET[seed - 1])
    grid = ["experiment=baseline", "grid=batch.size=8,16", "replicates=until ci<3 max=6", *WORDS[:2]]
    assert main([*grid, "dry_run=true"]) == 0
    assert "8 to 12 replicates in all" in capsys.readouterr().out
    assert main(grid) == 0
    assert [len(batch) for batch in batches] == [8]
    with pytest.raises(UserError, match="is not a number of replicates"):
        main(["search_space=rate_and_dropout", "replicates=until ci<3 max=6"])
