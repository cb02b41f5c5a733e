"""`nmt ui`: MLflow's server with safe settings, and links to the table and the curves of each sweep."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.arguments import option, parse
from nmt.errors import UserError
from nmt.passwords import without_password
from nmt.runs import runs_directory
from sweeps.tracking.store import (
    ARTIFACTS,
    DATABASE,
    SETTINGS,
    VIEW,
    check_database,
    open_client,
    plain_words,
    require_mlflow,
    resolve_uri,
    sqlite_path,
)
from sweeps.tracking.store_errors import store_error

HOST = "127.0.0.1"  # the server has no authentication: never anything but loopback
START_SECONDS, STOP_SECONDS = 180.0, 10.0
SAFE = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # no job runner: eight processes less, and nothing that executes
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "64",  # MLflow's 15 connections deadlock under parallel requests
}
# MLflow's default server has an assistant that runs shell commands for whoever can reach the port, every user of this
# machine included, and cannot be told not to. Under gunicorn only the tracking interface is served.
GUNICORN = "--threads 8 --no-control-socket"


@dataclass(frozen=True, kw_only=True)
class UiOptions:
    """Command line of `nmt ui`."""

    port: int = option(5000, "port on 127.0.0.1; 0: any free one", minimum=0)
    runs: str = option("", "directory of runs; unset: NMT_RUNS, or runs")
    uri: str = option(
        "", "tracking store, sqlite:///FILE or postgresql://...; unset: the sqlite file in the directory of runs"
    )


def main(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C; returns the exit code."""
    options = parse(
        UiOptions,
        plain_words(argv),
        verb="nmt ui",
        summary="Show runs, tables and curves in the browser: MLflow's own interface, on this machine only.",
        epilog="Examples:\n  nmt ui\n  nmt ui port=5001 runs=/data/runs",
    )
    require_mlflow()
    runs = runs_directory(options.runs)
    uri = resolve_uri(options.uri, runs)
    database = _database(uri, runs)
    port = free_port(options.port)
    sys.stderr.write("starting MLflow's server\n")
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop in any form stops the server too
    try:
        with serve(uri, database, port) as (address, server):
            sys.stdout.write(_welcome(address, list_experiments(address), list_models(address)))
            sys.stdout.flush()
            code = server.wait()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
    raise UserError(
        f"MLflow's server ended by itself, with code {code}", where="nmt ui", hint=f"see {log_of(database)}"
    )


@contextlib.contextmanager
def serve(uri: str, database: Path, port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server over a database: its address and process once it answers; stopped at the end.

    `database` is the sqlite file, or where it would be: the server's log and new artifacts stand beside it. Raises
    UserError where the server does not start.
    """
    address = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", database.with_name(ARTIFACTS).as_uri()]
    command += ["--gunicorn-opts", GUNICORN]
    log = log_of(database)
    with contextlib.ExitStack() as running:
        with _kept_free(port):
            with log.open("wb") as output:
                server = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    # Not as an argument, which every user of this machine can read: there may be a password in it.
                    env=os.environ | SETTINGS | SAFE | {"MLFLOW_BACKEND_STORE_URI": uri},
                    cwd=database.parent,
                    start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the server's group
                )
            running.callback(_stop, server)
            if not _answers(server, address):
                raise _start_error(log, uri)
        yield address, server


def list_experiments(address: str) -> list[dict[str, Any]]:
    """Experiments of the server, newest first, without MLflow's own empty one (HTTP spares the import)."""
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1000, "order_by": ["last_update_time DESC"]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
        found = json.load(answer).get("experiments", [])
    return [experiment for experiment in found if experiment["experiment_id"] != "0"]


def list_models(address: str) -> set[str]:
    """Names of the server's registered models."""
    url = f"{address}/api/2.0/mlflow/registered-models/search?max_results=1000"
    with urllib.request.urlopen(url, timeout=START_SECONDS) as answer:
        return {model["name"] for model in json.load(answer).get("registered_models", [])}


def links(address: str, experiment_id: str) -> dict[str, str]:
    """Deep links into an experiment: its table with our columns, and its charts."""
    # Without the type MLflow opens in its mode for chat applications, without these runs.
    runs = f"{address}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    return {
        "table": f"{runs}&compareRunsMode=TABLE&viewStateShareKey={VIEW}",
        "charts": f"{runs}&compareRunsMode=CHART&orderByKey=attributes.start_time&orderByAsc=true",
    }


def model_link(address: str, name: str) -> str:
    """Deep link to the versions of a registered model."""
    return f"{address}/#/models/{urllib.parse.quote(name)}?workflowType=machine_learning"


def _welcome(address: str, experiments: Sequence[dict[str, Any]], models: Collection[str]) -> str:
    if not experiments:
        return f"{address}: no runs yet; `nmt sweep sweep=quickstart` makes some. Ctrl-C stops the server.\n"
    from sweeps.tracking.registered_model import model_name

    lines = []
    for experiment in experiments:
        name = experiment["name"]
        found = links(address, experiment["experiment_id"])
        if model_name(name) in models:
            found["model"] = model_link(address, model_name(name))
        lines += [name, *(f"  {what:7} {link}" for what, link in found.items())]
    return "\n".join([*lines, "Ctrl-C stops the server.", ""])


def log_of(database: Path) -> Path:
    """Where the output of a store's server goes."""
    return database.with_name(f".{database.stem}-server.log")


def _database(uri: str, runs: Path) -> Path:
    """The database file of the store; for a database server, where the runs have theirs.

    Raises UserError where it is not there or cannot be reached, and for a server that has pages of its own.
    """
    if uri.startswith("http"):
        raise UserError("is a server already", where=f"uri={without_password(uri)}", hint="open it in the browser")
    database = sqlite_path(uri)
    if database is None:
        return _beside_runs(uri, runs)
    if database.is_file():
        try:
            check_database(database)
        except sqlite3.Error as error:
            raise UserError(str(error), where=str(database), hint="remove it and `nmt sync` makes it anew") from error
        return database
    if any(runs.glob("*/s*/config.yaml")):
        raise UserError(
            "no runs are tracked yet", where=str(database), hint="`nmt sync` shows MLflow those that are there"
        )
    hint = "`nmt sweep sweep=quickstart` makes some; runs=DIR or NMT_RUNS says where others are"
    raise UserError("there are no runs yet", where=str(runs), hint=hint)


def _beside_runs(uri: str, runs: Path) -> Path:
    if not runs.is_dir():
        hint = "runs=DIR or NMT_RUNS says where runs are; the server's log goes there"
        raise UserError("there is no such directory", where=str(runs), hint=hint)
    try:
        open_client(uri)
    except Exception as error:  # whatever the driver or MLflow raises
        raise store_error(error, uri) from error
    return runs / DATABASE


def free_port(port: int) -> int:
    """The port itself if it can be had, any for 0. Raises UserError, with the next free one, where it is taken."""
    if port > 65535:
        raise UserError(f"{port} is out of range", where="port", allowed=["0 to 65535"])
    found = _bind(port)
    if found is not None:
        return found
    nearby = next((other for other in range(port + 1, min(port + 100, 65536)) if _bind(other) is not None), 0)
    raise UserError(f"{port} is in use, or not allowed", where="port", hint=f"port={nearby} is free")


def _bind(port: int) -> int | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _kept_free(port: int) -> Iterator[None]:
    """Keep the port for the server while that comes up, which takes seconds: any other process may be given a free one.

    Linux lets two sockets have a port as long as one of them listens, and gives it to nobody who asks for any.
    """
    with socket.socket() as keeper:
        if sys.platform == "linux":
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # somebody has it by now, and the server will say so
                keeper.bind((HOST, port))
        yield


def _answers(server: subprocess.Popen[bytes], address: str) -> bool:
    """Whether the server comes up; waits for it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def _start_error(log: Path, uri: str) -> UserError:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    schema = [line for line in lines if "database schema" in line]
    if schema:  # of another MLflow's database
        return store_error(RuntimeError(schema[-1]), uri)
    return UserError("MLflow's server did not start", where="nmt ui", hint=f"{log} says why")


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return
