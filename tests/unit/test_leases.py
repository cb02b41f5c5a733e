"""One attempt at a time: locks under one kernel, leases across machines, and nothing published by an attempt that lost.

A process of another machine is a lease with another kernel's id, and a lock that does not reach this one.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO

import pytest

from nmt import lease_file, leases
from nmt.lease_file import LeaseLostError, RunBusyError, kernel, read_lease
from nmt.leases import LEASE_SECONDS, is_held
from nmt.runs import HeldRunStore, LocalRunStore, RunStatus

RUN = "0123456789ab/s1"


@pytest.fixture
def store(tmp_path: Path) -> LocalRunStore:
    return LocalRunStore(tmp_path)


def elsewhere(store: LocalRunStore, *, age: float, attempt: int = 4, released: bool = False) -> None:
    """A lease of a process on another machine, touched `age` seconds ago."""
    path = store.directory(RUN) / "lease"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"attempt": attempt, "pid": 77, "host": "far", "kernel": "another", "released": released}
    path.write_text(json.dumps(record))
    (path.parent / "lock").touch()
    past = time.time() - age
    os.utime(path, (past, past))


def let_expire(store: LocalRunStore) -> None:
    past = time.time() - LEASE_SECONDS - 1
    os.utime(store.directory(RUN) / "lease", (past, past))


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes whose lease has expired stand still, this one too."""
    monkeypatch.setattr(leases, "_is_at_work", lambda pid: False)


def test_attempts_are_numbered_on_and_each_says_that_it_is_over(store: LocalRunStore) -> None:
    for number in (1, 2, 3):
        with store.claim(RUN) as held:
            assert held.attempt.number == number
            lease = read_lease(store.directory(RUN))
            assert lease is not None
            assert (lease.attempt, lease.pid, lease.kernel, lease.released) == (number, os.getpid(), kernel(), False)
        after = read_lease(store.directory(RUN))
        assert after is not None and after.released
        assert held.attempt.predecessor is None


def test_numbers_go_on_where_a_run_of_an_earlier_version_stopped(store: LocalRunStore) -> None:
    store.set_status(RUN, RunStatus(state="interrupted", attempts=5))
    (store.directory(RUN) / "lock").touch()
    with store.claim(RUN) as held:
        assert held.attempt.number == 6


def test_a_damaged_lease_is_no_obstacle(store: LocalRunStore) -> None:
    elsewhere(store, age=0)
    (store.directory(RUN) / "lease").write_text('{"attempt": 4, "pi')
    assert read_lease(store.directory(RUN)) is None
    with store.claim(RUN) as held:
        assert held.attempt.number == 1


def test_another_machines_lease_holds_until_it_expires(store: LocalRunStore) -> None:
    elsewhere(store, age=LEASE_SECONDS / 2)  # what is left is time enough for what follows, whoever has the cores
    store.set_status(RUN, RunStatus(state="running", step=3))
    assert store.is_claimed(RUN)
    assert store.status(RUN).state == "running"
    with pytest.raises(RunBusyError, match="process 77 on far is training this run"), store.claim(RUN):
        pass
    with pytest.raises(RunBusyError), store.unclaimed(RUN):
        pass

    let_expire(store)
    assert not store.is_claimed(RUN)
    assert store.status(RUN).state == "interrupted"
    with store.claim(RUN) as held:
        assert held.attempt.number == 5
        assert held.attempt.predecessor is not None and held.attempt.predecessor.pid == 77
        assert not held.attempt.taken_over  # its lock was free: nothing says that it lives


def test_a_dead_holder_elsewhere_is_outlived(store: LocalRunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.time()]

    def wait(seconds: float) -> None:
        now[0] += seconds

    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: now[0])
        clock.setattr(time, "sleep", wait)
        clock.setattr(leases, "_now", lambda directory: now[0])
        elsewhere(store, age=LEASE_SECONDS - 0.1)
        assert store.is_claimed(RUN)
        assert store.outlives_holder(RUN)
        assert not store.is_claimed(RUN)
    elsewhere(store, age=0, released=True)
    monkeypatch.setattr(time, "sleep", refuse_to_wait)
    assert store.outlives_holder(RUN)


def refuse_to_wait(seconds: float) -> None:
    raise AssertionError("there was nothing to wait for")


def test_a_living_holder_is_not_outlived(store: LocalRunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.claim(RUN), monkeypatch.context() as patch:
        patch.setattr(time, "sleep", refuse_to_wait)
        assert not store.outlives_holder(RUN)
    elsewhere(store, age=5)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.utime(store.directory(RUN) / "lease"))  # meanwhile, there
    assert not store.outlives_holder(RUN)


def test_another_machine_that_let_go_holds_nothing(store: LocalRunStore) -> None:
    elsewhere(store, age=0, released=True)
    assert not store.is_claimed(RUN)
    with store.claim(RUN) as held:
        assert held.attempt.predecessor is None


def test_the_dead_of_this_machine_are_not_waited_for(store: LocalRunStore) -> None:
    elsewhere(store, age=0)
    path = store.directory(RUN) / "lease"
    path.write_text(path.read_text().replace("another", kernel()))
    assert not store.is_claimed(RUN)
    with store.claim(RUN) as held:
        assert held.attempt.predecessor is not None and held.attempt.predecessor.attempt == 4


def test_expiry_is_told_by_the_file_systems_clock(store: LocalRunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is an hour ahead takes nothing over, and gives nobody up as dead."""
    elsewhere(store, age=1)
    late = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: late)
    with pytest.raises(RunBusyError), store.claim(RUN):
        pass
    with pytest.raises(RunBusyError), store.unclaimed(RUN):
        pass


def test_the_heartbeat_is_the_leases(store: LocalRunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.set_status(RUN, RunStatus(state="running"))
    elsewhere(store, age=-3600)
    lease = read_lease(store.directory(RUN))
    assert lease is not None
    assert store.status(RUN).heartbeat == lease.heartbeat > time.time()


def taken_over(store: LocalRunStore, held: HeldRunStore) -> None:
    """What a second process does to a stopped one; its lock is another open file, so it may be tried in this one."""
    with pytest.raises(RunBusyError), store.claim(RUN):
        pass
    let_expire(store)
    with store.claim(RUN) as heir:
        assert heir.attempt.number == held.attempt.number + 1
        assert heir.attempt.taken_over
        heir.set_status(RUN, RunStatus(state="running", step=9))
        assert is_held(store.directory(RUN))


def test_a_holder_that_is_at_work_is_left_alone_however_long_it_is_silent(store: LocalRunStore) -> None:
    with store.claim(RUN) as held:
        let_expire(store)
        with pytest.raises(RunBusyError, match=f"process {os.getpid()} on "), store.claim(RUN):
            pass
        held.write_text(RUN, "config.yaml", "mine")


def test_an_attempt_that_lost_its_lease_changes_nothing(store: LocalRunStore, stopped: None) -> None:
    with store.claim(RUN) as held:
        held.write_text(RUN, "config.yaml", "old")
        held.append_line(RUN, "metrics.jsonl", "one")
        held.append_bytes(RUN, "journals/trace", b"one")
        held.check(RUN)
        taken_over(store, held)
        before = {path: path.read_bytes() for path in store.directory(RUN).rglob("*") if path.is_file()}
        for write in (
            lambda: held.write_text(RUN, "config.yaml", "new"),
            lambda: held.write_bytes(RUN, "checkpoints/step-00000009.pt", b"new"),
            lambda: held.set_status(RUN, RunStatus(state="failed")),
            lambda: held.append_line(RUN, "metrics.jsonl", "two"),
            lambda: held.append_bytes(RUN, "journals/trace", b"two"),
            lambda: held.append_bytes(RUN, "journals/other", b"one"),
            lambda: held.truncate(RUN, "metrics.jsonl", 0),
            lambda: held.delete(RUN, "config.yaml"),
            lambda: held.check(RUN),
        ):
            with pytest.raises(LeaseLostError, match=r"attempt 1 was stopped for too long .* by attempt 2, process"):
                write()
    after = {path: path.read_bytes() for path in store.directory(RUN).rglob("*") if path.is_file()}
    assert after == before


def test_the_heir_holds_the_run_whatever_becomes_of_the_one_before(store: LocalRunStore, stopped: None) -> None:
    directory = store.directory(RUN)
    with store.claim(RUN) as held:
        let_expire(store)
        with store.claim(RUN):
            held.attempt._lock.close()  # as the kernel does when the stopped process is killed
            assert is_held(directory)
            with pytest.raises(RunBusyError), store.claim(RUN):
                pass
    with store.claim(RUN) as held:
        let_expire(store)
        with store.claim(RUN):
            pass
        assert not is_held(directory)  # the stopped process keeps nobody from it any more
        with store.claim(RUN):
            pass


def test_an_attempt_that_was_given_up_as_dead_changes_nothing_either(store: LocalRunStore) -> None:
    """A driver on another machine, which the process's lock does not reach, saw its lease expire."""
    with store.claim(RUN) as held:
        path = store.directory(RUN) / "lease"
        path.write_text(path.read_text().replace('"released": false', '"released": true'))
        with pytest.raises(LeaseLostError, match="attempt 1 was stopped for too long and was given up as dead"):
            held.append_line(RUN, "metrics.jsonl", "one")
    assert not (store.directory(RUN) / "metrics.jsonl").exists()


def test_other_runs_are_written_as_before(store: LocalRunStore, stopped: None) -> None:
    with store.claim(RUN) as held:
        taken_over(store, held)
        held.write_text("0123456789ab/s2", "config.yaml", "new")
        held.check("0123456789ab/s2")
    assert (store.directory("0123456789ab/s2") / "config.yaml").read_text() == "new"


def test_a_lease_that_expired_and_that_nobody_took_goes_on(store: LocalRunStore) -> None:
    with store.claim(RUN) as held:
        let_expire(store)
        held.write_text(RUN, "config.yaml", "mine")
    assert (store.directory(RUN) / "config.yaml").read_text() == "mine"


def test_a_run_that_is_removed_ends_its_attempt(store: LocalRunStore) -> None:
    import shutil

    with store.claim(RUN) as held:
        shutil.rmtree(store.directory(RUN))
        with pytest.raises(LeaseLostError, match="its directory was removed"):
            held.append_line(RUN, "metrics.jsonl", "two")


def test_a_claim_that_waited_for_a_run_which_was_moved_away_starts_anew(
    store: LocalRunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`reuse=same_code` sets runs aside; whoever waited meanwhile must not end up with the old directory's lock."""
    elsewhere(store, age=0, attempt=8, released=True)
    lock = lease_file.lock_patiently

    def after_the_move(file: IO[bytes], patience: float, path: Path) -> bool:
        if not (tmp_path / "aside").exists():
            store.directory(RUN).rename(tmp_path / "aside")
        return lock(file, patience, path)

    monkeypatch.setattr(lease_file, "lock_patiently", after_the_move)
    with store.claim(RUN) as held:
        assert held.attempt.number == 1
        held.write_text(RUN, "config.yaml", "new")
    assert sorted(path.name for path in store.directory(RUN).iterdir()) == ["config.yaml", "lease", "lock"]


def test_the_lease_is_renewed_while_the_process_lives(store: LocalRunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    with store.claim(RUN):
        let_expire(store)
        end = time.monotonic() + 30
        while is_stale(store):
            assert time.monotonic() < end


def is_stale(store: LocalRunStore) -> bool:
    lease = read_lease(store.directory(RUN))
    return lease is None or time.time() - lease.heartbeat > LEASE_SECONDS


def test_a_process_stopped_in_the_middle_of_a_publication_holds_the_others_off(
    store: LocalRunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_file, "MUTEX_SECONDS", 0.05)
    elsewhere(store, age=LEASE_SECONDS + 1)
    with (store.directory(RUN) / "lease").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunBusyError, match="a process that is stopped keeps it locked; process 77 on far"):
            store.claim(RUN).__enter__()
    with store.claim(RUN) as held:
        assert held.attempt.number == 5


def test_what_a_dead_attempt_was_writing_is_removed_and_what_others_write_stays(store: LocalRunStore) -> None:
    store.write_text(RUN, "decodes/x.json", "{}")
    folder = store.directory(RUN) / "decodes"
    (folder / ".x.json.attempt3.tmp").touch()
    (folder / ".y.json.host-12.tmp").touch()  # nmt evaluate, at this moment
    (folder / ".z.json.12.tmp").touch()
    past = time.time() - 7200
    os.utime(folder / ".z.json.12.tmp", (past, past))
    with store.claim(RUN):
        pass
    assert sorted(path.name for path in folder.iterdir()) == [".y.json.host-12.tmp", "x.json"]
