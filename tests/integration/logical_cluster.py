"""A Ray cluster of several nodes on this machine, with GPUs that exist in Ray's books only, for tests of placement.

    with LogicalCluster(nodes=3, cpus=2, gpus=2) as cluster:
        subprocess.run([..., f"executor.address={cluster.address}"], env=os.environ | cluster.environment)
        cluster.kill(2)

`ray.cluster_utils.Cluster` runs in a process of its own (this file as a script), so a test session that is connected
to another cluster is none of its business, and the cluster goes down with the session however that ends. A node is a
raylet with its own resources, workers and failure; all nodes share this machine's kernel, disk and processors. So a
test sees which node and which `CUDA_VISIBLE_DEVICES` a run is given, and what a node's death does to it; it sees no
GPU's work.

The cluster is guarded by Ray's token, as one that others could reach should be: `environment` holds it.

Ray gives a node half a minute to come up, which it may need where all cores are taken: a cluster that did not come up
is started again, and what a process of Ray's may take is set to minutes.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

PATIENCE_SECONDS = 120.0
STOP_SECONDS = 30.0
STARTS = 4  # attempts to bring a cluster up
HERE = Path(__file__).resolve().parent
TOKEN = secrets.token_hex(32)  # one for all clusters of a session, so that several can be up at once
OBJECT_STORE_BYTES = 80 * 2**20
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # idle Python processes, one a core and node
    "RAY_health_check_initial_delay_ms": "1000",  # a dead node is noticed in two seconds instead of fifteen
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "30000",  # a living one may wait for a core before it answers
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_agent_register_timeout_ms": "240000",
    "RAY_worker_register_timeout_seconds": "240",
    "RAY_memory_monitor_refresh_ms": "0",  # what else uses this machine's memory is no reason to kill a worker
    "OMP_NUM_THREADS": "1",
}


class LogicalCluster:
    """`nodes` nodes with `cpus` CPUs and `gpus` GPUs each; node 0 is the head, which holds the cluster's state.

    With `head_cpus=0` nothing that needs a CPU is put on the head.

    `node_environments` gives single nodes further environment variables, by number: their workers inherit them.
    """

    def __init__(
        self,
        nodes: int = 3,
        cpus: int = 2,
        gpus: int = 2,
        head_cpus: int | None = None,
        node_environments: Mapping[int, Mapping[str, str]] | None = None,
    ):
        python_path = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]  # for fake_training
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
        }
        own = {name: dict(variables) for name, variables in (node_environments or {}).items()}
        on_head = cpus if head_cpus is None else head_cpus
        self._shape = {"cpus": [on_head] + [cpus] * (nodes - 1), "gpus": gpus, "environments": own}
        self.address = ""
        self.node_ids: Sequence[str] = []
        self._raylets: Sequence[int] = []

    def __enter__(self) -> LogicalCluster:
        for _ in range(STARTS):
            self._process, log = self._start()
            with log:
                if answer := self._line():
                    self.address, self.node_ids, self._raylets = answer["address"], answer["nodes"], answer["raylets"]
                    return self
                self._process.communicate(timeout=PATIENCE_SECONDS)
                log.seek(0)
                said = log.read()[-3000:]
        raise RuntimeError(f"Ray did not come up in {STARTS} attempts; the last one said:\n{said}")

    def _start(self) -> tuple[subprocess.Popen[str], IO[str]]:
        """The cluster's process, and the file in which its complaints are."""
        log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  the caller closes it
        process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(self._shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            | SETTINGS
            | self.environment,
            text=True,
            start_new_session=True,  # a Ctrl-C that a test sends is not for the cluster
        )
        return process, log

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self, node: int) -> None:
        """Kill every process of a node at once, as a power cut does; 0 is the head, and with it the cluster."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{node}\n")
        self._process.stdin.flush()
        self._answer()

    def node_of(self, worker: int) -> int:
        """The number of the node that a worker process belongs to."""
        stat = Path(f"/proc/{worker}/stat").read_text(encoding="utf-8", errors="replace")
        return self._raylets.index(int(stat.rpartition(")")[2].split()[1]))

    def _answer(self) -> dict[str, Any]:
        answer = self._line()
        if answer is None:
            raise RuntimeError(f"the cluster's process ended with {self._process.wait(PATIENCE_SECONDS)}")
        return answer

    def _line(self) -> dict[str, Any] | None:
        """The next line of the cluster's process; None where it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] | None = json.loads(line) if line else None
        return answer


def serve(shape: Mapping[str, Any]) -> None:
    """Start the cluster, say where it is, and kill the nodes that standard input names, until that is closed."""
    from ray.cluster_utils import Cluster

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Ray prints
    cluster = Cluster()
    nodes = []
    try:
        for number, cpus in enumerate(shape["cpus"]):
            own = shape["environments"].get(str(number), {})
            nodes.append(
                cluster.add_node(
                    num_cpus=cpus,
                    num_gpus=shape["gpus"],
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    env_vars=own or None,
                )
            )
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        ids = [node.node_id for node in nodes]
        answers.write(json.dumps({"address": cluster.address, "nodes": ids, "raylets": raylets}) + "\n")
        for line in sys.stdin:
            cluster.remove_node(nodes[int(line)], allow_graceful=False)
            answers.write("{}\n")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
