"""What a pack says of the place where it was made: nothing. No host, no directory, no password, no address."""

from __future__ import annotations

import dataclasses
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from nmt.config import RunConfig
from nmt.config.schema import ExecutorConfig, PathsConfig, TrackingConfig
from nmt.passwords import without_passwords
from nmt.records import MACHINES
from sweeps.words import is_place


def cleaned(data: Any) -> Any:
    """Plain nested data without keys that name machines, without passwords, and with file names in place of paths."""
    data = without_passwords(data)
    if isinstance(data, dict):
        return {name: cleaned(value) for name, value in data.items() if name not in MACHINES}
    if isinstance(data, list | tuple):
        return [cleaned(value) for value in data]
    return without_directory(data) if isinstance(data, str) else data


def without_directory(text: str) -> str:
    """The file's name of an absolute path or one below a home; any other text as it is."""
    if text.startswith(("/", "~")) and len(text) > 1 and "\n" not in text:
        return PurePosixPath(text).name
    return PureWindowsPath(text).name if PureWindowsPath(text).drive else text


def cleaned_config(config: RunConfig) -> dict[str, Any]:
    """The configuration with nothing in it of where it ran: paths, executor and tracking are the defaults."""
    data = dataclasses.replace(config.data, dir="")
    placeless = dataclasses.replace(
        config, data=data, paths=PathsConfig(), executor=ExecutorConfig(), tracking=TrackingConfig()
    )
    return dict(cleaned(dataclasses.asdict(placeless)))


def cleaned_words(words: tuple[str, ...]) -> list[str]:
    """Overrides without those that only say where things run or lie."""
    kept = [word for word in words if not is_place(word) and not word.startswith("data.dir=")]
    pairs = (word.partition("=") for word in kept)
    return [f"{name}{equals}{cleaned(value)}" for name, equals, value in pairs]
