"""A search in MLflow: an experiment, and in it a run a trial, with its proposal and whether the search stopped it.

The files of the trials (`sweeps.tuning.trials`) say what was proposed, the run directories what became of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.config import from_dict
from nmt.errors import UserError
from nmt.runs import LocalRunStore
from sweeps.folder import FOLDER
from sweeps.tracking.mirrored_experiment import NAME, known_runs, open_experiment, show_columns
from sweeps.tracking.mirrored_replicate import Card, ReplicateMirror
from sweeps.tracking.names import FACTOR, KIND, STATE, search_experiment
from sweeps.tracking.parameters import number_of
from sweeps.tuning.trials import Trial, read_trial

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SEARCH, NUMBER, STOPPED_AT = "nmt.search", "nmt.trial", "nmt.stopped_at"
SUFFIX = ".trials"


class SearchMirror:
    """Everything of one search. Raises what MLflow raises; damaged trials and runs are left out and noted.

    Parameters
    ----------
    directory: where the search keeps its trials.
    artifacts: where a new experiment's artifacts go; None leaves it to the server.
    """

    def __init__(
        self, client: MlflowClient, store: LocalRunStore, directory: Path, experiment: str, artifacts: Path | None
    ):
        self.client, self.store, self.directory = client, store, directory
        self.damaged: dict[str, str] = {}
        self.points = 0
        self.experiment = open_experiment(client, experiment, artifacts)
        self.trials: dict[int, ReplicateMirror] = {}
        self._known = known_runs(client, self.experiment.experiment_id)
        self._read: dict[int, tuple[int, int]] = {}

    @property
    def run_ids(self) -> set[str]:
        """The runs that are trials of the search."""
        return {mirror.run_id for mirror in self.trials.values()}

    def update(self) -> None:
        """Write what is new."""
        for number, stamp in _stamps(self.directory).items():
            if self._read.get(number) != stamp:
                self._read_anew(number)
                self._read[number] = stamp
        for mirror in self.trials.values():
            try:
                self.points += mirror.update()
                damage = mirror.damage
            except UserError as error:
                damage = str(error)
            self.damaged.pop(mirror.run_id, None)
            if damage:
                self.damaged[mirror.run_id] = damage

    def _read_anew(self, number: int) -> None:
        try:
            trial = read_trial(self.directory, number)
            if trial.refused:
                return  # there is no run; the table of trials has its reason
            if number not in self.trials:
                self.trials[number] = self._mirror(trial)
        except (UserError, KeyError, TypeError, ValueError) as error:
            self.damaged[f"trial {number} of {self.directory.stem}"] = str(error)
            return
        mirror = self.trials[number]
        mirror.stopped = bool(trial.stopped_at)
        if trial.stopped_at:
            mirror.retag({STOPPED_AT: str(trial.stopped_at)})

    def _mirror(self, trial: Trial) -> ReplicateMirror:
        config = from_dict(trial.config)
        numbers = {name: number_of(value) for name, value in trial.assignments}
        card = Card(
            key=f"{self.directory.stem}#{trial.number}",
            name=f"trial {trial.number} · {trial.label}",
            tags={KIND: "trial", SEARCH: self.directory.stem, NUMBER: str(trial.number)},
            params=dict(trial.assignments),
            factors={f"{FACTOR}{name}": value for name, value in numbers.items() if value is not None},
        )
        self._show(trial, config.validation.metric)
        experiment_id = self.experiment.experiment_id
        return ReplicateMirror(self.client, self.store, experiment_id, card, trial.run_id, config, self._known)

    def _show(self, trial: Trial, metric: str) -> None:
        if not self.trials:
            varied = {f"params.`{name}`": 200 for name, _ in trial.assignments}
            show_columns(
                self.client,
                self.experiment,
                {NAME: 300, f"tags.`{STATE}`": 110, f"metrics.`best_val_{metric}`": 150} | varied,
            )


def searches(store: LocalRunStore) -> list[tuple[Path, str]]:
    """The searches that have trials in a directory of runs: where they are kept, and the experiment's name."""
    found = []
    for directory in sorted(store.root.glob(f"{FOLDER}/*{SUFFIX}")):
        for number in _stamps(directory):
            try:
                scale: Any = read_trial(directory, number).config["scale"]["name"]
            except (UserError, KeyError, TypeError, ValueError):
                continue  # a refused or damaged one; the next may tell
            found.append((directory, search_experiment(directory.stem.rpartition("-")[0], str(scale))))
            break
    return found


def _stamps(directory: Path) -> dict[int, tuple[int, int]]:
    """Time and size of each trial's file, by the trial's number."""
    found = {}
    for path in sorted(directory.glob("[0-9]*.json")):
        try:
            about = path.stat()
        except FileNotFoundError:  # set aside meanwhile
            continue
        found[int(path.stem)] = (about.st_mtime_ns, about.st_size)
    return found
