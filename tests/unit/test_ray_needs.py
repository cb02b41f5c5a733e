"""What a run needs against what a cluster has; how runs are dealt out to nodes; what a probe of nodes finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nmt import registry
from nmt.config import compose, to_dict
from nmt.config.identity import run_id
from nmt.config.schema import ExecutorConfig
from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunStatus
from sweeps.executors import inline, shared_path
from sweeps.executors.inline import InlineExecutor
from sweeps.executors.needs import check_needs, needs_and_has
from sweeps.executors.placement import GIB, Node, Placement, at_once, bundles_of, place, process_needs
from sweeps.executors.ray_cluster import Cluster, prepare_environment, refusal
from sweeps.executors.ray_process import Head
from sweeps.executors.ray_tune import RayTuneExecutor, ray_files
from sweeps.executors.shared_path import Report, check_nodes
from sweeps.worker import WorkItem


def item(*words: str, **distribution: Any) -> WorkItem:
    config = compose(list(words))
    data = to_dict(config)
    data["distribution"] |= distribution
    return WorkItem(title="t", run_ids=(run_id(config),), configs=(data,))


def nodes(*resources: dict[str, float]) -> tuple[Node, ...]:
    return tuple(Node(name=f"host{number}", resources=one) for number, one in enumerate(resources))


def servers(distribution: Any, process: Any) -> list[dict[str, float]]:
    """What a strategy with two workers and a server of its own would say."""
    return [dict(process), dict(process), {"CPU": 1.0}]


@pytest.fixture
def three_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkItem]:
    monkeypatch.setitem(registry._BUILT_IN["bundles"], "with_server", "test_ray_needs:servers")
    registry._table.cache_clear()
    yield item(name="with_server")
    monkeypatch.undo()
    registry._table.cache_clear()


TWO_BY_TWO = nodes(*[{"CPU": 2.0, "GPU": 2.0, "memory": 8 * GIB}] * 3)


@pytest.mark.parametrize(
    ("config", "threads", "have", "expected"),
    [
        # A GPU each: as many at a time as there are GPUs, with the cores dealt out among them.
        ({"gpus_per_run": 1.0}, 0, TWO_BY_TWO, Placement(workers=6, threads=1)),
        ({"gpus_per_run": 0.25}, 0, nodes({"CPU": 8.0, "GPU": 1.0}), Placement(workers=4, threads=2)),
        ({"gpus_per_run": 0.1}, 0, nodes({"CPU": 32.0, "GPU": 1.0}), Placement(workers=10, threads=3)),
        ({"gpus_per_run": 2.0}, 0, nodes({"CPU": 9.0, "GPU": 3.0}, {"CPU": 4.0, "GPU": 4.0}), Placement(3, 2)),
        # Three runs with 4 threads fit on nodes of 5, 5 and 5 cores, though 15 cores hold three with 5.
        ({"workers": 3}, 4, nodes(*[{"CPU": 5.0}] * 3), Placement(workers=3, threads=4)),
        ({"workers": 2}, 0, nodes({"CPU": 6.0}, {"CPU": 3.0}), Placement(workers=2, threads=3)),
        ({"memory_gib_per_run": 3.0}, 0, nodes({"CPU": 16.0, "memory": 8 * GIB}), Placement(2, 8)),
    ],
)
def test_as_many_runs_at_a_time_as_the_nodes_hold(
    config: dict[str, Any], threads: int, have: tuple[Node, ...], expected: Placement
) -> None:
    assert place(ExecutorConfig(**config), [item(f"threads={threads}")] * 20, have) == expected


def test_a_cluster_that_others_use_too_is_never_timed_as_exclusive() -> None:
    have = nodes({"CPU": 2.0})
    assert place(ExecutorConfig(), [item()], have).timing == "exclusive"
    assert place(ExecutorConfig(), [item()], have, alone=False).timing == "shared"


@pytest.mark.parametrize(
    ("config", "words", "have", "complaint"),
    [
        (
            {},
            ["threads=3"],
            TWO_BY_TWO,
            "threads: a run needs 3 CPUs on one node; of 3 nodes none has more than 2 CPUs",
        ),
        (
            {"gpus_per_run": 3.0},
            [],
            TWO_BY_TWO,
            "executor.gpus_per_run: a run needs 3 GPUs on one node; of 3 nodes none has more than 2 GPUs",
        ),
        (
            {"gpus_per_run": 0.5},
            [],
            nodes({"CPU": 4.0}),
            "executor.gpus_per_run: a run needs 0.5 GPUs on one node; the cluster has 0 GPUs",
        ),
        (
            {"memory_gib_per_run": 9.0},
            [],
            TWO_BY_TWO,
            "executor.memory_gib_per_run: a run needs 9.0 GiB on one node; of 3 nodes none has more than 8.0 GiB",
        ),
        (
            {"gpus_per_run": 1.0},
            ["threads=4"],
            nodes({"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}),
            "threads and executor.gpus_per_run: a run needs 4 CPUs, 1 GPU on one node, and no node has all of that: "
            "host0 has 4 CPUs; host1 has 1 CPU, 1 GPU",
        ),
        ({}, ["device=cuda"], TWO_BY_TWO, "executor.gpus_per_run: device=cuda, and no GPU is reserved for a run"),
    ],
)
def test_what_no_node_can_hold_is_refused_by_the_key_that_asks_for_it(
    config: dict[str, Any], words: list[str], have: tuple[Node, ...], complaint: str
) -> None:
    executor, work = ExecutorConfig(**config), [item(*words)]
    with pytest.raises(UserError) as refused:
        check_needs(executor, work, place(executor, work, have), have)
    assert str(refused.value).startswith(complaint)


def test_what_fits_is_told_with_what_others_use_at_the_moment() -> None:
    executor, work = ExecutorConfig(gpus_per_run=1.0, memory_gib_per_run=2.0), [item()] * 9
    placement = place(executor, work, TWO_BY_TWO)
    check_needs(executor, work, placement, TWO_BY_TWO)
    everything = {"CPU": 6.0, "GPU": 6.0, "memory": 24 * GIB}
    fits = "a run needs 1 CPU, 1 GPU, 2.0 GiB; 3 nodes with 6 CPUs, 6 GPUs, 24.0 GiB: 6 at a time"
    assert needs_and_has(executor, work, placement, TWO_BY_TWO, everything) == [fits]
    some = {"CPU": 5.0, "GPU": 5.5, "memory": 24 * GIB}
    assert needs_and_has(executor, work, placement, TWO_BY_TWO, some) == [
        fits,
        "in use by others now: 1 CPU, 0.5 GPUs",
    ]
    none = {"CPU": 4.0, "memory": 24 * GIB}  # Ray leaves out what is used up
    assert needs_and_has(executor, work, placement, TWO_BY_TWO, none) == [
        fits,
        "in use by others now: 2 CPUs, 6 GPUs; runs wait for 1 GPU",
    ]


def test_gpus_that_no_run_is_given_are_mentioned() -> None:
    placement = Placement(workers=1, threads=1)
    lines = needs_and_has(ExecutorConfig(), [item()], placement, nodes({"CPU": 1.0, "GPU": 1.0}), {"CPU": 1.0})
    assert lines[-1].startswith("runs are given no GPU and see none: executor.gpus_per_run=1")


def test_a_strategy_says_which_bundles_a_run_occupies(three_processes: WorkItem) -> None:
    process = process_needs(ExecutorConfig(gpus_per_run=1.0), threads=2)
    assert bundles_of(item(), process) == [{"CPU": 2.0, "GPU": 1.0}]
    bundles = bundles_of(three_processes, process)
    assert bundles == [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 1.0}]
    # Each bundle lies on one node, a run's bundles on several: 2 of 3 nodes with 2 CPUs, and the third for the server.
    assert at_once(bundles, TWO_BY_TWO, 9) == 1
    assert at_once(bundles, TWO_BY_TWO[:2], 9) == 0
    with pytest.raises(
        UserError, match=r"distribution: a run of 3 processes needs 5 CPUs, 2 GPUs, which do not fit on 2"
    ):
        check_needs(ExecutorConfig(gpus_per_run=1.0), [three_processes], Placement(1, 2), TWO_BY_TWO[:2])


def parameter_server(*words: str) -> WorkItem:
    sizes = ["distribution=parameter_server", "batch.micro_batches=4", "distribution.workers=2"]
    return item(*sizes, "distribution.servers=2", *words)


ONE_NODE_OF_TWO = nodes({"CPU": 2.0})


def test_processes_that_would_not_fit_share_cores_where_that_is_allowed_and_times_say_so() -> None:
    allowed, work = ExecutorConfig(oversubscribe=True), [parameter_server()] * 3
    with pytest.raises(UserError, match=r"5 processes needs 5 CPUs.*executor.oversubscribe=true lets") as refused:
        check_needs(ExecutorConfig(), work, place(ExecutorConfig(), work, ONE_NODE_OF_TWO), ONE_NODE_OF_TWO)
    assert refused.value.where == "distribution"
    placement = place(allowed, work, ONE_NODE_OF_TWO)
    assert placement == Placement(workers=1, threads=1, alone=False, core_share=0.25)  # 5 · 1/2 are more than 2 cores
    assert placement.timing == "shared"
    check_needs(allowed, work, placement, ONE_NODE_OF_TWO)
    free = {"CPU": 2.0}
    (line,) = needs_and_has(allowed, work, placement, ONE_NODE_OF_TWO, free)
    assert line == "a run needs 1.25 CPUs in 5 processes; the cluster with 2 CPUs: 1 at a time"
    two = place(ExecutorConfig(oversubscribe=True, workers=2), work, ONE_NODE_OF_TWO)
    assert two == Placement(workers=2, threads=1, alone=False, core_share=0.125)


def test_where_everything_fits_oversubscribing_changes_the_timing_only() -> None:
    have, work = nodes({"CPU": 8.0}), [parameter_server()]
    assert place(ExecutorConfig(), work, have) == Placement(workers=1, threads=2)  # 1 + 2 · 2 + 2 cores
    allowed = place(ExecutorConfig(oversubscribe=True), work, have)
    assert (allowed.threads, allowed.core_share, allowed.timing) == (2, 1.0, "shared")


def test_cores_can_be_shared_and_gpus_cannot() -> None:
    executor, work = ExecutorConfig(gpus_per_run=1.0, oversubscribe=True), [parameter_server()]
    have = nodes({"CPU": 2.0, "GPU": 2.0})  # two workers, and the process that decodes
    with pytest.raises(UserError, match="3 GPUs") as refused:
        check_needs(executor, work, place(executor, work, have), have)
    assert "oversubscribe" not in str(refused.value)
    less = [parameter_server("distribution.resources.coordinator.gpu=0.5", "distribution.resources.worker.gpu=0.5")]
    placement = place(executor, less, have)
    check_needs(executor, less, placement, have)
    bundles = bundles_of(less[0], process_needs(executor, placement.threads), placement.core_share)
    assert bundles == [{"CPU": 0.25, "GPU": 0.5}] * 3 + [{"CPU": 0.25}] * 2


def test_without_ray_a_run_of_several_processes_has_to_fit_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[WorkItem] = []
    monkeypatch.setattr(inline, "this_machine", lambda: ONE_NODE_OF_TWO[0])
    monkeypatch.setattr(inline, "run_work_item", lambda item: trained.append(item) or [])
    config = ExecutorConfig(name="inline")
    store = LocalRunStore(tmp_path)
    with pytest.raises(UserError, match=r"^distribution: a run of 5 processes needs 5 CPUs, and this machine has 2"):
        InlineExecutor(config, store, in_process=True).execute([parameter_server()], lambda: None)
    assert trained == []
    allowed = replace(config, oversubscribe=True)
    InlineExecutor(allowed, store, in_process=True).execute([parameter_server()], lambda: None)
    assert [one.timing for one in trained] == ["shared"]
    InlineExecutor(replace(config, workers=9), store, in_process=True).execute([item()], lambda: None)  # as ever


def test_a_strategy_from_outside_that_does_not_say_takes_one_process() -> None:
    assert bundles_of(item(name="from_outside"), {"CPU": 1.0}) == [{"CPU": 1.0}]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["executor.gpus_per_run=1.5"], "executor.gpus_per_run: 1.5 GPUs cannot be dealt out"),
        (["executor.address=ray://head:10001"], "executor.address: is for Ray's client"),
        (["executor=inline", "executor.gpus_per_run=1"], "executor.gpus_per_run: child processes share"),
        (["executor=inline", "executor.memory_gib_per_run=1"], "executor.memory_gib_per_run: child processes share"),
        (["executor=inline", "executor.address=auto"], "executor.address: child processes share"),
    ],
)
def test_what_no_executor_can_do_is_a_mistake_of_the_configuration(words: list[str], complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        compose(words)
    assert str(refused.value).startswith(complaint)
    for fine in ("0.25", "1", "2"):
        compose([f"executor.gpus_per_run={fine}"])


CLUSTER = Cluster(nodes=nodes({}, {}, {}), ids=("a", "b", "c"), free={}, own=False)


@pytest.mark.parametrize(
    ("answer", "writes", "complaint"),
    [
        (Report(sees=False, error="", code="ours"), False, r"^paths.runs: .* is not shared: .* on node host1;"),
        (Report(sees=True, error="", code="ours"), False, r"^paths.runs: .* is not shared: .* on node host1;"),
        (
            Report(sees=True, error="Read-only file system", code="ours"),
            False,
            r"cannot be written on node host1: Read",
        ),
        (
            Report(sees=True, error="", code="0f3a"),
            True,
            r"node host1 has other code \(0f3a\) than this process \(ours\)",
        ),
        ("No module named 'sweeps'", False, r"node host1 cannot run our code: No module named 'sweeps'"),
    ],
    ids=["not seen", "not seen here", "refused", "other code", "no code"],
)
def test_a_node_that_is_not_like_the_others_is_named(
    answer: Report | str, writes: bool, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(cluster: Cluster, folder: str) -> dict[str, Report | str]:
        answers: dict[str, Report | str] = {node: shared_path.look(".", folder, node) for node in "ac"}
        if writes:
            shared_path.look(".", folder, "b")
        return answers | {"b": answer}

    monkeypatch.setattr(shared_path, "code_name", lambda code: "ours")
    monkeypatch.setattr(shared_path, "_ask", ask)
    with pytest.raises(UserError, match=complaint):
        check_nodes(CLUSTER, str(tmp_path / "runs"))
    assert list((tmp_path / "runs" / ".sweeps").iterdir()) == []


def test_nodes_that_share_everything_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = lambda cluster, folder: {node: shared_path.look(".", folder, node) for node in "abc"}  # noqa: E731
    monkeypatch.setattr(shared_path, "_ask", ask)
    check_nodes(CLUSTER, str(tmp_path / "runs"))
    with pytest.raises(UserError, match=r"paths.runs"):
        monkeypatch.setattr(Path, "is_file", lambda path: False)
        check_nodes(CLUSTER, str(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("said", "cause", "meaning"),
    [
        ("Failed to connect to Ray cluster at h:1", "InvalidAuthToken: Authentication token is missing", "its token"),
        ("Could not find any running Ray instance. Please specify", "", "no Ray cluster runs on this machine"),
        ("Failed to connect", "No node info found matching attributes: '' when", "this machine is no node of"),
        (
            "Version mismatch: the cluster was\n  started with Ray 2.1",
            "",
            "h:1: Version mismatch: the cluster was started",
        ),
    ],
)
def test_what_ray_says_of_a_connection_becomes_one_line(said: str, cause: str, meaning: str) -> None:
    error = ConnectionError(said)
    error.__cause__ = RuntimeError(cause)
    line = str(refusal("h:1", error))
    assert meaning in line
    assert line.startswith("executor.address: ")
    assert "\n" not in line


def test_a_token_that_the_environment_names_is_used_with_a_named_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr("os.environ", {})
    prepare_environment("h:1")
    assert "RAY_AUTH_MODE" not in os.environ
    os.environ["RAY_AUTH_TOKEN_PATH"] = "token"
    prepare_environment("local")
    assert "RAY_AUTH_MODE" not in os.environ
    prepare_environment("h:1")
    assert os.environ["RAY_AUTH_MODE"] == "token"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    prepare_environment("h:1")
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_a_trial_that_ray_never_started_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    store = LocalRunStore(tmp_path / "runs")
    work = [item(f"paths.runs={tmp_path / 'runs'}", f"seed={seed}") for seed in (1, 2, 3)]
    store.set_status(*work[1].run_ids, RunStatus(state="finished"))
    RayTuneExecutor(ExecutorConfig(), store)._record(work, {work[2].run_ids[0]: "no luck"})
    found = [store.status(*one.run_ids) for one in work]
    assert [(status.state, status.error) for status in found] == [
        ("failed", "the process died: Ray gave no reason"),
        ("finished", ""),
        ("failed", "the process died: no luck"),
    ]


def test_what_a_killed_sweep_left_of_rays_is_removed_and_what_a_living_one_uses_stays(tmp_path: Path) -> None:
    dead = tmp_path / ".sweeps" / "ray-dead"
    (dead / "tune").mkdir(parents=True)
    with ray_files(str(tmp_path)) as living:
        (living / "tune").mkdir()
        with ray_files(str(tmp_path)) as other:
            assert {path.name for path in (tmp_path / ".sweeps").iterdir()} == {living.name, other.name}
        assert (living / "tune").is_dir()
    assert list((tmp_path / ".sweeps").iterdir()) == []


def test_a_head_is_lost_when_it_has_not_answered_for_long_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.executors import ray_process

    now, up = [0.0], [True]
    monkeypatch.setattr(ray_process.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray_process, "answers", lambda address, seconds: up[0])
    head = Head("h:1")

    def lost_after(seconds: float) -> bool:
        now[0] += seconds
        return head.is_lost()

    assert not lost_after(100.0)
    up[0] = False
    assert not lost_after(ray_process.LOST_SECONDS - 1.0)
    up[0] = True
    assert not lost_after(ray_process.LOOK_SECONDS)
    up[0] = False
    assert not lost_after(ray_process.LOST_SECONDS - 1.0)
    assert lost_after(ray_process.LOOK_SECONDS)
