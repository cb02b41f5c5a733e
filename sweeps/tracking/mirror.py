"""One experiment of MLflow kept equal to run directories: a run a configuration, below it one a replicate.

An experiment is a sweep at a scale. Its top-level runs are configurations, with mean, sample standard deviation and
maximum over their replicates; those are the child runs, with curves. (A third level, the sweep itself, would hide all
charts: MLflow 3.17 draws top-level runs only.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nmt.evaluation.catalogue import best_form
from nmt.runs import RunStore
from sweeps.tracking.mirrored_configuration import ConfigurationGroup, ConfigurationMirror
from sweeps.tracking.mirrored_experiment import NAME, known_runs, open_experiment, show_columns
from sweeps.tracking.names import FACTOR

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LONGEST_NOTE = 5000  # characters of an experiment's tag
MOST_FACTORS = 4  # columns of a table for the numbers in which its rows differ


class ExperimentMirror:
    """Everything of one experiment. Raises what MLflow raises; damaged run directories are left out and noted.

    Parameters
    ----------
    artifacts: where a new experiment's artifacts go; None leaves it to the server.
    """

    def __init__(
        self,
        client: MlflowClient,
        store: RunStore,
        name: str,
        groups: Sequence[ConfigurationGroup],
        artifacts: Path | None,
    ):
        self.client, self.name = client, name
        self.damaged: dict[str, str] = {}
        self.points = 0
        self.experiment = open_experiment(client, name, artifacts)
        known = known_runs(client, self.experiment.experiment_id)
        self.configurations = [
            ConfigurationMirror(client, store, self.experiment.experiment_id, group, known) for group in groups
        ]
        self._choose_columns()

    def update(self) -> None:
        """Write what is new."""
        for configuration in self.configurations:
            self.points += configuration.update(self.damaged)

    def attach(self, path: Path, label: str | None = None) -> None:
        """Store a report's file with the configuration called `label`, or with each (Markdown: as description too)."""
        if label is None and path.suffix == ".md":
            text = path.read_text(encoding="utf-8")[:LONGEST_NOTE]
            self.client.set_experiment_tag(self.experiment.experiment_id, "mlflow.note.content", text)
        shown_in = [one for one in self.configurations if label in (None, one.group.label)]
        if path.suffix == ".json":
            shown_in = shown_in[:1]  # it holds every row's configuration: copies would grow with their square
        for configuration in shown_in:
            configuration.run.put([path], "report")
            configuration.run.flush()

    def _choose_columns(self) -> None:
        if not self.configurations:
            return
        metric = self.configurations[0].metric
        widths = {NAME: 300, f"tags.`{metric}`": 190}  # the name's own width is too narrow for a configuration's label
        widths |= {f"metrics.`{metric}_{form}`": 110 for form in ("mean", "sd", best_form(metric))}
        widths |= {"metrics.`n`": 60, "metrics.`parameters`": 120}
        factors = list(self.configurations[0].group.factors)[:MOST_FACTORS]
        show_columns(self.client, self.experiment, widths | {f"metrics.`{FACTOR}{name}`": 220 for name in factors})


__all__ = ["ConfigurationGroup", "ExperimentMirror"]
