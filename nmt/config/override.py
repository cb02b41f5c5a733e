"""A trained run's configuration with another search, test text or place, as `key=value` words of a command line say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nmt.config.compose import CONF, from_dict, groups, known_keys, read_yaml, to_dict
from nmt.config.schema import RunConfig
from nmt.config.validation import validate
from nmt.errors import UserError, did_you_mean

SEARCH = ("search.",)
TEST_TEXT = ("search.", "data.dir", "data.test.", "paths.cache")


def override(
    config: RunConfig,
    words: Sequence[str],
    overridable: Sequence[str] = TEST_TEXT,
    options: Sequence[str] = (),
    members: Sequence[RunConfig] = (),
) -> RunConfig:
    """`config` changed by `words`: `search=<name>` stands for a whole search, single keys change it further.

    `overridable` are the beginnings of the keys that may change; `options` are the verb's own keys, one of which a
    misspelt word may mean. `members` are the others of an ensemble that `config` leads: a search that needs attention
    fits where one of them has it. Raises UserError for an unknown key or option, a value that does not fit, and a key
    that would make it another training.
    """
    data = OmegaConf.create(to_dict(config))
    for word in sorted(words, key=lambda word: not word.startswith("search=")):  # an option first, then single keys
        key, _, value = word.partition("=")
        if key == "search":
            data.search = _search_option(value)  # in place of the run's own, not over it
            continue
        refuse_unknown([word], options)
        if not f"{key}.".startswith(tuple(overridable)):  # a section as a whole is one of its keys
            allowed = ["search", *(f"{name}<key>" if name.endswith(".") else name for name in overridable)]
            raise UserError("belongs to the training, which is done", where=key, allowed=allowed)
        try:
            data.merge_with_dotlist([word])
            from_dict(OmegaConf.to_container(data))  # type: ignore[arg-type]
        except (UserError, OmegaConfBaseException, YAMLError) as error:
            raise UserError(f"'{value}' does not fit", where=key) from error
    changed = from_dict(OmegaConf.to_container(data))  # type: ignore[arg-type]
    try:
        validate(changed)
    except UserError:
        if not any(_fits(changed, member) for member in members):
            raise
    return changed


def _fits(changed: RunConfig, member: RunConfig) -> bool:
    """Whether another member of the ensemble could decode as `changed` says."""
    try:
        validate(replace(member, search=changed.search, data=changed.data))
    except UserError:
        return False
    return True


def refuse_unknown(words: Sequence[str], options: Sequence[str] = ()) -> None:
    """Raise UserError for a word whose key is neither `search` nor in the schema; it may be meant for `options`."""
    for word in words:
        key, keys = word.partition("=")[0], known_keys()
        if key != "search" and key not in keys:
            hint = did_you_mean(key, [*options, *keys, "search"]) or "see --help"
            raise UserError("unknown key", where=key, hint=hint)


def _search_option(name: str) -> dict[str, Any]:
    """`conf/search/<name>.yaml`; every key that it does not hold is at its default, as in composing a run."""
    known = groups()["search"]
    if name not in known:
        raise UserError(f"unknown option '{name}'", where="search", allowed=known, hint=did_you_mean(name, known))
    return read_yaml(CONF / "search" / f"{name}.yaml")
