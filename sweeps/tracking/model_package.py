"""The folder of an MLflow model: what translating with a run's best checkpoint needs, nothing of its origin.

MLmodel            signature (texts in and out, the keys of the search as parameters), and the module that loads it
requirements.txt   our package, torch, MLflow and whoever's components take part, by name and version
data/model/        config.yaml, tokenizers/, checkpoints/best.pt: a run directory without optimizer and history
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nmt
from nmt.config import RunConfig, from_dict, to_dict
from nmt.config.compose import to_yaml
from nmt.config.identity import outside_components
from nmt.config.schema import ExecutorConfig, PathsConfig, SearchConfig, TrackingConfig
from nmt.errors import UserError
from sweeps.tracking.translation_model import CHECKPOINT, DICTIONARY, settings

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

LOADER = "sweeps.tracking.translation_model"
DISTRIBUTION = "seq2seq-studies"  # what our packages are installed as
DATA = "model"
KEPT = ("format_version", "run_id", "identity", "parameters")  # of a checkpoint; the rest is the optimizer's
TYPES = {bool: "boolean", int: "long", float: "double", str: "string"}  # as MLflow calls them


def write_package(checkpoint: Path, digest: str, label: str, search: SearchConfig, folder: Path, model_id: str) -> None:
    """Write the model of a checkpoint that lies in its run's directory; `folder` must not be there yet.

    Parameters
    ----------
    digest: of the checkpoint's parameters, as the run's result has it.
    label: what the sweep calls the configuration.
    search: how to decode where the caller does not say.
    model_id: MLflow's, of the logged model that the folder will be the artifacts of.

    Raises UserError for a checkpoint that cannot be read or is another one than was scored.
    """
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # it would copy the project of the working directory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no example of an input
        import mlflow.pyfunc
        from mlflow.models import Model

        data = folder.with_name(DATA)
        config = write_data(checkpoint, digest, label, search, data)
        mlflow.pyfunc.save_model(
            path=str(folder),
            loader_module=LOADER,
            data_path=str(data),
            mlflow_model=Model(model_uuid=model_id, model_id=model_id),
            signature=signature(config.search),
            pip_requirements=requirements(config),
            model_config={"device": "auto", "threads": 0},
        )


def write_data(checkpoint: Path, digest: str, label: str, search: SearchConfig, directory: Path) -> RunConfig:
    """Write what `sweeps.tracking.translation_model` reads; returns the configuration in it.

    Raises UserError for a checkpoint that cannot be read or has another digest.
    """
    import torch

    from nmt.training.checkpoint import digest_tensors, read_checkpoint

    content = read_checkpoint(checkpoint)
    if digest_tensors(content["parameters"]) != digest:
        raise UserError("holds other parameters than those that were scored", where=str(checkpoint))
    target = directory / CHECKPOINT
    target.parent.mkdir(parents=True)
    shutil.copytree(checkpoint.parents[1] / "tokenizers", directory / "tokenizers")
    search = dataclasses.replace(search, n_best=1)
    if search.dictionary:
        shutil.copyfile(Path(search.dictionary).expanduser(), directory / DICTIONARY)
        search = dataclasses.replace(search, dictionary=DICTIONARY)
    config = without_places(from_dict(content["config"]), label, search)
    buffer = io.BytesIO()
    kept = {name: content[name] for name in KEPT if name in content} | {"parameters": dict(content["parameters"])}
    torch.save(kept | {"config": to_dict(config), "state": {"step": content["state"]["step"]}}, buffer)
    target.write_bytes(buffer.getvalue())
    (directory / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return config


def without_places(config: RunConfig, label: str, search: SearchConfig) -> RunConfig:
    """The configuration with this label and search, and without the paths and addresses of the machine it ran on.

    Of files that were named by their place the names are left.
    """
    placeless = dataclasses.replace(
        config,
        label=label,
        search=search,
        data=dataclasses.replace(config.data, dir=""),
        paths=PathsConfig(),
        tracking=TrackingConfig(),
        executor=ExecutorConfig(),
    )
    named: RunConfig = from_dict(_names_of_files(to_dict(placeless)))
    return named


def _names_of_files(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _names_of_files(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_names_of_files(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def signature(search: SearchConfig) -> ModelSignature:
    """Texts to texts, with the search's keys as parameters whose defaults are its values."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    keys = [ParamSpec(name, TYPES[type(value)], value) for name, value in settings(search).items()]
    # Without a name: a list of strings and a column of any name are both taken.
    return ModelSignature(Schema([ColSpec("string")]), Schema([ColSpec("string")]), ParamSchema(keys))


def requirements(config: RunConfig) -> list[str]:
    """Packages by name and version, as pip writes them; where they come from is for whoever installs them to say."""
    outside = [about["package"] for about in outside_components(config).values() if "package" in about]
    names = dict.fromkeys(["torch", "mlflow", *outside])
    return [f"{DISTRIBUTION}=={nmt.__version__}", *(f"{name}=={_version(name)}" for name in names)]


def _version(name: str) -> Any:
    return importlib.metadata.version(name).partition("+")[0]  # a local part, such as +cpu, is no index's
