"""What makes two runs the same run: a hash over the keys that can change a bit of the result.

`train_id` covers every key of role TRAIN that is not at its neutral value, the identity of the training and validation
text, the numerics of the distribution, the code of components from other installed packages, and
`NUMERICS_VERSION`. `decode_id` covers a checkpoint's digest, the search and
the text that is decoded. The hash's input is kept beside each run (`identity.json`), so a difference can be explained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nmt import registry
from nmt.config.distribution_rules import numerics_of
from nmt.config.schema import TRAIN, DataConfig, RunConfig
from nmt.errors import UserError

NUMERICS_VERSION = 4  # bump when the same config and seed give other bits on purpose
CHUNKED_LOSS_VERSION = 2  # the same of `loss.vocab_chunks` above 1 alone


def train_id(config: RunConfig) -> str:
    """Identity of a configuration's training, without its seed: 12 hexadecimal digits."""
    return digest(training_identity(config))


def run_id(config: RunConfig) -> str:
    """`<train_id>/s<seed>`: one replicate of a configuration."""
    return f"{train_id(config)}/s{config.seed}"


def decode_id(checkpoint_digest: str, config: RunConfig) -> str:
    """Identity of one decoding of the test split with one checkpoint: 12 hexadecimal digits."""
    return digest(
        {
            "checkpoint": checkpoint_digest,
            "search": canonical(config.search, {TRAIN}),
            "test": text_identity(config.data, ("test",)),
        }
    )


def training_identity(config: RunConfig) -> dict[str, Any]:
    """The canonical form behind `train_id`: plain JSON data."""
    form = canonical(config, {TRAIN})
    form["data"] = canonical(config.data, {TRAIN}) | text_identity(config.data, ("train", "validation"))
    if outside := outside_components(config):
        form["components"] = outside
    if numerics := numerics_of(config):
        form["distribution"] = numerics
    form["numerics_version"] = NUMERICS_VERSION
    if config.loss.vocab_chunks > 1:
        form["chunked_loss_version"] = CHUNKED_LOSS_VERSION
    return form


def outside_components(config: Any, prefix: str = "") -> dict[str, dict[str, str]]:
    """By config key, the code behind each name that stands for a component of another installed package.

    Empty where everything is built in. Only keys that can change a result (role TRAIN) count.
    """
    found: dict[str, dict[str, str]] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("role", TRAIN) != TRAIN:
            continue
        if dataclasses.is_dataclass(value):
            found |= outside_components(value, f"{prefix}{field.name}.")
        elif "registry" in field.metadata and (about := registry.provenance(field.metadata["registry"], value)):
            found[f"{prefix}{field.name}"] = about
    return found


def text_identity(data: DataConfig, splits: tuple[str, ...]) -> dict[str, Any]:
    """What says which text is meant: the declared recipe or checksums of a named corpus, else the files' content.

    So the runs of a named corpus can be planned where it does not lie. Raises UserError where other files are missing.
    """
    if data.kind == "generated":
        return {"generator": data.generator, "options": dict(data.options), "version": data.version}
    names = [name for split in splits for side in ("source", "target") for name in getattr(getattr(data, split), side)]
    if data.recipe:
        return {"recipe": data.recipe, "files": names, "version": data.version}
    if all(name in data.checksums for name in names):
        sums = {name: data.checksums[name] for name in names}
    else:
        from nmt.data.corpus import content_checksums

        sums = content_checksums(data, names)
    return {"splits": list(splits), "sha256": [sums[name] for name in names], "version": data.version}


def canonical(config: Any, roles: set[str]) -> dict[str, Any]:
    """Keys of the given roles that are not at their neutral value, as plain data in schema order."""
    form: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.metadata.get("role", TRAIN) not in roles:
            continue
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            inner = canonical(value, roles)
            if inner:
                form[field.name] = inner
        elif field.name in ("checksums", "recipe"):
            continue  # part of `text_identity`, by the files that are used
        elif field.metadata["neutral"] is None or value != field.metadata["neutral"]:
            form[field.name] = _file_digest(value, field.name) if field.metadata.get("file") else value
    return form


def _file_digest(name: str, where: str) -> str:
    """sha256 of a file that a key names: what it holds counts, and not where it lies."""
    try:
        with Path(name).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=f"{where}={name}") from error


def digest(form: Mapping[str, Any]) -> str:
    """First 12 hexadecimal digits of the sha256 of canonical JSON."""
    text = json.dumps(form, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def explain_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which two canonical forms differ, each with both values: `"model.units: 256 != 512"`."""
    flat_one, flat_other = flatten(one), flatten(other)
    return [
        f"{name}: {flat_one.get(name, '(neutral)')} != {flat_other.get(name, '(neutral)')}"
        for name in sorted(flat_one.keys() | flat_other.keys())
        if flat_one.get(name) != flat_other.get(name)
    ]


def flatten(form: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in form.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
