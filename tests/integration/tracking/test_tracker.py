"""MLflow's view against the run directories it shows."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nmt.config.identity import run_id
from sweeps.tracking.store import StoreLock
from sweeps.tracking.tracker import MlflowTracker, open_for_run, open_for_sweep

pytestmark = pytest.mark.usefixtures("heard")


def test_a_sweep_is_a_tree_of_configurations_and_replicates(runs, view) -> None:
    one, two = [runs.config("additive", seed) for seed in (1, 2)]
    other = runs.config("none", **{"experiment": "t5_none_state"})
    for config, bleu in ((one, 30.0), (two, 31.0), (other, 10.0)):
        runs.whole(config, bleu)
    tracker = open_for_sweep("study", "local", [runs.group(one), runs.group(other, range(1, 2))], runs.store)
    tracker.poll()
    tracker.close()

    seen = view()
    parents, children = seen.parents(), seen.children()
    assert set(parents) == {"additive", "none"}
    assert set(children) == {run_id(one), run_id(two), run_id(other)}
    parent = parents["additive"]
    expected = {"bleu_mean": 30.5, "bleu_sd": round(statistics.stdev([30, 31]), 4), "bleu_max": 31.0, "n": 2}
    assert {name: parent.data.metrics[name] for name in expected} == expected
    assert parent.data.metrics["parameters"] == 12345
    assert parent.data.tags["bleu"] == "30.50 ± 0.71 (31.00)"
    assert parents["none"].data.tags["bleu"] == "10.00 (10.00)"
    assert "bleu_sd" not in parents["none"].data.metrics
    assert parent.data.params["model.attention.name"] == one.model.attention.name
    assert parent.info.status == "FINISHED"
    assert [item.path for item in seen.client.list_artifacts(parent.info.run_id)] == ["config.yaml"]
    assert seen.experiment.tags["mlflow.sharedViewState.nmt"].startswith('{"selectedColumns": ["tags.`bleu`"')

    child = children[run_id(two)]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.run_name == "additive · seed 2"
    assert child.info.status == "FINISHED"
    assert child.data.params["seed"] == "2"
    assert child.data.tags["mlflow.source.git.commit"] == "0123456789abcdef0123456789abcdef01234567"
    assert child.data.tags["mlflow.source.name"] == "nmt train"
    assert child.data.metrics["test/decode/bleu"] == 31.0
    assert child.data.metrics["best_val_bleu"] == 32.0
    assert child.data.metrics["convergence_steps"] == 100
    (dataset,) = child.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("toy_translation", "ab" * 18)
    stored = {item.path for item in seen.client.list_artifacts(child.info.run_id)}
    assert stored == {"config.yaml", "env.json", "metrics.jsonl", "result.json"}
    assert seen.curve(child, "val/decode/bleu") == [(100, 32.0)]
    assert seen.curve(parent, "val/decode/bleu") == [(100, 31.5)]


def test_rows_can_be_sorted_by_the_numbers_that_they_differ_in(runs, view) -> None:
    rows = {}
    for units in (128, 64, 1024):
        config = runs.config(f"{units} units", **{"model.attention.units": units})
        runs.whole(config, units / 100)
        rows[units] = runs.group(config, range(1, 2))
    tracker = open_for_sweep("study", "local", list(rows.values()), runs.store)
    tracker.close()
    seen = view()
    order = ["metrics.`factor.model.attention.units` DESC"]
    condition = "tags.`nmt.kind` = 'configuration'"
    found = seen.client.search_runs([seen.experiment.experiment_id], condition, order_by=order)
    assert [run.info.run_name for run in found] == ["1024 units", "128 units", "64 units"]
    factors = [name for name in found[0].data.metrics if name.startswith("factor.")]
    assert factors == ["factor.model.attention.units"]
    assert "metrics.`factor.model.attention.units`" in seen.experiment.tags["mlflow.sharedViewState.nmt"]


def test_polls_append_what_is_new_and_nothing_twice(runs, view) -> None:
    config = runs.config("additive")
    name = runs.begin(config)
    tracker = runs.tracker(runs.group(config, range(1, 2)))
    expected = []
    for start in (1, 11, 21):
        runs.train(name, range(start, start + 10))
        expected += list(range(start, start + 10))
        with runs.store.claim(name):
            tracker.poll()
            tracker.poll()
        seen = view()
        assert [step for step, _ in seen.curve(seen.children()[name])] == expected
        assert seen.children()[name].info.status == seen.parents()["additive"].info.status == "RUNNING"
    tracker.close()


def test_probes_are_curves_of_their_own_beside_evaluations_of_the_same_step(runs, view) -> None:
    configs = [runs.config("probed", seed) for seed in (1, 2)]
    names = [runs.begin(config) for config in configs]
    tracker = runs.tracker(runs.group(configs[0]))
    for steps in (range(10, 31, 10), range(40, 51, 10)):
        for name in names:
            runs.train(name, steps)
            runs.probe(name, steps)
            runs.evaluate(name, steps[-1], 20.0)
        tracker.poll()
    tracker.close()
    found = view()
    for run in (*found.children().values(), found.parents()["probed"]):
        assert found.curve(run, "probe/gradient/all") == [(step, step / 10) for step in range(10, 51, 10)]
        assert found.curve(run, "probe/state_gradient/decoder.0")[-1] == (50, 1 / 50)


def test_more_points_than_fit_a_request(runs, view) -> None:
    config = runs.config("additive")
    name = runs.whole(config, 30.0, steps=4000)
    runs.tracker(runs.group(config, range(1, 2))).close()
    seen = view()
    for metric in ("train/loss", "train/gradient_norm"):
        assert [step for step, _ in seen.curve(seen.children()[name], metric)] == list(range(10, 4001, 10))


@pytest.mark.parametrize("same_process", [True, False], ids=["same tracker", "new tracker"])
def test_a_resumed_run_has_no_step_twice(runs, view, same_process: bool) -> None:
    config = runs.config("additive")
    group = runs.group(config, range(1, 2))
    name = runs.begin(config)
    metrics = runs.store.directory(name) / "metrics.jsonl"
    runs.train(name, range(10, 51, 10))
    size_at_checkpoint = metrics.stat().st_size
    runs.train(name, range(60, 101, 10))
    tracker = runs.tracker(group)
    tracker.poll()
    runs.store.truncate(name, "metrics.jsonl", size_at_checkpoint)  # killed at 100, resumed from 50
    if not same_process:
        tracker.close()  # finds the run's process gone
        seen = view()
        assert seen.children()[name].info.status == "KILLED"
        tracker = runs.tracker(group)
    runs.train(name, range(60, 71, 10))
    tracker.poll()
    runs.train(name, range(80, 151, 10))
    runs.finish(config, 30.0)
    tracker.close()
    seen = view()
    (child,) = seen.children().values()
    assert [step for step, _ in seen.curve(child)] == list(range(10, 151, 10))
    assert child.info.status == "FINISHED"


def test_another_training_under_the_same_id_takes_the_place_of_the_first(runs, view) -> None:
    config = runs.config("additive")
    group = runs.group(config, range(1, 2))
    name = runs.whole(config, 30.0)
    runs.tracker(group).close()
    runs.store.delete(name, "metrics.jsonl")
    runs.begin(config)
    runs.train(name, range(10, 101, 10), loss=7.0)
    runs.finish(config, 20.0)
    runs.tracker(group).close()
    seen = view()
    (child,) = seen.children().values()
    assert seen.curve(child) == seen.curve(seen.parents()["additive"]) == [(step, 7.0) for step in range(10, 101, 10)]
    assert child.data.tags["mlflow.parentRunId"] == seen.parents()["additive"].info.run_id
    assert seen.parents()["additive"].data.metrics["bleu_mean"] == 20.0


@pytest.mark.parametrize(
    ("state", "status"),
    [("finished", "FINISHED"), ("diverged", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED")],
)
def test_states(runs, view, state: str, status: str) -> None:
    config = runs.config("additive")
    name = runs.begin(config)
    runs.train(name, range(10, 101, 10))
    if state in ("finished", "diverged"):
        runs.finish(config, 5.0, state)
    else:
        runs.state(name, state, error="it broke" if state == "failed" else "")
    runs.tracker(runs.group(config, range(1, 2))).close()
    seen = view()
    child, parent = seen.children()[name], seen.parents()["additive"]
    assert (child.info.status, child.data.tags["nmt.state"]) == (status, state)
    assert parent.info.status == status
    assert parent.data.metrics["n"] == (state in ("finished", "diverged"))
    assert child.data.tags.get("nmt.error", "") == ("it broke" if state == "failed" else "")


def test_replicates_that_have_not_begun_are_not_shown(runs, view) -> None:
    config = runs.config("additive")
    runs.whole(config, 30.0)
    runs.tracker(runs.group(config, range(1, 4))).close()
    seen = view()
    assert len(seen.children()) == 1
    assert seen.parents()["additive"].data.metrics["n"] == 1


def test_replicates_added_later_join_their_configuration(runs, view) -> None:
    config = runs.config("additive")
    for seed, bleu in ((1, 30.0), (2, 32.0)):
        runs.whole(runs.config("additive", seed), bleu)
        runs.tracker(runs.group(config, range(1, seed + 1))).close()
    seen = view()
    assert len(seen.parents()) == 1 and len(seen.children()) == 2
    parent = seen.parents()["additive"]
    assert parent.data.metrics["bleu_mean"] == 31.0
    assert seen.curve(parent, "val/decode/bleu") == [(100, 32.0)]  # the mean of both, not that of the first as well
    assert {child.data.tags["mlflow.parentRunId"] for child in seen.children().values()} == {parent.info.run_id}


def test_one_training_with_two_searches_is_two_configurations(runs, view) -> None:
    narrow = runs.config("beam 1", **{"search.beam": 1})
    wide = runs.config("beam 5", **{"search.beam": 5})
    assert run_id(narrow) == run_id(wide)
    runs.whole(narrow, 30.0)
    runs.decode(wide, 31.0)
    runs.tracker(runs.group(narrow, range(1, 2)), runs.group(wide, range(1, 2))).close()
    parents = view().parents()
    assert {name: run.data.metrics["bleu_mean"] for name, run in parents.items()} == {"beam 1": 30.0, "beam 5": 31.0}


def test_a_damaged_run_is_left_out_and_named(runs, view, caplog: pytest.LogCaptureFixture) -> None:
    config, broken = runs.config("additive", 1), runs.config("additive", 2)
    runs.whole(config, 30.0)
    name = runs.whole(broken, 40.0)
    runs.store.write_text(name, "result.json", "{not json")
    runs.tracker(runs.group(config)).close()
    assert view().parents()["additive"].data.metrics["bleu_mean"] == 30.0
    (line,) = [record.getMessage() for record in caplog.records]
    assert name in line and "result.json" in line


def test_a_report_is_attached(runs, view, tmp_path: Path) -> None:
    config = runs.config("additive")
    runs.whole(config, 30.0)
    (tmp_path / "table.md").write_text("| row | BLEU |\n")
    tracker = runs.tracker(runs.group(config, range(1, 2)))
    tracker.attach(tmp_path / "table.md")
    tracker.close()
    seen = view()
    (item,) = seen.client.list_artifacts(seen.parents()["additive"].info.run_id, "report")
    assert item.path == "report/table.md"
    assert seen.experiment.tags["mlflow.note.content"] == "| row | BLEU |\n"


def test_one_writer_at_a_time(runs, view, caplog: pytest.LogCaptureFixture) -> None:
    one, two = runs.config("one"), runs.config("two", **{"experiment": "t5_none_state"})
    first = runs.tracker(runs.group(one, range(1, 2)))
    second = runs.tracker(runs.group(two, range(1, 2)))
    runs.whole(two, 20.0)
    second.poll()
    second.poll()
    assert set(view().parents()) == {"one"}
    (line,) = [record.getMessage() for record in caplog.records]
    assert "is writing to it" in line and "nmt sync" in line
    first.close()
    second.close()  # the store is free by now
    assert view().parents()["two"].data.metrics["bleu_mean"] == 20.0


def test_an_error_of_the_store_costs_one_line_and_no_training(runs, view, caplog, monkeypatch) -> None:
    config = runs.config("additive")
    group = runs.group(config, range(1, 2))
    name = runs.begin(config)
    tracker = runs.tracker(group)
    runs.train(name, range(10, 51, 10))
    tracker.poll()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlflow.tracking.MlflowClient.log_batch", refuse)
    for start in (60, 110):
        runs.train(name, range(start, start + 50, 10))
        tracker.poll()
    runs.finish(config, 30.0)
    tracker.attach(Path("nowhere.md"))
    tracker.close()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "No space left on device" in line and "nmt sync" in line
    monkeypatch.undo()
    assert StoreLock(tracker.uri, runs.root).acquire()  # the lock went with the tracker
    seen = view()
    assert [step for step, _ in seen.curve(seen.children()[name])] == [10, 20, 30, 40, 50]


def test_an_unreachable_server_costs_a_moment_and_one_line(runs, caplog: pytest.LogCaptureFixture) -> None:
    config = runs.config("additive", **{"tracking.uri": "http://127.0.0.1:9"})
    runs.whole(config, 30.0)
    begin = time.monotonic()
    tracker = open_for_run(config, runs.store)
    tracker.poll()
    tracker.close()
    assert time.monotonic() - begin < 20
    (line,) = [record.getMessage() for record in caplog.records]
    assert "http://127.0.0.1:9" in line and "Connection refused" in line


def test_a_lone_run_is_tracked_with_its_configurations_other_replicates(runs, view) -> None:
    for seed, bleu in ((1, 30.0), (2, 31.0)):
        config = runs.config("", seed)
        runs.whole(config, bleu)
        tracker = open_for_run(config, runs.store)
        assert isinstance(tracker, MlflowTracker)
        tracker.close()
    (parent,) = view(f"train@{config.scale.name}").parents().values()
    assert parent.info.run_name == run_id(config).partition("/")[0]
    assert parent.data.metrics["bleu_mean"] == 30.5


def test_processes_that_start_together_on_an_empty_store(runs, view) -> None:
    (runs.root / "mlflow.db").unlink()
    code = (
        "import sys; from nmt.config import load_run_config; from nmt.runs import LocalRunStore;"
        "from sweeps.tracking.tracker import open_for_run; store = LocalRunStore(sys.argv[1]);"
        "tracker = open_for_run(load_run_config(store.directory(sys.argv[2]) / 'config.yaml'), store);"
        "tracker.poll(); tracker.close()"
    )
    names = [runs.whole(runs.config("one", seed), 30.0 + seed) for seed in (1, 2, 3)]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(runs.root), name], stderr=subprocess.PIPE, text=True)
        for name in names
    ]
    lines = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3
    assert all("Traceback" not in text and "training goes on" not in text for text in lines), lines
    seen = view(f"train@{runs.config('one').scale.name}")
    assert set(seen.children()) == set(names)
    assert len(seen.runs) == 4  # nobody made a second configuration
