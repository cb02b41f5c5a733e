"""What mirrors the runs of a sweep elsewhere while it is executed."""

from __future__ import annotations

from collections.abc import Sequence

from nmt import registry
from nmt.training.tracker import Tracker
from sweeps.plan import SweepPlan


class RunTrackers:
    """Trackers that know single runs, as one."""

    def __init__(self, trackers: Sequence[Tracker]):
        self.trackers = trackers

    def poll(self) -> None:
        """Poll each."""
        for tracker in self.trackers:
            tracker.poll()

    def close(self) -> None:
        """Close each."""
        for tracker in self.trackers:
            tracker.close()


def open_tracker(plan: SweepPlan) -> Tracker:
    """What mirrors the sweep's runs elsewhere, as `tracking.name` says."""
    config = plan.config
    if config.tracking.name != "mlflow":
        open_for_run = registry.lookup("tracker", config.tracking.name, "tracking.name")
        return RunTrackers([open_for_run(run.config, plan.store) for run in plan.runs])
    from sweeps.tracking.tracker import ConfigurationGroup, open_for_sweep

    groups = [
        ConfigurationGroup.of(row.label, row.train_id, [run.run_id for run in row.runs], row.config)
        for row in plan.rows
    ]
    return open_for_sweep(plan.name, config.scale.name, groups, plan.store, config.tracking.uri)
