from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from nmt.config import compose
from nmt.errors import UserError
from nmt.runs import LocalRunStore
from sweeps.tracking.store import (
    StoreLock,
    artifact_root,
    default_uri,
    plain_words,
    resolve_uri,
    sqlite_path,
)
from sweeps.tracking.store_errors import reason, store_error
from sweeps.tracking.tracker import open_for_run


def test_the_default_store_is_absolute_and_in_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = resolve_uri("", Path("runs"))
    assert uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert sqlite_path(uri) == tmp_path / "runs/mlflow.db"
    assert artifact_root(uri, Path("elsewhere")) == tmp_path / "runs/mlflow-artifacts"


@pytest.mark.parametrize("name", ["a b", "a%20b", "a?b", "a#b", "ü", "100%"])
def test_any_directory_can_hold_the_store(tmp_path: Path, name: str) -> None:
    uri = default_uri(tmp_path / name)
    assert sqlite_path(uri) == tmp_path / name / "mlflow.db"
    assert resolve_uri(uri, Path("elsewhere")) == uri
    assert not set("?# ") & set(uri)


def test_uris_of_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///my.db", Path("runs")) == f"sqlite:///{tmp_path}/my.db"
    assert resolve_uri("sqlite:////data/my.db", Path("runs")) == "sqlite:////data/my.db"
    for server in ("http://127.0.0.1:5000", "https://host/mlflow", "postgresql+psycopg2://host/db"):
        assert resolve_uri(server, Path("runs")) == server
        assert sqlite_path(server) is None
        kept_here = tmp_path / "runs/mlflow-artifacts" if server.startswith("postgresql") else None
        assert artifact_root(server, Path("runs")) == kept_here


def test_a_password_is_neither_in_a_lock_s_name_nor_in_what_is_said(tmp_path: Path) -> None:
    one, other = (f"postgresql://ann{password}@host/runs" for password in (":secret", ""))
    assert StoreLock(one, tmp_path).path == StoreLock(other, tmp_path).path
    with pytest.raises(UserError, match="write postgresql://") as caught:
        resolve_uri("postgres://ann:secret@host/runs", tmp_path)
    assert "secret" not in str(caught.value)
    refused = ConnectionError(f"connection to {one} failed: Connection refused")
    shown = "postgresql://ann@host/runs"
    why = f"cannot be used: connection to {shown} failed: Connection refused"
    assert str(store_error(refused, one)) == f"{shown}: {why}; is the server running, and the address right?"


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "ftp://host"])
def test_other_stores_are_refused(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_uri(uri, Path("runs"))
    assert caught.value.where == "tracking.uri" and uri in str(caught.value)


def test_config_keys_are_understood_by_their_short_names() -> None:
    words = ["paths.runs=a=b", "tracking.uri=sqlite:///x", "port=1", "--help"]
    assert plain_words(words) == ["runs=a=b", "uri=sqlite:///x", "port=1", "--help"]


@pytest.mark.parametrize("uri", ["", "http://127.0.0.1:5000"])
def test_one_holder_at_a_time(tmp_path: Path, uri: str) -> None:
    absolute = resolve_uri(uri, tmp_path)
    first, second = StoreLock(absolute, tmp_path), StoreLock(absolute, tmp_path)
    assert first.acquire() and first.acquire()
    assert first.path.is_relative_to(tmp_path)
    assert not second.acquire() and not second.held
    assert second.holder().startswith("process ")
    first.release()
    assert second.acquire() and not first.acquire()
    second.release()


def test_stores_do_not_block_each_other(tmp_path: Path) -> None:
    locks = [StoreLock(uri, tmp_path) for uri in (default_uri(tmp_path), "http://one:1", "http://two:1")]
    assert all(lock.acquire() for lock in locks)
    for lock in locks:
        lock.release()


def test_death_releases_the_lock(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from sweeps.tracking.store import StoreLock;"
        f"lock = StoreLock({uri!r}, Path({str(tmp_path)!r})); print(lock.acquire(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        lock = StoreLock(uri, tmp_path)
        assert not lock.acquire()
        assert lock.holder().startswith(f"process {holder.pid} on ")
        holder.kill()
        holder.wait()
        assert lock.acquire()
    lock.release()


def test_without_mlflow_there_is_one_line_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else find_spec(name))
    with pytest.raises(UserError, match="tracking=none"):
        open_for_run(compose([f"paths.runs={tmp_path}"]), LocalRunStore(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_reason_is_what_lies_at_the_bottom() -> None:
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as error:
            raise RuntimeError("a long story\nin several lines") from error
    except RuntimeError as error:
        assert reason(error) == "Connection refused"
    assert reason(ValueError("one\ntwo")) == "one"
    assert reason(KeyError()) == "KeyError"
    several = (
        "Multiple connection attempts failed. All failures were:\n- host: 'a': no\n- host: 'b': Connection refused"
    )
    assert reason(OSError(several)).endswith("All failures were: host: 'b': Connection refused")


def test_a_missing_driver_is_named() -> None:
    missing = ModuleNotFoundError("No module named 'psycopg'", name="psycopg")
    error = store_error(missing, "postgresql://ann:secret@host/runs")
    assert error.what == "needs the Python package psycopg" and error.hint == "pip install '.[postgres]'"
    assert store_error(ModuleNotFoundError("", name="pyodbc"), "mssql://host/runs").hint == "pip install pyodbc"
