"""The parameter server of Ray's tutorials, whole models put into the object store, beside this one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench.children import Job, Report
from bench.machine import Spread
from bench.parameter_server.exchange import shown
from bench.tables import Part, table
from bench.turns import take_turns

RIVAL, FUSED = "Ray actors", "Ray actors, fused Adam"
LINKS = ("shm", "tcp")


def ray_jobs(sizes: Sequence[int], rounds: int, seconds: float) -> list[Job]:
    """A job for each number of parameters."""
    return [
        Job(f"Ray actors, {shown(size)} parameters", measure_ray, (size, rounds, seconds), units=rounds)
        for size in sizes
    ]


class TutorialServer:
    """An actor with the model and its optimizer: takes gradients by parameter, gives a state dict."""

    def __init__(self, parameters: int, **options: Any):
        import torch

        from bench.parameter_server.workloads import RATE, EmptyModel

        torch.set_num_threads(1)
        self._model = EmptyModel(parameters)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=RATE, **options)

    def apply(self, *gradients: Any) -> dict[str, Any]:
        """Add the workers' gradients up, update, and return the new parameters; without gradients, the first ones."""
        import numpy
        import torch

        if gradients:
            for parameter, *own in zip(self._model.parameters(), *gradients, strict=True):
                parameter.grad = torch.from_numpy(numpy.stack(own).sum(axis=0))
            self._optimizer.step()
        return self._model.state_dict()


class TutorialWorker:
    """An actor that loads a state dict and returns the gradients of its share."""

    def __init__(self, parameters: int, number: int):
        import torch

        from bench.parameter_server.workloads import EmptyModel, EmptySlot

        torch.set_num_threads(1)
        self._model, self._slot = EmptyModel(parameters), EmptySlot(number)

    def gradients(self, state: dict[str, Any]) -> list[Any]:
        """One pass."""
        parameters = list(self._model.parameters())
        self._model.load_state_dict(state)
        self._model.zero_grad()
        self._model.loss(self._slot).backward()
        return [one.new_zeros(one.shape).numpy() if one.grad is None else one.grad.numpy() for one in parameters]


def measure_ray(report: Report, parameters: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds a step of the tutorial's loop and of ours over each kind of link, in turn."""
    import ray
    import torch

    from bench.parameter_server.arm import WORKERS, Arm
    from bench.parameter_server.workloads import empty_spec

    torch.set_num_threads(1)
    with ExitStack() as running:
        running.callback(ray.shutdown)
        ray.init(
            address="local", num_cpus=WORKERS + 2, include_dashboard=False, log_to_driver=False, configure_logging=False
        )
        workers = [ray.remote(TutorialWorker).remote(parameters, number) for number in range(WORKERS)]
        servers = {
            RIVAL: ray.remote(TutorialServer).remote(parameters),
            FUSED: ray.remote(TutorialServer).remote(parameters, fused=True),
        }

        def tutorial(server: Any, steps: int) -> float:
            state = server.apply.remote()
            ray.wait([state])
            begin = time.perf_counter()
            for _ in range(steps):
                state = server.apply.remote(*(worker.gradients.remote(state) for worker in workers))
            ray.wait([state])
            return (time.perf_counter() - begin) / steps

        spec = empty_spec(parameters, WORKERS)
        runs: dict[str, Callable[[int], float]] = {name: partial(tutorial, one) for name, one in servers.items()}
        runs |= {link: running.enter_context(Arm(spec, link=link)).run for link in LINKS}
        steps = {name: max(2, min(50, round(seconds / run(2)))) for name, run in runs.items()}
        found = take_turns(report, runs, {name: {} for name in runs}, steps, rounds)
        return {"parameters": parameters, "workers": WORKERS, "steps_per_round": steps, "rounds": found}


def ray_part(found: Sequence[dict[str, Any]]) -> Part:
    """How many times faster than the tutorial, in the same round."""
    rows, ratios = [], {}
    for one in found:
        for name, rounds in one["rounds"].items():
            times = Spread.of([b["step"] / a["step"] for a, b in zip(rounds, one["rounds"][RIVAL], strict=True)])
            if name in LINKS:
                ratios[f"ray/{shown(one['parameters'])}/{name}/times_faster"] = times.median
            rows.append(
                [
                    shown(one["parameters"]),
                    f"parameter server, {name}" if name in LINKS else name,
                    Spread.of([1e3 * a["step"] for a in rounds]).shown("{:,.1f}".format),
                    times.shown("{:.1f}".format),
                ]
            )
    return Part(
        "The parameter server of the tutorials",
        [
            "Actors of Ray: two workers, one server; gradients (numpy arrays) and state dicts go through the object "
            "store; `torch.optim.Adam` as it comes, and once fused. Steps that compute nothing, as above.",
            table(["parameters", "way", "ms a step", "times faster than Ray actors"], rows),
        ],
        list(found),
        ratios,
    )
