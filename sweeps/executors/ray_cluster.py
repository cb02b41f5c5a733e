"""A connection to a Ray cluster: one of the sweep's own, or one that runs already."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nmt.errors import UserError
from sweeps.executors.placement import Node
from sweeps.executors.ray_process import LateStartError, Line, answers

LOCAL, AUTO = "local", "auto"
ANSWER_SECONDS = 5.0  # for a named cluster's head to take a connection
LATE = "timed out during startup"  # of Ray's own exception, which has no class of its own, after half a minute
OBJECT_STORE_BYTES = 128 * 2**20  # work items are small; the default reserves a third of the memory
ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in a trial as on the command line
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a run that no GPU was reserved for sees none
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a run that fails before its first evaluation has no score
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "10",  # for a stopped trial to leave its run in order
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own makes an interrupted sweep look like a finished one
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a connection found. `own` where the cluster is the sweep's alone; `free` is what it has to give now."""

    nodes: tuple[Node, ...]
    ids: tuple[str, ...]  # of the nodes, in their order
    free: Mapping[str, float]
    own: bool


@contextmanager
def connected(address: str, line: Line) -> Iterator[Cluster]:
    """Start a cluster or connect to the one at `address`, for as long as the context lasts.

    Raises UserError, within half a minute, where ray is not installed, nothing answers, or the cluster refuses.
    """
    prepare_environment(address)
    own = address == LOCAL
    if not own and address != AUTO and not answers(address, ANSWER_SECONDS):
        raise UserError(
            f"no Ray cluster: nothing answers at {address}",
            where="executor.address",
            hint="`ray start --head` there starts one; executor.address=local has the sweep start its own",
        )
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "needs ray, which is not installed",
            where="executor=ray_tune",
            hint="pip install 'ray[tune]', or executor=inline",
        ) from error
    how: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    if not own:  # its nodes were started without what ours are started with
        how = {"runtime_env": {"env_vars": ENVIRONMENT}}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **how)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise refusal(address, error) from error
    except Exception as error:
        if not own or LATE not in str(error):
            raise
        hint = "are all cores taken? The same command tries again; executor=inline needs no Ray"
        raise LateStartError("Ray's node did not come up in time", where="executor.address", hint=hint) from error
    try:
        line.connected(ray.get_runtime_context().gcs_address)
        alive = [node for node in ray.nodes() if node["Alive"]]
        yield Cluster(
            nodes=tuple(Node(name=node["NodeManagerHostname"], resources=node["Resources"]) for node in alive),
            ids=tuple(node["NodeID"] for node in alive),
            free=ray.available_resources(),
            own=own,
        )
    finally:
        ray.shutdown()


def prepare_environment(address: str) -> None:
    """Set what Ray and Tune read from the environment, where a person has not; to be done before they are imported."""
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    if address != LOCAL and (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray takes the hint itself where it finds the cluster itself


def refusal(address: str, error: BaseException) -> UserError:
    """What Ray's error about a connection means, with what to do."""
    said: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        said.append(" ".join(str(cause).split()))
        cause = cause.__cause__ or cause.__context__
    everything = " ".join(said)
    where = "executor.address"
    if "uthentication" in everything:
        return UserError(
            f"the Ray cluster at {address} asks for its token, and this process has none or another",
            where=where,
            hint="set RAY_AUTH_TOKEN_PATH to a file with what `ray get-auth-token` says on the cluster's head",
        )
    if "Could not find any running Ray instance" in everything:
        return UserError(
            "no Ray cluster runs on this machine",
            where=where,
            hint="`ray start --head` starts one; executor.address=local has the sweep start its own",
        )
    if "node to connect to" in everything or "node info" in everything:
        return UserError(
            f"this machine is no node of the Ray cluster at {address}",
            where=where,
            hint=f"`ray start --address={address}` here makes it one",
        )
    hint = f"`ray status --address={address}` says more; executor.address=local has the sweep start its own"
    return UserError(f"no Ray cluster at {address}: {said[0][:300]}", where=where, hint=hint)
