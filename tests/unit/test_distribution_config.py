"""The section `distribution`: what is refused, what makes another run, and what a run of several processes occupies."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nmt import registry
from nmt.config import compose, train_id, training_identity
from nmt.config.distribution_rules import numerics_of
from nmt.config.schema import DistributionConfig, RunConfig
from nmt.config.validation import validate
from nmt.errors import UserError
from nmt.processes import lone_timing, worker_threads
from nmt.training.fit import strategy_options
from nmt.training.workload import workload_spec

FOUR_GROUPS = ("distribution=parameter_server", "batch.micro_batches=4")


@pytest.fixture(scope="module")
def base() -> RunConfig:
    """A parameter server, composed once; tests change single keys, which composing would only make slow."""
    return compose(FOUR_GROUPS)


def changed(config: RunConfig, *words: str, **batch: Any) -> RunConfig:
    """The configuration with `key=value` words laid over its section `distribution`, validated."""
    section = config.distribution
    for word in words:
        key, _, value = word.partition("=")
        section = replaced(section, key.split("."), yaml.safe_load(value))
    found = replace(config, distribution=section, batch=replace(config.batch, **batch))
    validate(found)
    return found


def replaced(section: Any, path: Sequence[str], value: Any) -> Any:
    return replace(section, **{path[0]: replaced(getattr(section, path[0]), path[1:], value) if path[1:] else value})


MISTAKES: list[tuple[list[str], dict[str, Any], str, str]] = [
    # words, keys of batch, the key that is blamed, a part of the line
    (["name=single", "workers=2"], {}, "distribution.workers", "'single' is one process"),
    (["name=single", "mode=asp"], {}, "distribution.mode", "distribution=parameter_server"),
    (["name=single", "faults=[kill@worker0.push:1]"], {}, "distribution.faults", "one process"),
    (["name=single"], {"per": "push"}, "batch.per", "pushes nothing"),
    (["name=ddp", "servers=2"], {}, "distribution.servers", "without servers"),
    (["name=ddp", "mode=ssp", "staleness=1"], {}, "distribution.mode", "without servers"),
    (["name=ddp", "workers=5"], {}, "distribution.workers", "5 workers cannot share the 4 groups"),
    (["name=ddp", "engine=own"], {}, "distribution.engine", "allowed: gloo, nccl; distribution=ring_allreduce sums"),
    (["name=ring_allreduce", "servers=2"], {}, "distribution.servers", "without servers"),
    (["name=ring_allreduce", "shadows=1"], {}, "distribution.shadows", "without servers"),
    (["name=ring_allreduce", "workers=5"], {}, "distribution.workers", "5 workers cannot share the 4 groups"),
    (["name=ring_allreduce"], {"per": "push"}, "batch.per", "pushes nothing"),
    (["name=ring_allreduce", "engine=gloo", "watchdog_seconds=5"], {}, "distribution.watchdog_seconds", "engine=own"),
    (["name=ring_allreduce", "tls_key=k", "tls_certificate=c"], {}, "distribution.tls_certificate", "not encrypt"),
    (["name=ring_allreduce", "faults=[kill@server0.apply:1]"], {}, "distribution.faults", "a process that there is"),
    (["name=ring_tmp"], {}, "distribution.mode", "no mode bsp; allowed: stage, rotate"),
    (["name=ring_tmp", "mode=stage", "workers=2"], {}, "distribution.workers", "has distribution.nodes"),
    (["name=ring_tmp", "mode=stage", "staging=always"], {}, "distribution.staging", "distribution.staging=auto"),
    (["name=ring_tmp", "mode=stage", "engine=own"], {}, "distribution.engine", "distribution.engine=gloo"),
    (["name=ring_tmp", "mode=stage", "bucket_mib=4"], {}, "distribution.bucket_mib", "distribution.bucket_mib=25"),
    (["name=ring_tmp", "mode=rotate", "speeds=equal"], {}, "distribution.speeds", "all nodes do as much"),
    (["speeds=equal"], {}, "distribution.speeds", "distribution.speeds=measured"),
    (["name=ring_tmp", "mode=stage"], {"per": "push"}, "batch.per", "pushes nothing"),
    (["name=ring_tmp", "mode=rotate", "nodes=5"], {}, "distribution.nodes", "5 nodes cannot share the 4 groups"),
    (["name=ring_tmp", "mode=rotate", "bucket_mib=4"], {}, "distribution.bucket_mib", "distribution.bucket_mib=25"),
    (["name=ring_tmp", "mode=rotate", "whole_model=false"], {}, "distribution.whole_model", "distribution.mode=stage"),
    (["whole_model=false"], {}, "distribution.whole_model", "distribution=ring_tmp"),
    (["name=ring_tmp", "mode=rotate"], {"per": "push"}, "batch.per", "pushes nothing"),
    (["name=ring_tmp", "mode=rotate", "schedule=async"], {}, "distribution.schedule", "or distribution.mode=stage"),
    (["schedule=async"], {}, "distribution.schedule", "distribution.schedule=flush, or distribution.mode=asp or ssp"),
    (["name=ring_tmp", "mode=rotate", "rings=2"], {}, "distribution.rings", "distribution.mode=stage"),
    (["name=ring_tmp", "mode=stage", "rings=2", "schedule=async"], {}, "distribution.schedule", "rings=1"),
    (["name=ring_tmp", "mode=stage", "rings=2", "whole_model=false"], {}, "distribution.whole_model", "rings=1"),
    (["name=ring_tmp", "mode=stage", "rings=5"], {}, "distribution.rings", "5 rings cannot share the 4 groups"),
    (["name=ring_tmp", "mode=stage", "rings=2", "shadows=1"], {}, "distribution.shadows", "have each stage 2 times"),
    (
        ["name=ring_tmp", "mode=stage", "rings=2", "nodes=2", "faults=[kill@worker4.sums:1]"],
        {},
        "distribution.faults",
        "worker0 to worker3",
    ),
    (["rings=2"], {}, "distribution.rings", "distribution=ring_tmp"),
    (["node_memory_mib=64"], {}, "distribution.node_memory_mib", "distribution=ring_tmp"),
    (["name=ring_tmp", "mode=rotate", "node_memory_mib=64"], {}, "distribution.node_memory_mib", "mode=stage"),
    (["mode=rotate"], {}, "distribution.mode", "distribution.mode=bsp, or distribution=ring_tmp"),
    (["name=ring_tmp", "mode=stage", "faults=[kill@worker1.sums:1]"], {}, "distribution.faults", "that there is not"),
    (["nodes=2"], {}, "distribution.nodes", "distribution=ring_tmp"),
    (["mode=stage"], {}, "distribution.mode", "distribution.mode=bsp, or distribution=ring_tmp"),
    (["name=ring_allreduce", "nodes=2"], {}, "distribution.nodes", "without servers"),
    (["mode=ssp"], {}, "distribution.staleness", "distribution.mode=bsp, or distribution.staleness=1"),
    (["staleness=1"], {}, "distribution.staleness", "mode bsp waits for every worker"),
    (["mode=asp", "staleness=1"], {}, "distribution.staleness", "mode asp sets no bound"),
    (["apply_every=2"], {}, "distribution.apply_every", "mode bsp"),
    (["rate_scaling=staleness"], {}, "distribution.rate_scaling", "mode bsp"),
    (["workers=5"], {}, "distribution.workers", "batch.micro_batches=5 cuts a step finer (another training)"),
    (["workers=3"], {"groups": 2}, "distribution.workers", "3 workers cannot share the 2 groups"),
    (["workers=5", "mode=asp"], {}, "distribution.workers", "batch.per=push gives each worker steps of its own"),
    ([], {"per": "push"}, "batch.per", "mode bsp applies whole steps"),
    (["workers=2", "backup=2"], {}, "distribution.backup", "of 2 workers 2 cannot be spare; allowed: 0 to 1"),
    (["mode=asp", "workers=2", "backup=1"], {}, "distribution.backup", "waits for no step"),
    (["mode=asp", "top_k=0.01", "sparse=true"], {}, "distribution.sparse", "chooses among all values"),
    (["top_k=0.01"], {}, "distribution.top_k", "what is kept back of a share is one worker's"),
    (["mode=asp", "top_k_warm_up=10"], {}, "distribution.top_k_warm_up", "all values are sent"),
    (["mode=asp", "top_k=0.1", "top_k_momentum=0.9"], {}, "distribution.top_k_momentum", "optimizer=adam has its own"),
    (["top_k=1.0"], {}, "distribution.top_k", "out of range"),
    (["shadows=1"], {}, "distribution.shadows", "there is one server"),
    (["shadows=2"], {}, "distribution.shadows", "out of range"),
    (["heartbeat_seconds=2", "deadline_seconds=3"], {}, "distribution.deadline_seconds", ">= 4"),
    (["tls_key=key.pem"], {}, "distribution.tls_certificate", "is needed beside the other"),
    (["tls_key=k", "tls_certificate=c", "link=shm"], {}, "distribution.link", "allowed: auto, tcp"),
    (["on_loss=forget"], {}, "distribution.on_loss", "recompute, drop"),
    (["faults=[kill@server0.apply]"], {}, "distribution.faults", "'kill@server0.apply' is not a fault"),
    (["faults=[drop@worker1.push:4]"], {}, "distribution.faults", "a process that there is not; allowed: coordinator0"),
    (["resources.server.cpu=0.5"], {}, "distribution.resources.server.cpu", "executor.oversubscribe=true allows it"),
]


@pytest.mark.parametrize(("words", "batch", "where", "part"), MISTAKES, ids=lambda value: str(value)[:50])
def test_a_contradiction_names_the_key_and_the_way_out(
    base: RunConfig, words: list[str], batch: dict[str, Any], where: str, part: str
) -> None:
    with pytest.raises(UserError) as refused:
        changed(base, *words, **batch)
    assert refused.value.where == where
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "batch"),
    [
        (["workers=4", "servers=3", "shadows=1", "on_loss=drop", "backup=3", "wire=bf16", "sparse=true"], {}),
        (["mode=ssp", "staleness=3", "workers=4", "apply_every=2", "rate_scaling=workers"], {}),
        (["mode=asp", "workers=9"], {"per": "push"}),
        (["mode=ssp", "staleness=1", "top_k=0.001", "wire=bf16", "top_k_warm_up=100"], {}),
        (["workers=2", "faults=[kill@worker1.push:3, delay@server0.reply:7:0.5, stop@coordinator0.decide:2]"], {}),
        (["name=ddp", "workers=4", "engine=nccl", "faults=[kill@worker3.backward:2]"], {}),
        (["name=ring_allreduce", "workers=4", "engine=own", "link=tcp", "faults=[drop@worker3.gather:2]"], {}),
        (["name=ring_allreduce", "workers=2", "engine=own", "tls_key=k", "tls_certificate=c"], {}),
        (["name=ring_allreduce", "workers=4", "engine=gloo"], {}),
        (["name=ring_tmp", "mode=stage", "nodes=4", "shadows=1", "faults=[drop@worker3.sums:2]"], {}),
        (["name=ring_tmp", "mode=stage", "tls_key=k", "tls_certificate=c"], {}),
        (["name=ring_tmp", "mode=stage", "schedule=async", "nodes=1"], {}),
        (["name=ring_tmp", "mode=stage", "nodes=2", "rings=4", "faults=[drop@worker7.reduce:2]"], {}),
        (["name=ring_tmp", "mode=rotate", "nodes=4", "shadows=1", "faults=[drop@worker3.gather:2]"], {}),
    ],
)
def test_what_fits_together_passes(base: RunConfig, words: list[str], batch: dict[str, Any]) -> None:
    changed(base, *words, **batch)


def test_what_other_sections_say_has_to_fit_too(base: RunConfig) -> None:
    nccl = changed(base, "name=ddp", "engine=nccl")
    for other in (
        replace(nccl, device="cpu"),
        replace(nccl, executor=replace(nccl.executor, gpus_per_run=0.5)),
        replace(nccl, distribution=replaced(nccl.distribution, ["resources", "worker", "gpu"], 0.25)),
    ):
        with pytest.raises(UserError, match=r"^distribution\.engine: NCCL .*distribution\.engine=gloo"):
            validate(other)
    validate(replace(nccl, executor=replace(nccl.executor, gpus_per_run=1.0)))
    validate(replace(base, faults=["kill@checkpoint:2"]))
    with pytest.raises(UserError, match=r"^faults: 'kill@slot:3' is for a run of one process"):
        validate(replace(base, faults=["kill@slot:3"]))


def test_mistakes_of_a_command_line_are_told_where_it_is_composed() -> None:
    with pytest.raises(UserError, match=r"^distribution\.workers: 'single' is one process; .*distribution=parameter_s"):
        compose(["distribution.workers=4"])
    with pytest.raises(UserError, match=r"^distribution\.staleness: .*distribution\.mode=bsp"):
        compose([*FOUR_GROUPS, "distribution.mode=ssp"])


def test_what_is_exact_is_the_same_run_whatever_its_sizes(base: RunConfig) -> None:
    single = training_identity(compose(["batch.micro_batches=4"]))
    assert "distribution" not in single
    for words in (
        [],
        ["workers=3", "servers=3"],
        ["workers=4", "servers=2", "shadows=1", "sparse=true", "link=tcp", "bucket_mib=1", "checksum=always"],
        ["workers=2", "heartbeat_seconds=0.1", "replace_lost=false", "launcher=external", "bind=0.0.0.0"],
        ["name=ring_tmp", "mode=stage", "schedule=flush", "nodes=3", "shadows=1", "link=tcp"],
        ["name=ring_tmp", "mode=stage", "nodes=3", "rings=4"],
        ["faults=[kill@worker0.push:2]", "resources.worker.gpu=1", "stands_for=something"],
    ):
        assert training_identity(changed(base, *words)) == single, words


INEXACT: list[tuple[list[str], dict[str, Any]]] = [
    (["wire=bf16", "servers=2"], {"mode": "bsp", "workers": 1, "wire": "bf16"}),
    (["name=ring_tmp", "mode=rotate", "nodes=3", "shadows=1"], {"name": "ring_tmp", "mode": "rotate", "nodes": 3}),
    (
        ["name=ring_tmp", "mode=stage", "schedule=async", "nodes=3", "shadows=1"],
        {"name": "ring_tmp", "mode": "stage", "schedule": "async"},
    ),
    (["on_loss=drop", "workers=2"], {"mode": "bsp", "workers": 2, "on_loss": "drop"}),
    (["backup=1", "workers=3"], {"mode": "bsp", "workers": 3, "backup": 1}),
    (
        ["mode=asp", "top_k=0.01", "servers=2", "bucket_mib=4", "top_k_warm_up=9"],
        {"mode": "asp", "workers": 1, "servers": 2, "bucket_mib": 4, "top_k": 0.01, "top_k_warm_up": 9},
    ),
    (["mode=asp"], {"mode": "asp", "workers": 1, "servers": 1}),
    (["mode=asp", "workers=4", "servers=2"], {"mode": "asp", "workers": 4, "servers": 2}),
    (["mode=ssp", "staleness=2"], {"mode": "ssp", "workers": 1, "servers": 1, "staleness": 2}),
    (["mode=asp", "apply_every=3"], {"mode": "asp", "workers": 1, "servers": 1, "apply_every": 3}),
    (["mode=asp", "rate_scaling=staleness"], {"mode": "asp", "workers": 1, "servers": 1, "rate_scaling": "staleness"}),
    (["name=ddp", "workers=2"], {"name": "ddp", "workers": 2, "engine": "gloo", "bucket_mib": 25}),
    (
        ["name=ring_allreduce", "workers=3", "engine=own", "bucket_mib=4", "link=tcp", "replace_lost=false"],
        {"name": "ring_allreduce", "workers": 3, "engine": "own", "bucket_mib": 4},
    ),
]


@pytest.mark.parametrize(("words", "expected"), INEXACT, ids=str)
def test_what_gives_other_bits_says_what_it_is(base: RunConfig, words: list[str], expected: dict[str, Any]) -> None:
    found = changed(base, *words)
    assert training_identity(found)["distribution"] == {"name": "parameter_server"} | expected
    assert train_id(found) != train_id(base)
    # And nothing of where and how fast it happens.
    elsewhere = changed(base, *words, "link=tcp", "deadline_seconds=60", "resources.worker.cpu=2", "stands_for=it")
    assert train_id(elsewhere) == train_id(found)


def test_the_momentum_of_what_is_kept_back_counts_and_takes_the_place_of_the_rules(base: RunConfig) -> None:
    plain = replace(base, optimizer=replace(base.optimizer, name="sgd"))
    found = changed(plain, "mode=asp", "top_k=0.1", "top_k_momentum=0.9")
    assert training_identity(found)["distribution"]["top_k_momentum"] == 0.9
    twice = replace(found, optimizer=replace(found.optimizer, momentum=0.5))
    with pytest.raises(UserError, match=r"^distribution\.top_k_momentum: .*momentum=0\.5 has its own"):
        validate(twice)


def test_every_key_either_counts_somewhere_or_is_known_to_be_placement(base: RunConfig) -> None:
    """A key that is added has to be thought about: does it change a result?"""
    places = {
        "stands_for", "shadows", "replace_lost", "sparse", "link", "launcher", "bind", "heartbeat_seconds",
        "deadline_seconds", "watchdog_seconds", "tls_certificate", "tls_key", "checksum", "faults", "replay",
        "resources", "staging", "speeds", "rings", "whole_model", "node_memory_mib",
    }  # fmt: skip
    counted = {"name", "top_k_momentum"}.union(*(expected for _, expected in INEXACT))
    assert counted | places == {field.name for field in dataclasses.fields(DistributionConfig)}
    assert not counted & places


def test_several_rings_have_no_shadows_unless_they_are_asked_for_and_refused() -> None:
    rings = ["distribution=ring_tmp", "batch.micro_batches=4", "distribution.nodes=2"]
    assert compose(rings).distribution.shadows == 1
    several = compose([*rings, "distribution.rings=2"])
    assert several.distribution.shadows == 0
    assert len(registry.lookup("bundles", "ring_tmp", "")(dataclasses.asdict(several.distribution), {"CPU": 1.0})) == 5
    with pytest.raises(
        UserError, match=r"^distribution\.shadows: 2 rings .*distribution\.shadows=0, or distribution\.r"
    ):
        compose([*rings, "distribution.rings=2", "distribution.shadows=1"])


def test_a_push_is_another_step_than_one_of_all_workers(base: RunConfig) -> None:
    each = changed(base, "mode=asp", per="push")
    assert training_identity(each)["batch"]["per"] == "push"
    assert train_id(each) != train_id(changed(base, "mode=asp"))


def test_the_published_scale_trains_as_published_and_one_process_stands_in_by_name() -> None:
    published, stand_in = compose(["scale=published"]), compose(["scale=published", "distribution=single"])
    section = published.distribution
    assert (section.name, section.mode, section.workers, section.servers) == ("parameter_server", "asp", 8, 6)
    assert (published.batch.per, published.batch.size, stand_in.batch.per) == ("push", 128, "step")
    assert train_id(published) == "b7355406a960"  # a pinned identity, as those of test_config
    assert len(registry.lookup("bundles", section.name, "")(dataclasses.asdict(section), {"CPU": 1.0})) == 15


class Offered:
    """An installed package that offers a strategy, and perhaps what it says of itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *kinds: str):
        points = {kind: EntryPoint(f"{kind}.ring", f"{__name__}:ring", "nmt.components") for kind in kinds}
        monkeypatch.setattr(registry, "_outside", lambda kind: {"ring": points[kind]} if kind in points else {})
        registry._table.cache_clear()


def ring(distribution: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
    return {"name": "ring", "workers": distribution["workers"]} if distribution["workers"] > 1 else {}


def test_a_strategy_from_outside_counts_by_its_code_unless_it_promises_to_be_exact(
    base: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        Offered(monkeypatch, "strategy")
        silent = numerics_of(changed(base, "name=ring"))
        assert silent["name"] == "ring"
        assert len(silent["code"]["sha256"]) == 64
        Offered(monkeypatch, "strategy", "numerics")
        assert numerics_of(changed(base, "name=ring")) == {}
        said = numerics_of(changed(base, "name=ring", "workers=2"))
        assert said == {"name": "ring", "workers": 2, "code": silent["code"]}
    finally:
        monkeypatch.undo()
        registry._table.cache_clear()


def bundles(config: RunConfig, **process: float) -> list[dict[str, float]]:
    section = dataclasses.asdict(config.distribution)
    found: list[dict[str, float]] = registry.lookup("bundles", config.distribution.name, "")(section, process)
    return found


def test_a_run_occupies_a_bundle_for_each_of_its_processes(base: RunConfig) -> None:
    server = changed(base, "workers=2", "servers=3")
    assert bundles(server, CPU=4.0) == [{"CPU": 1.0}, {"CPU": 4.0}, {"CPU": 4.0}, *[{"CPU": 1.0}] * 3]
    # The process that trains decodes, on the kind of device that runs have.
    computes = {"CPU": 4.0, "GPU": 0.5, "memory": 2.0**30}
    assert bundles(server, **computes) == [computes | {"CPU": 1.0}, computes, computes, *[{"CPU": 1.0}] * 3]
    ddp = changed(base, "name=ddp", "workers=2")
    assert bundles(ddp, CPU=4.0) == [{"CPU": 1.0}, {"CPU": 4.0}, {"CPU": 4.0}]
    own = changed(
        base, "workers=2", "resources.coordinator.gpu=0.25", "resources.worker.cpu=3", "resources.server.gpu=1"
    )
    assert bundles(own, CPU=4.0, GPU=1.0) == [
        {"CPU": 1.0, "GPU": 0.25},
        *[{"CPU": 3.0, "GPU": 1.0}] * 2,
        {"CPU": 1.0, "GPU": 1.0},
    ]


def test_a_lone_run_deals_the_cores_out_and_says_where_its_own_processes_share_them(base: RunConfig) -> None:
    two = changed(base, "workers=2", "servers=2")
    assert worker_threads(two, 16) == 6  # 1 + 2 · 6 + 2 cores
    assert lone_timing(two, 16) == "exclusive"
    assert (worker_threads(two, 2), lone_timing(two, 2)) == (1, "shared")
    assert lone_timing(changed(base, "workers=2", "servers=2", "launcher=external"), 2) == "exclusive"
    assert worker_threads(replace(two, threads=3), 16) == 3
    assert worker_threads(changed(base, "resources.worker.cpu=5"), 16) == 5
    single = compose([])
    assert (worker_threads(single, 2), lone_timing(single, 2)) == (2, "exclusive")
    assert lone_timing(replace(single, threads=9), 2) == "exclusive"


def test_a_strategy_is_built_from_plain_data(base: RunConfig, tmp_path: Path) -> None:
    config = replace(changed(base, "workers=2"), threads=3, seed=4)
    options = strategy_options(config, "0123456789ab/s4", tmp_path, attempt=2)
    assert options.keys() - {field.name for field in dataclasses.fields(DistributionConfig)} == {
        "batch_per", "run", "train_id", "seed", "run_directory", "attempt", "threads",
    }  # fmt: skip
    assert (options["workers"], options["batch_per"]) == (2, "step")
    assert (options["run"], options["train_id"]) == ("0123456789ab/s4", "0123456789ab")
    assert (options["seed"], options["attempt"], options["threads"]) == (4, 2, 3)
    assert options["run_directory"] == str(tmp_path)
    assert options["resources"]["worker"] == {"cpu": 0.0, "gpu": 0.0}


def test_a_workload_that_is_built_in_another_process_computes_as_the_run_does(tmp_path: Path) -> None:
    small = "data.options={train_size: 8, validation_size: 2, test_size: 2}"
    config = compose(["scale=smoke", small, "batch.size=4", f"paths.runs={tmp_path}", "device=cpu"])
    before, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.set_num_threads(2)
        workload_spec(config, "cpu").build()
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_num_threads() == 2  # the strategy's business
    finally:
        torch.set_float32_matmul_precision(before)
        torch.set_num_threads(threads)


def test_what_is_asked_of_a_strategy_by_name_loads_no_torch() -> None:
    code = (
        "import sys, distributed.strategy, distributed.checks, distributed.numerics, distributed.bundles; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
