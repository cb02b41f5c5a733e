"""Every process in a network and a mount namespace of its own: links by TCP, no shared memory, no shared folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.exhaustive
NETWORK = "10.213.7"
SECONDS = 300.0  # seven processes import torch at once
COORDINATE = """
import sys
import torch
torch.set_num_threads(1)
from parameter_server_examples import STEPS, TOY, options, train, undisturbed
from distributed.parameter_server.strategy import ParameterServerStrategy
words = [*sys.argv[1:], "launcher=external", "bind={bind}", "link=tcp"]
strategy = ParameterServerStrategy(options(*words))
try:
    strategy.start(TOY)
    undisturbed().assert_equal(train(strategy, 1, STEPS), strategy.state())
    assert strategy.report()["lost"] == {{"workers": 0, "servers": 0, "links": 0}}
finally:
    strategy.close()
print("equal")
"""


class Hosts:
    """Namespaces on one bridge, as if they were hosts on a switch."""

    def __init__(self, hidden: Path):
        self.hidden, self.processes = hidden, list[subprocess.Popen[str]]()
        self.switch = self._started("true")
        self._in(self.switch.pid, "ip link add switch type bridge")
        self._in(self.switch.pid, "ip link set switch up")

    def _started(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A process in namespaces of its own that waits for a line, and then becomes what it was given."""
        wait = f'mount -t tmpfs none {self.hidden} && echo there && read -r line && exec "$@"'
        process = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", wait, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n", process.stderr and process.stderr.read()
        return process

    def _in(self, process: int, command: str) -> None:
        subprocess.run(["nsenter", "-t", str(process), "-n", *command.split()], check=True, capture_output=True)

    def run(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Run a command on a new host, whose address is that of the network with the number of hosts so far."""
        number = len(self.processes)
        process = self._started(*command, **environment)
        self._in(self.switch.pid, f"ip link add port{number} type veth peer name wire netns {process.pid}")
        self._in(self.switch.pid, f"ip link set port{number} master switch up")
        self._in(process.pid, f"ip address add {NETWORK}.{number}/24 dev wire")
        self._in(process.pid, "ip link set wire up")
        self._in(process.pid, "ip link set lo up")
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    tried = subprocess.run(
        [
            "unshare",
            "--net",
            "--mount",
            "sh",
            "-c",
            f"ip link add switch type bridge && mount -t tmpfs none {tmp_path}",
        ],
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        pytest.skip(f"this machine refuses namespaces: {tried.stderr.strip()}")
    made = Hosts(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_hosts_that_share_nothing_have_the_bits_of_one_process(workers: int, servers: int, hosts: Hosts) -> None:
    here = str(Path(__file__).parent)
    common = {"S2S_LINK_TOKEN": "0123456789abcdef" * 4, "PYTHONPATH": os.pathsep.join([here, *sys.path]),
              "OMP_NUM_THREADS": "1"}  # fmt: skip
    coordinator = hosts.run(
        *(
            sys.executable,
            "-c",
            COORDINATE.format(bind=f"{NETWORK}.1"),
            f"workers={workers}",
            f"servers={servers}",
            f"shadows={int(servers > 1)}",
        ),
        **common,
    )
    assert coordinator.stderr is not None
    heard = ""
    for line in coordinator.stderr:
        heard += line
        said = re.search(r"(coordinator=\S+) (run=\S+)", line)
        if said:
            break
    else:
        pytest.fail(f"the coordinator did not say how to join it: {heard}")
    members = [
        hosts.run(sys.executable, "-m", "distributed.launch", said[1], said[2], "threads=1", **common)
        for _ in range(workers + servers)
    ]
    shown, error = coordinator.communicate(timeout=SECONDS)
    assert shown.strip() == "equal", error
    assert [member.wait(SECONDS) for member in members] == [0] * len(members)
