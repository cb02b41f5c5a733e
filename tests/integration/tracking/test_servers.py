"""The same view in every kind of store: an sqlite file, MLflow's server, a PostgreSQL database."""

from __future__ import annotations

import base64
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from nmt.config import to_dict
from nmt.config.identity import run_id
from nmt.errors import UserError
from sweeps.tracking import database_server
from sweeps.tracking.store import open_client
from sweeps.tracking.store_errors import store_error
from sweeps.tracking.sync import main
from sweeps.tracking.tracker import open_for_run
from sweeps.tracking.ui import _database, free_port, list_experiments, log_of, serve

pytestmark = pytest.mark.usefixtures("heard")


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def sync(runs, *words: str) -> int:
    return main([f"runs={runs.root}", *words])


def test_every_store_shows_the_same_and_a_second_sync_touches_nothing(runs, view, any_uri, capsys) -> None:
    configs = [runs.config("additive", seed) for seed in (1, 2)]
    for config, bleu in zip(configs, (30.0, 31.0), strict=True):
        runs.whole(config, bleu)
    report = runs.root / "reports" / "all@local"
    report.mkdir(parents=True)
    rows = [
        {
            "label": "additive",
            "train_id": run_id(configs[0]).partition("/")[0],
            "config": to_dict(configs[0]),
            "replicates": [{"run_id": run_id(config)} for config in configs],
        }
    ]
    (report / "sweep.json").write_text(
        json.dumps({"format_version": 1, "sweep": {"name": "all"}, "scale": "local", "rows": rows})
    )

    tracker = runs.tracker(runs.group(configs[0]), experiment="all@local")  # in the runs' own sqlite store
    tracker.attach(report / "sweep.json")
    tracker.close()

    assert sync(runs, f"uri={any_uri}") == 0
    said = capsys.readouterr()
    assert "2 runs of 1 configurations in 1 experiments, 22 new points of curves, 0 left out" in said.out
    assert "pa%2Fss" not in said.out + said.err and "pa/ss" not in said.out + said.err
    here, there = view("all@local"), view("all@local", uri=any_uri)
    assert there.everything() == here.everything()
    assert there.parents()["additive"].data.tags["bleu"] == "30.50 ± 0.71 (31.00)"

    before = there.raw()
    assert sync(runs, f"uri={any_uri}") == 0
    assert ", 0 new points of curves, 0 left out" in capsys.readouterr().out
    assert view("all@local", uri=any_uri).raw() == before

    runs.whole(runs.config("additive", 3), 35.0)  # by nobody's order: a run that no sweep asked for
    assert sync(runs, f"uri={any_uri}") == 0
    assert ", 11 new points of curves, 0 left out" in capsys.readouterr().out
    for path in runs.root.rglob("*"):  # neither files nor their names
        assert "ss%3A" not in path.name and (path.is_dir() or b"ss%3A" not in path.read_bytes()), path


def test_artifacts_of_a_database_lie_beside_the_runs(runs, view, postgres_uri) -> None:
    runs.whole(runs.config("", 1), 30.0)
    assert sync(runs, f"uri={postgres_uri}") == 0
    seen = view("train@local", uri=postgres_uri)
    location = Path(unquote(seen.experiment.artifact_location.removeprefix("file://")))
    assert location == runs.root / "mlflow-artifacts" / "train@local"
    (child,) = seen.children().values()
    assert (location / child.info.run_id / "artifacts" / "config.yaml").is_file()


def test_the_password_may_come_from_the_environment(runs, view, postgres, postgres_uri, monkeypatch, capsys) -> None:
    database = postgres_uri.rpartition("/")[2]
    bare = postgres.bare_uri(database)
    runs.whole(runs.config("", 1), 30.0)
    with pytest.raises(UserError, match="PGPASSWORD") as caught:
        sync(runs, f"uri={bare}")
    assert caught.value.where == bare
    monkeypatch.setenv("PGPASSWORD", "pa/ss:word")
    assert sync(runs, f"uri={bare}") == 0
    assert capsys.readouterr().out.startswith(f"{bare}: 1 runs")


def test_a_training_is_tracked_in_a_database_and_its_files_hold_no_password(
    runs, view, postgres_uri, monkeypatch, caplog
) -> None:
    config = runs.config("", 1, **{"tracking.uri": f"'{postgres_uri}'"})
    assert config.tracking.uri == postgres_uri
    name = runs.begin(config)
    tracker = open_for_run(config, runs.store)
    runs.train(name, range(10, 51, 10))
    tracker.poll()
    tracker.close()
    seen = view("train@local", uri=postgres_uri)
    assert [step for step, _ in seen.curve(seen.children()[name])] == [10, 20, 30, 40, 50]
    assert "ss%3A" not in (runs.store.directory(name) / "config.yaml").read_text()
    assert "ss%3A" not in json.dumps(seen.everything(), default=str, skipkeys=True) + caplog.text


def test_connections_that_a_server_drops_cost_nothing(runs, view, postgres, postgres_uri, caplog) -> None:
    config = runs.config("", 1)
    name = runs.begin(config)
    tracker = runs.tracker(runs.group(config, range(1, 2)), uri=postgres_uri)
    for start in (10, 60, 110):
        runs.train(name, range(start, start + 50, 10))
        tracker.poll()
        database = postgres_uri.rpartition("/")[2]
        postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
    tracker.close()
    seen = view(uri=postgres_uri)
    assert [step for step, _ in seen.curve(seen.children()[name])] == list(range(10, 160, 10))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("change", "what", "hint"),
    [
        (lambda uri: uri.replace("pa%2F", "no"), "password authentication failed", "PGPASSWORD"),
        (lambda uri: f"{uri}x", "does not exist", "create it first"),
        (lambda uri: uri.partition("@")[0] + "@127.0.0.1:9/runs", "Connection refused", "is the server running"),
        (lambda uri: uri.replace("postgresql:", "postgresql+psycopg2:"), "needs the Python package", "pip install"),
    ],
    ids=["password", "database", "away", "driver"],
)
def test_mistakes_are_one_line_that_says_what_to_do(runs, postgres_uri, change, what: str, hint: str, caplog) -> None:
    uri = change(postgres_uri)
    with pytest.raises(UserError, match=what) as caught:
        sync(runs, f"uri={uri}")
    assert hint in str(caught.value.hint)
    assert "\n" not in str(caught.value)
    config = runs.config("", 1, **{"tracking.uri": f"'{uri}'"})
    runs.whole(config, 30.0)
    tracker = open_for_run(config, runs.store)  # a training goes on
    tracker.poll()
    tracker.close()
    (line,) = [record.getMessage() for record in caplog.records]
    assert what in line and "training goes on" in line
    assert "ss%3A" not in str(caught.value) + line


def test_tables_of_another_mlflow(runs, postgres, postgres_uri) -> None:
    version = "fedcba987654"
    postgres.execute(f"UPDATE alembic_version SET version_num = '{version}'", postgres_uri.rpartition("/")[2])
    command = [sys.executable, "-m", "nmt.cli", "sync", f"runs={runs.root}", f"uri={postgres_uri}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # MLflow looks once a process
    assert done.returncode == 2 and "of a newer MLflow" in done.stderr and version in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "ss%3A" not in done.stderr
    told = "Detected out-of-date database schema (found version 451aebb31d03, but expected fedcba987654)."
    error = store_error(RuntimeError(told), postgres_uri)
    assert "of an older MLflow" in error.what and "mlflow db upgrade" in str(error.hint)


def test_one_process_at_a_time_creates_the_tables(postgres, monkeypatch) -> None:
    import psycopg

    postgres.execute("CREATE DATABASE fresh")
    uri = postgres.uri("fresh")
    with psycopg.connect(uri, autocommit=True) as other:  # on another machine, say
        other.execute("SELECT pg_advisory_lock(%s)", [database_server.TABLES_LOCK])
        with monkeypatch.context() as patch:
            patch.setattr(database_server, "LOCK_SECONDS", 1)
            with pytest.raises(Exception, match="lock timeout") as caught:
                open_client(uri)
    assert "creating its tables" in str(store_error(caught.value, uri).hint)
    assert [one.name for one in open_client(uri).search_experiments()] == ["Default"]


def test_nmt_ui_serves_a_database_and_shows_nobody_its_password(runs, view, postgres_uri) -> None:
    config = runs.config("additive")
    runs.whole(config, 30.0)
    runs.tracker(runs.group(config, range(1, 2)), uri=postgres_uri).close()
    database = _database(postgres_uri, runs.root)
    with serve(postgres_uri, database, free_port(0)) as (address, server):
        assert [experiment["name"] for experiment in list_experiments(address)] == ["study@local"]
        if Path("/proc/self/cmdline").exists():
            everyone = b"".join(map(command_line, Path("/proc").glob("[0-9]*")))
            assert b"mlflow\0server" in everyone and b"ss%3Aword" not in everyone
        assert server.poll() is None
    assert "ss%3A" not in log_of(database).read_text()
    with pytest.raises(UserError, match="does not exist"):
        _database(f"{postgres_uri}x", runs.root)
    with pytest.raises(UserError, match="open it in the browser"):
        _database("http://ann:secret@127.0.0.1:5000", runs.root)


class Gate(http.server.BaseHTTPRequestHandler):
    """A server behind a password: it lets in who says the right word, and shows an empty list."""

    welcome: tuple[str, ...] = ()

    def do_GET(self) -> None:
        welcome = self.headers.get("Authorization") in self.welcome
        body = b'{"experiments": []}' if welcome else b"who are you?"
        self.send_response(200 if welcome else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gate() -> Iterator[str]:
    Gate.welcome = (f"Basic {base64.b64encode(b'ann:secret').decode()}", "Bearer word")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_server_s_password_comes_from_the_environment_or_the_address(runs, gate: str, monkeypatch) -> None:
    runs.whole(runs.config("", 1), 30.0)
    with pytest.raises(UserError, match="401") as caught:
        sync(runs, f"uri=http://{gate}")
    assert "MLFLOW_TRACKING_USERNAME" in str(caught.value.hint)
    with pytest.raises(UserError, match="401") as caught:
        sync(runs, f"uri=http://ann:wrong@{gate}")
    assert "wrong" not in str(caught.value)
    assert open_client(f"http://ann:secret@{gate}").search_experiments() == []
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "word")
    assert open_client(f"http://{gate}").search_experiments() == []
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert open_client(f"http://{gate}").search_experiments() == []
