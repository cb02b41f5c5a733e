"""Who starts a run's processes, and the command that starts one by hand: what is read, refused and said."""

from __future__ import annotations

import logging
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed import launch
from distributed.errors import DistributedError
from distributed.launchers.choose import build_launcher, process_counts, run_token, where_to_listen, who_starts
from distributed.launchers.ray_actors import RayLauncher, has_bundles
from distributed.links.token import ENVIRONMENT, FILE_ENVIRONMENT, Token


def options(tmp_path: Path, **changed: Any) -> dict[str, Any]:
    """Section `distribution`, as far as launchers read it."""
    section = {"name": "parameter_server", "workers": 2, "servers": 1, "launcher": "auto", "bind": "auto"}
    section |= {"heartbeat_seconds": 1.0, "threads": 1, "run_directory": str(tmp_path)}
    return section | {"tls_certificate": "", "tls_key": ""} | changed


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ENVIRONMENT, FILE_ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)


def test_outside_of_a_trial_processes_of_this_machine_are_started_on_the_loopback(tmp_path: Path) -> None:
    assert who_starts(options(tmp_path)) == "processes"
    assert who_starts(options(tmp_path, launcher="external")) == "external"
    assert where_to_listen(options(tmp_path)) == ("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        ("10.0.0.5", ("10.0.0.5", 0)),
        ("10.0.0.5:7000", ("10.0.0.5", 7000)),
        ("host-a", ("host-a", 0)),
        ("fe80::1", ("fe80::1", 0)),
        ("[fe80::1]:7000", ("fe80::1", 7000)),
        ("[fe80::1]", ("fe80::1", 0)),
    ],
)
def test_an_address_may_name_its_port(tmp_path: Path, bind: str, expected: tuple[str, int]) -> None:
    assert where_to_listen(options(tmp_path, bind=bind)) == expected


@pytest.mark.parametrize("bind", [":7000", "host:x", "host:70000", "host:"])
def test_what_is_no_address_is_refused(tmp_path: Path, bind: str) -> None:
    with pytest.raises(DistributedError, match=r"^distribution\.bind: .* is no address"):
        where_to_listen(options(tmp_path, bind=bind))


def test_ray_is_refused_where_no_trial_has_reserved_bundles(tmp_path: Path) -> None:
    assert not has_bundles()
    token = Token.generate()
    with pytest.raises(DistributedError, match="a run of 4 processes needs as many bundles, and this process is in no"):
        RayLauncher(options(tmp_path), "127.0.0.1:1", token, "abc/s1")
    with pytest.raises(DistributedError, match="a run of 3 processes"):
        build_launcher(options(tmp_path, launcher="ray", name="ddp"), "127.0.0.1:1", token, "abc/s1")


def test_ddp_has_no_servers(tmp_path: Path) -> None:
    assert process_counts(options(tmp_path)) == {"worker": 2, "server": 1}
    assert process_counts(options(tmp_path, name="ddp")) == {"worker": 2, "server": 0}


def test_what_others_are_to_start_is_one_line_and_the_token_a_file_of_its_owner(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    section = options(tmp_path, launcher="external", heartbeat_seconds=0.5)
    token = run_token(section)
    with caplog.at_level(logging.WARNING):
        launcher = build_launcher(section, "127.0.0.1:7000", token, "abc/s1")
        for role in ("server", "worker", "worker"):
            launcher.start(role)
    file = tmp_path / "link_token"
    command = "python -m distributed.launch coordinator=127.0.0.1:7000 run=abc/s1 heartbeat_seconds=0.5"
    assert [record.getMessage() for record in caplog.records] == [
        "run abc/s1 waits for 2 workers and 1 server; start each of these 3 processes with: "
        f"S2S_LINK_TOKEN_FILE={file} {command}"
    ]
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (token.reveal(), 0o600)
    assert Token.from_file(file).reveal() == token.reveal()
    assert (launcher.start("worker", "host:12"), launcher.ended()) == ("", {})
    assert caplog.records[-1].getMessage().startswith("run abc/s1: worker host:12 is lost; another may come: S2S_LINK")
    assert caplog.records[-1].getMessage().endswith(" role=worker")
    launcher.close()
    assert not file.exists()


def test_what_others_are_to_start_names_the_files_of_a_run_that_uses_tls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    section = options(tmp_path, launcher="external", tls_certificate="the run.pem", tls_key="run.key")
    with caplog.at_level(logging.WARNING):
        build_launcher(section, "127.0.0.1:7000", run_token(section), "abc/s1")
    assert caplog.text.rstrip().endswith(" run=abc/s1 tls_certificate='the run.pem' tls_key=run.key")


def test_a_token_of_the_environment_is_the_runs_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENVIRONMENT, "0123456789abcdef")
    section = options(tmp_path, launcher="external")
    token = run_token(section)
    assert token.reveal() == "0123456789abcdef"
    assert run_token(options(tmp_path)).reveal() != token.reveal()  # processes of our own have one of their own
    with caplog.at_level(logging.WARNING):
        build_launcher(section, "127.0.0.1:7000", token, "abc/s1")
    assert "with: python -m distributed.launch coordinator=127.0.0.1:7000 run=abc/s1" in caplog.text
    assert "0123456789abcdef" not in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_the_words_of_the_command() -> None:
    words = ["coordinator=h:7000", "run=abc/s1", "role=server", "threads=2", "heartbeat_seconds=0.5"]
    assert launch.parse(words) == launch.Options("h:7000", "abc/s1", "server", 2, 0.5)
    assert launch.parse(words[:2]) == launch.Options("h:7000", "abc/s1", "any", 0, 1.0)
    guarded = launch.parse([*words[:2], "tls_certificate=run.pem", "tls_key=run.key"])
    assert (guarded.tls_certificate, guarded.tls_key) == ("run.pem", "run.key")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["coordinator"], "'coordinator' is not key=value"),
        (["coordnator=h:1"], "unknown key 'coordnator'; .*did you mean coordinator"),
        (["coordinator=h:1"], "run: is missing"),
        (["run=a/s1"], "coordinator: is missing"),
        (["coordinator=h:1", "run=a/s1", "role=boss"], "role: 'boss' is no role; allowed: any, worker, server"),
        (["coordinator=h:1", "run=a/s1", "threads=many"], "threads: 'many' is no number"),
        (["coordinator=h:1", "run=a/s1", "threads=-1"], "threads: -1 is out of range"),
        (["coordinator=h:1", "run=a/s1", "heartbeat_seconds=0"], "heartbeat_seconds: 0 is out of range"),
        (["coordinator=h:1", "run=a/s1", "tls_key=run.key"], "tls_certificate: is needed beside the other"),
        (["coordinator=h", "run=a/s1"], "coordinator: 'h' is no address"),
        (["coordinator=h:1", "run=a/s1"], "the link token .* is missing"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(words) == 2
    out, err = capsys.readouterr()
    assert re.match(f"error: {complaint}", err), err
    assert (out, err.count("\n")) == ("", 1)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from distributed.launch import main; code = main(['--help']);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: python -m distributed.launch coordinator=HOST:PORT run=RUN")
