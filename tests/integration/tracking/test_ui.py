"""The server that `nmt ui` starts: what it answers, what it refuses, and that nothing of it stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from leftovers import wait_for_ends

from nmt.errors import UserError
from sweeps.tracking import sync
from sweeps.tracking.ui import HOST, _kept_free, free_port, links, main

CODE = "import sys; from sweeps.tracking.ui import main; sys.exit(main(sys.argv[1:]))"


def ask(url: str, body: dict | None = None, headers: dict | None = None) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def processes() -> Iterator[tuple[int, int, int]]:
    """The living processes of this machine: each with its parent and its process group."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
        except (OSError, ValueError):  # it has ended meanwhile
            continue
        if state != "Z":
            yield int(path.parent.name), int(parent), int(group)


def members(group: int) -> list[int]:
    """The living processes of a process group."""
    return [process for process, _, own in processes() if own == group]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look for processes left behind")
def test_the_server_from_start_to_stop(runs, view) -> None:
    config = runs.config("additive")
    runs.whole(config, 30.0)
    runs.tracker(runs.group(config, range(1, 2))).close()
    command = [sys.executable, "-c", CODE, "port=0", f"runs={runs.root}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ui:
        try:
            lines = []
            assert ui.stdout is not None and ui.stderr is not None
            while not lines or "Ctrl-C" not in lines[-1]:
                line = ui.stdout.readline()
                assert line, f"ended early: {ui.stderr.read()}"
                lines.append(line.rstrip())
            text = "\n".join(lines)
            address = re.search(r"http://127\.0\.0\.1:\d+", text)[0]
            experiment = view().experiment.experiment_id
            assert lines[0] == "study@local"
            assert [link for link in links(address, experiment).values() if link not in text] == []

            assert ask(f"{address}/")[0] == 200
            status, body = ask(f"{address}/ajax-api/2.0/mlflow/runs/search", {"experiment_ids": [experiment]})
            names = {run["info"]["run_name"] for run in json.loads(body)["runs"]}
            assert (status, names) == (200, {"additive", "additive · seed 1"})
            child = view().children().popitem()[1].info.run_id
            assert ask(f"{address}/get-artifact?path=config.yaml&run_uuid={child}")[1].startswith(b"label: additive")
            # Nothing that executes: neither the assistant with its shell, nor jobs, nor the gateway.
            for path in ("ajax-api/3.0/mlflow/assistant/config", "ajax-api/3.0/jobs/search", "gateway/x/invocations"):
                assert ask(f"{address}/{path}")[0] == 404, path
            assert ask(f"{address}/ajax-api/2.0/mlflow/experiments/search", {}, {"Host": "evil.example"})[0] == 403
            assert ask(f"{address}/api/2.0/mlflow/runs/create", {}, {"Origin": "http://evil.example"})[0] == 403

            (server,) = {group for _, parent, group in processes() if parent == ui.pid}
            assert len(members(server)) >= 2
            os.kill(ui.pid, signal.SIGINT)
            assert ui.wait(timeout=120) == 0
            assert "Traceback" not in ui.stderr.read()
        finally:
            ui.kill()
    wait_for_ends(set(members(server)))
    assert members(server) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0


def test_a_port_that_is_taken(runs) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as caught:
            main([f"port={port}", f"runs={runs.root}"])
    assert caught.value.where == "port" and str(port) in str(caught.value)
    free = int(re.search(r"port=(\d+) is free", str(caught.value.hint))[1])
    assert port < free < port + 100


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere two sockets cannot have a port")
def test_a_port_is_kept_for_the_server_while_it_comes_up() -> None:
    port = free_port(0)
    with _kept_free(port):
        with socket.socket() as another, pytest.raises(OSError, match="in use"):
            another.bind((HOST, port))
        server = socket.create_server((HOST, port))  # sets SO_REUSEADDR, as servers do
    with server, socket.create_connection((HOST, port)):
        pass


def test_nothing_to_show(runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no runs yet"):
        main([f"runs={tmp_path / 'absent'}"])
    runs.whole(runs.config("additive"), 30.0)
    (runs.root / "mlflow.db").unlink()
    with pytest.raises(UserError, match="nmt sync"):
        main([f"paths.runs={runs.root}"])
    with pytest.raises(UserError, match="open it in the browser"):
        main(["uri=http://127.0.0.1:5000"])


def test_a_store_that_is_none(runs) -> None:
    (runs.root / "mlflow.db").write_text("this is not a database, " * 10)
    with pytest.raises(UserError, match="file is not a database"):
        main(["port=0", f"runs={runs.root}"])


def test_a_database_of_a_newer_mlflow_is_told_and_left_alone(runs, heard, caplog) -> None:
    config = runs.config("additive")
    runs.whole(config, 30.0)
    database = runs.root / "mlflow.db"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    before = database.read_bytes()
    expected = (
        rf"has tables of a newer MLflow \(version fedcba987654\) than this .*; update mlflow, or move {database} away"
    )
    tracker = runs.tracker(runs.group(config, range(1, 2)))  # what a sweep and a training have
    assert tracker.register_best() is None
    tracker.close()
    (told,) = caplog.messages
    assert re.search(f"{expected} and `nmt sync` makes it anew; training goes on", told)
    for verb, words in ((sync.main, []), (main, ["port=0"])):
        with pytest.raises(UserError, match=expected) as caught:
            verb([f"runs={runs.root}", *words])
        assert str(caught.value).count("\n") == 0
    assert database.read_bytes() == before


@pytest.mark.parametrize("verb", ["sync", "ui"])
def test_help_and_mistakes_load_nothing_heavy(verb: str) -> None:
    code = (
        "import sys\n"
        f"from sweeps.tracking.{verb} import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'mlflow', 'torch', 'pandas', 'ray', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith(f"Usage: nmt {verb}")
    assert done.stdout.splitlines()[-1] == "[]"
