"""A trained run as `mlflow.pyfunc` loads it: text in, translations out, as `nmt translate` gives them.

An MLflow model of ours holds data only: a small run directory with configuration, tokenizers and the parameters of one
checkpoint. Its `MLmodel` names this module, and MLflow calls `_load_pyfunc` of it; nothing in the model is executed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.config.schema import SearchConfig
from nmt.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

    from nmt.config.schema import RunConfig

CHECKPOINT, DICTIONARY = "checkpoints/best.pt", "dictionary.txt"
NOT_ASKED = ("n_best", "dictionary")  # there is one translation a text, and a model reads no files of its caller
TEXT_ENDS = "\r\n"


class TranslationModel:
    """Translates texts with the search that the model was registered with, or with parts of it changed.

    Parameters
    ----------
    directory: with `config.yaml`, `tokenizers/` and `CHECKPOINT`; of `sweeps.tracking.model_package.write_data`.
    device, threads: like those of `nmt translate`. Threads and deterministic arithmetic are set for the whole process,
        since the same text must have the same translation here and there.

    Raises UserError for a damaged or newer checkpoint, and where a device is asked for and absent.
    """

    def __init__(self, directory: Path, device: str = "auto", threads: int = 0):
        from nmt.config import load_run_config
        from nmt.training.checkpoint import load_model
        from nmt.training.device import prepare_device

        self.config: RunConfig = _with_dictionary(load_run_config(directory / "config.yaml"), directory)
        self._device = prepare_device(dataclasses.replace(self.config, device=device, threads=threads))
        self._loaded = load_model(directory / CHECKPOINT, self._device)

    def predict(self, data: DataFrame, params: Mapping[str, Any] | None = None) -> list[str]:
        """A translation of each text, in order; one of nothing but white space has an empty one.

        Parameters
        ----------
        data: the texts in the first column. MLflow makes it of whatever its own `predict` takes, a list of strings too.
        params: keys of `search.` (conf/search/beam10.yaml) by their short names, such as `beam` or `length_penalty`.

        Raises UserError for a missing text, and for a search that makes no sense.
        """
        from nmt.config.override import SEARCH, override
        from nmt.evaluation.translator import translate_lines

        texts = list(data.iloc[:, 0])
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError("is no text", where=f"text {number}", hint="give an empty one instead")
        words = [f"search.{name}={_word(value)}" for name, value in (params or {}).items() if self._is_new(name, value)]
        search = override(self.config, words, SEARCH).search
        lines = [text.rstrip(TEXT_ENDS) for text in texts]
        translated = translate_lines(self._loaded, lines, search, self._device)
        return [line.translations[0].text for line in translated]

    def _is_new(self, name: str, value: Any) -> bool:
        return bool(getattr(self.config.search, name) != value)  # MLflow hands in all, the defaults too


def settings(search: SearchConfig) -> dict[str, Any]:
    """The keys of a search that a caller of the model may set, with the values that go without saying."""
    names = (field.name for field in dataclasses.fields(search))
    return {name: getattr(search, name) for name in names if name not in NOT_ASKED}


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> TranslationModel:
    """What MLflow calls; `load_model(..., model_config={"device": "cpu", "threads": 1})` says where to translate."""
    return TranslationModel(Path(data_path), **(model_config or {}))


def _with_dictionary(config: RunConfig, directory: Path) -> RunConfig:
    if not config.search.dictionary:
        return config
    search = dataclasses.replace(config.search, dictionary=str(directory / DICTIONARY))
    return dataclasses.replace(config, search=search)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
