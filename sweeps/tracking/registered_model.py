"""The best run of a sweep in MLflow's model registry, under the name of the sweep's experiment.

`mlflow.pyfunc.load_model("models:/quickstart@local@best").predict([...])` translates. A version is one checkpoint with
one search, so registering again changes nothing; when another run becomes the best, it gets a version and the alias
moves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nmt.config import RunConfig
from nmt.config.identity import canonical
from nmt.config.schema import TRAIN, SearchConfig
from nmt.errors import UserError
from nmt.evaluate import describe_search
from nmt.evaluation.catalogue import METRICS
from nmt.runs import RunStore
from sweeps.aggregate import best_replicate, preference
from sweeps.results import Replicate, read_replicate
from sweeps.tracking.mirrored_configuration import ConfigurationGroup
from sweeps.tracking.model_package import write_package
from sweeps.tracking.names import CONFIGURATION, RUN_ID

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.entities.model_registry import RegisteredModel as Registered
    from mlflow.tracking import MlflowClient

ALIAS = "best"
CHECKPOINT_TAG, SEARCH_TAG, LABEL_TAG = "nmt.checkpoint_sha256", "nmt.search", "nmt.label"
LOGGED_NAME = "translator"
VERSIONS_TAG = "mlflow.modelVersions"  # MLflow's pages lead from a run to its version by it

log = logging.getLogger("nmt.tracking")


@dataclass(frozen=True)
class RegisteredModel:
    """A version of a registered model, and whether it was not there before."""

    name: str
    version: str
    new: bool

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes; the alias, so it means the best one tomorrow too."""
        return f"models:/{self.name}@{ALIAS}"


@dataclass(frozen=True)
class BestRun:
    """The best replicate of a sweep, as the row shows it that it is best in.

    `config` is the row's; a run may stand in rows that decode in different ways, and one of them made the score.
    `digest` is that of the parameters in `checkpoint`, a file in the run's directory.
    """

    group: ConfigurationGroup
    config: RunConfig
    replicate: Replicate
    metric: str
    digest: str
    checkpoint: Path

    @property
    def search(self) -> SearchConfig:
        """The row's search, with one translation a sentence."""
        return dataclasses.replace(self.config.search, n_best=1)

    @property
    def tags(self) -> dict[str, str]:
        """What identifies a version, and what tells people about it."""
        return {
            CHECKPOINT_TAG: self.digest,
            SEARCH_TAG: json.dumps(canonical(self.search, {TRAIN}), sort_keys=True),
            RUN_ID: self.replicate.run_id,
            LABEL_TAG: self.group.label,
            self.metric: f"{self.replicate.metrics[self.metric]:.2f}",
        }

    @property
    def description(self) -> str:
        """The version in two sentences."""
        return (
            f"{self.group.label}, run {self.replicate.run_id}, step {self.replicate.best_step}: "
            f"{METRICS[self.metric].title} {self.replicate.metrics[self.metric]:.2f} on the test split with "
            f"{describe_search(self.search)}. Chosen by its score on the validation split."
        )


def find_best(store: RunStore, groups: Sequence[ConfigurationGroup]) -> BestRun | None:
    """The replicate that `nmt sweep` names for translating: chosen by validation; None without one.

    Runs whose records cannot be read take no part.
    """
    found: list[tuple[ConfigurationGroup, RunConfig, Replicate]] = []
    metric = ""
    for group in groups:
        config = group.run_config
        metric = metric or config.validation.metric
        best = best_replicate(list(_readable(store, config, group.run_ids)), metric)
        if best is not None:
            found.append((group, config, best))
    if not found:
        return None
    group, config, replicate = max(found, key=lambda one: preference(metric, one[2]))
    best_step = (store.read_json(replicate.run_id, "result.json") or {})["best"]
    checkpoint = store.directory(replicate.run_id) / best_step["checkpoint"]
    return BestRun(group, config, replicate, metric, best_step["checkpoint_digest"], checkpoint)


def register_best(
    client: MlflowClient, store: RunStore, experiment: str, groups: Sequence[ConfigurationGroup]
) -> RegisteredModel | None:
    """Give the best run's checkpoint a version, unless it has one, and point the alias at it.

    None where no run is scored yet, and where the best one's checkpoint is not kept, as in an archive. The experiment
    must be there. Raises UserError for a damaged checkpoint, and what MLflow raises.
    """
    best = find_best(store, groups)
    if best is None:
        return None
    name = model_name(experiment)
    known = _registered(client, name)
    version = None if known is None else _version_of(client, name, best)
    new = version is None
    if version is None:
        if not best.checkpoint.is_file():
            log.warning("no model of %s: the checkpoint of run %s is not kept", experiment, best.replicate.run_id)
            return None
        version = _add_version(client, name, experiment, best, first=known is None)
    if known is None or str(known.aliases.get(ALIAS)) != str(version.version):
        client.set_registered_model_alias(name, ALIAS, version.version)
    return RegisteredModel(name, str(version.version), new)


def model_name(experiment: str) -> str:
    """An experiment's name without what MLflow's registry, or a filter in its search, does not take."""
    return re.sub(r"[/:'\"`]", "-", experiment)


def _readable(store: RunStore, config: RunConfig, run_ids: Sequence[str]) -> Iterator[Replicate]:
    for run_id in run_ids:
        with contextlib.suppress(UserError):  # the mirror, and the sweep's table, tell of it
            seed = int(run_id.rpartition("/s")[2])
            yield read_replicate(store, dataclasses.replace(config, seed=seed), run_id)


def _registered(client: MlflowClient, name: str) -> Registered | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _version_of(client: MlflowClient, name: str, best: BestRun) -> ModelVersion | None:
    """The version that holds this checkpoint with this search, its tags brought up to date."""
    tags = best.tags
    for version in client.search_model_versions(f"name='{name}'", order_by=["version_number ASC"]):
        if all(version.tags.get(tag) == tags[tag] for tag in (CHECKPOINT_TAG, SEARCH_TAG)):
            for tag, value in tags.items():
                if version.tags.get(tag) != value:
                    client.set_model_version_tag(name, version.version, tag, value)
            return version
    return None


def _add_version(client: MlflowClient, name: str, experiment: str, best: BestRun, first: bool) -> ModelVersion:
    """A version with a logged model behind it, which MLflow's pages show beside the replicate's run."""
    from mlflow.entities import LoggedModelOutput

    run = _mirrored(client, experiment, best)
    logged = client.create_logged_model(run.info.experiment_id, LOGGED_NAME, run.info.run_id, best.tags)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "package"
            write_package(best.checkpoint, best.digest, best.group.label, best.search, folder, logged.model_id)
            client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, best.replicate.best_step or 0)])
        if first:
            client.create_registered_model(name, description=_about(experiment, name))
        # Named by its place: `models:/` would be looked up in the store of the process, which need not be the client's.
        version = client.create_model_version(
            name,
            logged.artifact_location,
            run.info.run_id,
            tags=best.tags,
            description=best.description,
            await_creation_for=0,
            model_id=logged.model_id,
        )
        versions = json.dumps([{"name": name, "version": version.version}])
        client.set_logged_model_tags(logged.model_id, {VERSIONS_TAG: versions})
    except BaseException:
        with contextlib.suppress(Exception):
            client.delete_logged_model(logged.model_id)
        raise
    return version


def _mirrored(client: MlflowClient, experiment: str, best: BestRun) -> Run:
    """MLflow's run of the replicate. Raises UserError where it is not mirrored, as a damaged one is not."""
    found = client.get_experiment_by_name(experiment)
    where = f"tags.`{RUN_ID}` = '{best.replicate.run_id}' and tags.`{CONFIGURATION}` = '{best.group.key}'"
    runs = client.search_runs([found.experiment_id], where, max_results=1) if found else []
    if not runs:
        raise UserError("is not mirrored in MLflow", where=f"run {best.replicate.run_id}", hint="nmt sync says why")
    return runs[0]


def _about(experiment: str, name: str) -> str:
    return (
        f"The best run of {experiment} so far is the version with the alias `{ALIAS}`:\n\n"
        f'    mlflow.pyfunc.load_model("models:/{name}@{ALIAS}").predict(["a sentence"])\n'
    )
