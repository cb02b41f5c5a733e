"""Which runs count when the code or a row has changed: marks, runs set aside, and what a row stood for before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finished_runs import finish

from nmt.config import RunConfig
from nmt.config.identity import training_identity
from nmt.environment import same_sources
from nmt.errors import UserError
from nmt.runs import LocalRunStore
from sweeps.aggregate import aggregate
from sweeps.ledger import Question, record_rows
from sweeps.plan import SweepPlan, make_plan
from sweeps.reporting.table import make_table
from sweeps.reuse import PresentCode, code_name, compare_with_set_aside, set_aside
from sweeps.spec import RowSpec, SweepSpec

OURS, OTHER = PresentCode("a" * 12), {"commit": "b" * 40, "patch_sha256": None, "version": "0.1.0"}


def made_by(config: RunConfig, code: dict[str, object], **result: object) -> str:
    """A finished run that this code has trained."""
    run_id = finish(config, 20.0, **result)  # type: ignore[arg-type]
    store = LocalRunStore(config.paths.runs)
    store.write_json(run_id, "env.json", {"code": code})
    store.write_json(run_id, "identity.json", training_identity(config))
    return run_id


def spec(*overrides: str) -> SweepSpec:
    return SweepSpec(name="test", title="A test", rows=(RowSpec(label="A", overrides=overrides),), replicates=2)


def plan_of(*overrides: str, reuse: str = "any", words: tuple[str, ...] = ()) -> SweepPlan:
    return make_plan(spec(*overrides), words, reuse=reuse, code=OURS)


def test_a_version_of_the_code_has_a_short_name() -> None:
    assert code_name({"commit": "0123456789abcdef", "patch_sha256": None, "version": "1"}) == "0123456789ab"
    assert code_name({"commit": "0123456789abcdef", "patch_sha256": "fedcba9876543210"}) == "0123456789ab+fedcba98"
    assert code_name({"commit": None, "version": "0.1.0"}) == "version 0.1.0"
    assert code_name(None) == code_name({}) == ""


def test_a_commit_that_changed_no_source_is_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def same(one: str, other: str) -> bool:
        asked.append((one, other))
        return one == "docs"

    monkeypatch.setattr("sweeps.reuse.same_sources", same)
    present = PresentCode("now+patch")
    assert present.made("now+patch")
    assert present.made("docs+patch")
    assert not present.made("model+patch")
    assert not present.made("model+patch")
    assert not present.made("docs")  # committed and not: the patch differs
    assert not present.made("version 0.1.0")
    assert not present.made("")
    assert asked == [("docs", "now"), ("model", "now")]  # git is asked once for each commit
    assert not same_sources("no such commit", "HEAD")


def test_what_other_code_trained_counts_and_is_marked() -> None:
    first, second = plan_of().runs
    made_by(first.config, OTHER)
    made_by(second.config, {"commit": "a" * 40, "patch_sha256": None})
    plan = plan_of()
    assert plan.missing == []
    table = make_table(plan, aggregate(plan))
    assert f"a: 1 of 2 trained by other code ({'b' * 12}); reuse=same_code trains anew" in table.legend
    made_by(first.config, {"commit": "a" * 40, "patch_sha256": None})
    assert not any("other code" in line for line in make_table(plan, aggregate(plan)).legend)


def test_same_code_trains_anew_and_leaves_the_old_run_aside() -> None:
    first, second = plan_of().runs
    run_id = made_by(first.config, OTHER)
    made_by(second.config, {"commit": "a" * 40, "patch_sha256": None})
    plan = plan_of(reuse="same_code")
    assert [(run.todo, run.set_aside) for run in plan.runs] == [("anew", "b" * 12), ("nothing", None)]
    assert [item.run_ids for item in plan.work_items()] == [(run_id,)]
    store = plan.store
    before = (store.directory(run_id) / "result.json").read_bytes()
    place = set_aside(store, run_id, "b" * 12)
    assert place == store.root / ".set_aside" / f"{run_id}-{'b' * 12}-1"
    assert (place / "result.json").read_bytes() == before
    assert store.list_runs() == [second.run_id]
    assert plan_of(reuse="same_code").runs[0].todo == "train"
    made_by(first.config, {"commit": "a" * 40, "patch_sha256": None})
    assert plan_of(reuse="same_code").missing == []
    line = "trained anew with this code: 1 of 1 runs have the same parameters as before"
    assert compare_with_set_aside(store, [run_id, second.run_id]) == line


def test_other_bits_under_one_numerics_version_are_told() -> None:
    first, _ = plan_of().runs
    run_id = made_by(first.config, OTHER, best={"checkpoint_digest": "other"})
    store = plan_of().store
    set_aside(store, run_id, "")
    assert compare_with_set_aside(store, [run_id]) == ""  # not trained yet
    made_by(first.config, OTHER)
    said = compare_with_set_aside(store, [run_id])
    assert said.startswith("trained anew with this code: 0 of 1 runs have the same parameters")
    assert f"not {run_id}: other code gave other bits" in said
    set_aside(store, run_id, "")  # once more: nothing is overwritten
    assert len(list((store.root / ".set_aside").rglob("result.json"))) == 2


def test_a_run_that_a_process_holds_is_left_alone() -> None:
    (first, _) = plan_of().runs
    run_id = made_by(first.config, OTHER)
    store = plan_of().store
    with store.claim(run_id), pytest.raises(UserError):
        set_aside(store, run_id, "b")
    assert (store.directory(run_id) / "result.json").is_file()


def test_attempts_are_counted_on_from_the_run_that_was_set_aside() -> None:
    run_id = made_by(plan_of().runs[0].config, OTHER)
    store = plan_of().store
    with store.claim(run_id) as held:
        assert held.attempt.number == 1
    set_aside(store, run_id, "b")
    assert store.status(run_id).state == "queued"
    with store.claim(run_id) as held:
        assert held.attempt.number == 2


def ran(plan: SweepPlan) -> None:
    """Note and finish what the plan consists of."""
    record_rows(plan.store, Question.of(plan.name, plan.overrides), {row.label: row.train_id for row in plan.rows})
    for run in plan.missing:
        made_by(run.config, OTHER)


def test_a_changed_row_is_a_new_run_and_the_old_one_is_listed() -> None:
    ran(plan_of("batch.size=8"))
    (old,) = {row.train_id for row in plan_of("batch.size=8").rows}
    assert plan_of("batch.size=8").superseded == ()
    plan = plan_of("batch.size=9")
    assert [run.todo for run in plan.runs] == ["train", "train"]
    (before,) = plan.superseded
    assert str(before) == f"A was {old} (s1, s2): batch.size: 8 != 9"
    ran(plan)
    assert f"superseded: {before}" in make_table(plan, aggregate(plan)).notes
    (back,) = plan_of("batch.size=8").superseded  # changed back, it is the other one that is out of date
    assert back.train_id == plan.rows[0].train_id


def test_another_question_supersedes_nothing() -> None:
    ran(plan_of("batch.size=8"))
    assert plan_of("batch.size=8", words=("training.max_steps=9",)).superseded == ()
    # Replicates and places are no part of the question.
    places = ("executor=inline", "threads=1", "replicates=3")
    assert len(plan_of("batch.size=9", words=places).superseded) == 1


def test_a_damaged_ledger_forgets_and_nothing_else(isolated_runs: Path) -> None:
    ran(plan_of("batch.size=8"))
    path = isolated_runs / ".sweeps" / "test.jsonl"
    (line,) = path.read_text(encoding="utf-8").splitlines()
    ran(plan_of("batch.size=8"))
    assert path.read_text(encoding="utf-8").splitlines() == [line]  # once
    path.write_text(f'{{"torn\n[]\n{json.dumps({"overrides": []})}\n{line}\n', encoding="utf-8")
    assert len(plan_of("batch.size=9").superseded) == 1
    path.unlink()
    assert plan_of("batch.size=9").superseded == ()
