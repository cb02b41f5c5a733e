"""Processes that never come, and links that break again and again."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from distributed.launchers import ray_actors
from distributed.launchers.ray_actors import RayLauncher
from distributed.links.token import Token
from distributed.parameter_server.broken_links import GRACE_SECONDS, LOST_LINK_SECONDS, LOST_LINKS, BrokenLinks
from distributed.parameter_server.messages import server, worker
from distributed.parameter_server.replacements import VAIN_REPLACEMENTS, Replacements


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Launcher:
    """Starts nothing; `ends` says how its processes ended."""

    patience = 100.0

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.ends: dict[str, str] = {}
        self._numbers = itertools.count()

    def start(self, role: str, instead_of: str = "") -> str:
        self.asked.append((role, instead_of))
        return f"agent {next(self._numbers)}"

    def ended(self) -> Mapping[str, str]:
        return self.ends

    def close(self) -> None:
        pass


def test_a_process_that_ends_or_stays_away_is_told_once() -> None:
    launcher, clock = Launcher(), Clock()
    replacements = Replacements(launcher, clock)
    for _ in range(3):
        replacements.start("worker", "agent x")
    assert launcher.asked == [("worker", "agent x")] * 3
    launcher.ends = {"agent 0": "ended with exit code 1", "agent x": "ended with exit code -9"}
    assert replacements.failed() == {"agent 0": "ended with exit code 1"}
    assert replacements.failed() == {}
    replacements.came("agent 1")
    assert (replacements.in_vain, replacements.pending) == (0, True)
    launcher.ends["agent 1"] = "ended with exit code -9"  # it was ready, and its link tells of its end
    clock.seconds += 99.0
    assert replacements.failed() == {}
    clock.seconds += 2.0
    assert replacements.failed() == {"agent 2": "has not come for 100 s"}
    assert (replacements.in_vain, replacements.pending) == (1, False)


def test_one_that_connects_and_ends_counts_once_whoever_tells_it_first() -> None:
    launcher = Launcher()
    replacements = Replacements(launcher)
    replacements.start("worker")
    launcher.ends = {"agent 0": "ended with exit code 1"}
    assert replacements.went("agent 0")
    assert replacements.failed() == {}
    replacements.start("worker")
    launcher.ends["agent 1"] = "ended with exit code 1"
    assert list(replacements.failed()) == ["agent 1"]
    assert not replacements.went("agent 1")
    assert (replacements.in_vain, replacements.given_up) == (2, False)
    assert replacements.went("")  # of one that somebody else has started, its link is all that is known
    assert (replacements.in_vain, replacements.given_up) == (VAIN_REPLACEMENTS, True)


LIVE = {worker(0), worker(1), server(0), server(1)}


def test_a_link_between_living_members_is_made_anew_and_one_to_a_dead_one_is_not() -> None:
    clock = Clock()
    links = BrokenLinks(clock)
    links.note(worker(0), server(0))
    links.note(server(0), worker(0))  # both ends tell
    links.note(worker(1), server(5))
    clock.seconds += GRACE_SECONDS / 2
    assert links.verdict(LIVE).lost == 0
    assert links
    clock.seconds += GRACE_SECONDS
    assert (links.verdict(LIVE).lost, bool(links)) == (1, False)


def test_a_link_that_breaks_again_and_again_costs_a_member() -> None:
    clock = Clock()
    links = BrokenLinks(clock)
    hopeless = []
    for pair in [(server(1), worker(0)), (server(0), server(1))]:
        for _ in range(LOST_LINKS):
            links.note(*pair)
            clock.seconds += 1.0
            hopeless.append(set(links.verdict(LIVE).hopeless))
    none: list[set[Any]] = [set()] * (LOST_LINKS - 1)
    assert hopeless == [*none, {worker(0)}, *none, {server(1)}]


def test_breaks_that_are_far_apart_are_not_counted_together() -> None:
    clock = Clock()
    links = BrokenLinks(clock)
    for _ in range(3 * LOST_LINKS):
        links.note(worker(0), server(0))
        clock.seconds += LOST_LINK_SECONDS + 1
        assert not links.verdict(LIVE).hopeless


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As much of Ray as the launcher uses. `ended`: the works that are over, with what Ray says of them."""
    ray: Any = ModuleType("ray")
    ray.ended, ray.killed, numbers = {}, [], itertools.count()

    def make() -> Any:
        actor = SimpleNamespace(number=next(numbers))
        actor.serve = SimpleNamespace(remote=lambda *arguments: actor.number)
        return actor

    def get(work: int) -> None:
        if ray.ended[work]:
            raise RuntimeError(ray.ended[work])

    ray.remote = lambda **options: lambda kind: SimpleNamespace(remote=make)
    ray.wait = lambda works, num_returns, timeout: ([work for work in works if work in ray.ended], [])
    ray.get, ray.kill = get, lambda actor, no_restart: ray.killed.append(actor.number)
    strategies: Any = ModuleType("ray.util.scheduling_strategies")
    strategies.PlacementGroupSchedulingStrategy = lambda *arguments, **options: None
    for name, module in (("ray", ray), ("ray.util", ModuleType("ray.util")), (strategies.__name__, strategies)):
        monkeypatch.setitem(sys.modules, name, module)
    group = SimpleNamespace(bundle_specs=[{"CPU": 1.0}] * 4)
    monkeypatch.setattr(ray_actors, "_own_group", lambda: group)
    return ray


def test_an_actor_that_dies_before_it_connects_is_told_and_replaced_in_its_bundle(fake_ray: Any) -> None:
    section = {"name": "parameter_server", "workers": 2, "servers": 1, "threads": 1, "heartbeat_seconds": 1.0,
               "tls_certificate": "", "tls_key": ""}  # fmt: skip
    launcher = RayLauncher(section, "127.0.0.1:1", Token.generate(), "abc/s1")
    names = [launcher.start(role) for role in ("server", "worker", "worker")]
    assert names == ["bundle 3", "bundle 1", "bundle 2"]
    assert launcher.ended() == {}
    fake_ray.ended[1] = "The actor died because of an error\nraised in its creation task"
    assert launcher.ended() == {
        "bundle 1": "ended: RuntimeError: The actor died because of an error raised in its creation task"
    }
    replacements = Replacements(launcher)
    assert launcher.start("worker", "bundle 1") == "bundle 1"
    assert (fake_ray.killed, launcher.ended()) == ([1], {})
    assert launcher.start("worker") == ""  # no bundle is free
    replacements.start("worker", "bundle 2")  # stands still: it is killed for the new one
    fake_ray.ended[4] = ""
    assert (fake_ray.killed, replacements.failed()) == ([1, 2], {"bundle 2": "ended"})
