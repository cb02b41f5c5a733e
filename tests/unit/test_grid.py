"""Grids of searches over stored runs: which runs are meant, which cells are there, what a row's search is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from finished_runs import decode, finish

from nmt.config import RunConfig, compose, to_dict
from nmt.errors import UserError
from nmt.evaluate import EvaluateOptions
from nmt.runs import LocalRunStore
from sweeps.chosen import of_runs
from sweeps.grid import grid_plan, row_searches, split_words
from sweeps.spec import RowSpec, SweepSpec, load_spec

SPEC = SweepSpec(
    name="two",
    title="Two searches",
    rows=(
        RowSpec(label="narrow", overrides=("search.beam=1",)),
        RowSpec(label="wide", overrides=("search=beam10", "search.length_penalty=0.5")),
    ),
    overrides=("training.max_steps=7", "search.max_length=9"),
)


def finished(runs: Path, seed: int, state: str = "finished") -> tuple[str, RunConfig]:
    config = compose(["search=beam5", f"paths.runs={runs}", f"seed={seed}"])
    run_id = finish(config, None, state=state)
    LocalRunStore(runs).write_text(run_id, "config.yaml", yaml.safe_dump(to_dict(config)))
    return run_id, config


def test_rows_of_a_grid_are_searches_only() -> None:
    assert row_searches(SPEC, ["search.stop=bound"]) == {
        "narrow": ["search.max_length=9", "search.beam=1", "search.stop=bound"],
        "wide": ["search=beam10", "search.length_penalty=0.5", "search.stop=bound"],
    }
    trained = dataclasses.replace(SPEC, rows=(*SPEC.rows, RowSpec(label="deep", overrides=("model.decoder.layers=4",))))
    with pytest.raises(UserError, match=r"row 'deep' differs in more than its search: model\.decoder\.layers=4"):
        row_searches(trained)
    other = dataclasses.replace(SPEC, rows=(*SPEC.rows, RowSpec(label="lstm", experiment="t2_lstm")))
    with pytest.raises(UserError, match="row 'lstm' differs in more than its search: experiment=t2_lstm"):
        row_searches(other)


def test_words_of_the_search_and_others() -> None:
    words = ["search=beam5", "scale=smoke", "search.beam=3", "data.dir=x"]
    assert split_words(words) == (["search=beam5", "search.beam=3"], ["scale=smoke", "data.dir=x"])


def test_the_published_grid_has_the_published_searches() -> None:
    spec = load_spec("table6_beam")
    run = compose(["search=beam5"])
    from nmt.config.override import override

    searches = {label: override(run, words).search for label, words in row_searches(spec).items()}
    assert {label: (search.beam, search.length_penalty) for label, search in searches.items()} == {
        "B1": (1, 0.0), "B3": (3, 0.0), "B5": (5, 0.0), "B10": (10, 0.0), "B25": (25, 0.0), "B100": (100, 0.0),
        "B10-LP-0.5": (10, 0.5), "B10-LP-1.0": (10, 1.0),
    }  # fmt: skip


def test_an_id_without_a_seed_stands_for_all_its_replicates(tmp_path: Path) -> None:
    ids = [finished(tmp_path, seed)[0] for seed in (2, 10, 1)]
    interrupted, _ = finished(tmp_path, 3, state="interrupted")
    train_id = ids[0].partition("/")[0]
    in_order = tuple(f"{train_id}/s{seed}" for seed in (1, 2, 10))
    for text in (train_id, train_id[:5], str(tmp_path / train_id)):
        (found,) = of_runs([text], str(tmp_path), "nmt evaluate")
        assert (found.run_ids, found.left_out) == (in_order, (interrupted,))
    (found,) = of_runs([f"{train_id}/s10", str(tmp_path / train_id / "s2")], str(tmp_path), "nmt evaluate")
    assert found.run_ids == (f"{train_id}/s10", f"{train_id}/s2")
    with pytest.raises(UserError, match="has no replicate that has ended"):
        of_runs([interrupted], str(tmp_path), "nmt evaluate")
    with pytest.raises(UserError, match=r"run=fffff: no such run; allowed: " + train_id):
        of_runs(["fffff"], str(tmp_path), "nmt evaluate")


def test_cells_are_found_by_checkpoint_search_and_test_text(tmp_path: Path) -> None:
    run_id, config = finished(tmp_path, 1)
    second, other = finished(tmp_path, 2)
    narrow = dataclasses.replace(config.search, beam=1, max_length=9)
    decode(dataclasses.replace(config, search=narrow), f"{run_id}-checkpoint", 20.5)
    (configuration,) = of_runs([run_id.partition("/")[0]], str(tmp_path), "nmt evaluate")
    plan = grid_plan(SPEC, row_searches(SPEC), configuration, [], EvaluateOptions(threads=1))
    cells = {(row.label, run.run_id): run.found for row in plan.rows for run in row.runs}
    assert [key for key, found in cells.items() if found.complete] == [("narrow", run_id)]
    assert cells["narrow", run_id].metrics["bleu"] == 20.5
    assert {run.config.search for run in plan.rows[0].runs} == {narrow}
    wide = plan.rows[1].config.search
    assert (wide.beam, wide.length_penalty, wide.max_length) == (10, 0.5, 100)
    assert plan.reports.name == f"two-{second.partition('/')[0]}"
    assert plan.rows[1].runs[1].config.model == other.model
