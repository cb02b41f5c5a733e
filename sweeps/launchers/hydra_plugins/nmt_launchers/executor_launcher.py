"""`hydra/launcher=<executor>`: the jobs of `nmt train -m` in the hands of an executor of sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from nmt import registry
from nmt.errors import UserError
from nmt.multirun import TrainJobs


class ExecutorLauncher(Launcher):
    """Hands all jobs to the executor called `executor`, whose settings are the jobs' own `executor` section."""

    def __init__(self, executor: str):
        self.executor = executor
        self.task: TaskFunction | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember whose jobs they are."""
        self.task = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Bring the jobs to their end; what a job returns is its `RunOutcome`.

        Raises UserError for an application other than ours, and what the executor raises.
        """
        from sweeps.handed_out import hand_out

        if not isinstance(self.task, TrainJobs):
            raise UserError("hands out the runs of `nmt train -m` alone", where=f"hydra/launcher={self.executor}")
        jobs = self.task.jobs[initial_job_idx : initial_job_idx + len(job_overrides)]
        outcomes = hand_out(jobs, self.executor)
        return [
            JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=outcome)
            for words, outcome in zip(job_overrides, outcomes, strict=True)
        ]


# Plain data, no dataclass: a child process whose search path holds this folder has Hydra execute the module without
# entering it among the modules, where dataclasses look for it.
for name in registry.names("executor"):
    node = {"_target_": f"{ExecutorLauncher.__module__}.{ExecutorLauncher.__name__}", "executor": name}
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="nmt")
