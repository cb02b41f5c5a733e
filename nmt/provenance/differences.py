"""In what two runs differ beside their bits: configuration by role, seed, data, code, environment."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from nmt.config.identity import flatten
from nmt.config.schema import DECODE, PLACEMENT, TRAIN
from nmt.environment import same_sources
from nmt.provenance.evidence import Evidence

ABSENT = "–"
WIDTH = 44  # characters of a value on a screen
_DIGEST = re.compile(r"[0-9a-f]{40,64}")  # commits and sums, of which twelve digits are enough to see
NAMES = ("label", "replicates", "faults", "paths", "executor", "tracking", "scale")  # of no consequence for any bit
# What of the environment is known to change bits: instruction set, libraries that compute, the device.
ARITHMETIC = ("cpu.capability", "cpu.mkl_cbwr", "device.type", "device.name", "device.cuda", "device.cudnn")
LIBRARIES = ("torch", "numpy", "sentencepiece", "sacrebleu")
INCIDENTAL = ("host", "fingerprint", "format_version")

Pair = tuple[Any, Any]
Differences = Mapping[str, Pair]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDifferences:
    """Keys in which two runs differ, each with the value of `a` and of `b`.

    training, decoding, placement: of the configuration, by the part that a key plays in a run's identity; names of
    places and labels are left out. `same_sources` says that two commits differ in none of our sources, as far as this
    checkout can tell.
    """

    training: Differences
    decoding: Differences
    placement: Differences
    seed: Pair | None
    data: Differences
    code: Differences
    environment: Differences
    same_sources: bool

    @property
    def arithmetic(self) -> Differences:
        """The part of `environment` that can change bits."""
        names = (*ARITHMETIC, *(f"packages.{name}" for name in LIBRARIES))
        return {name: pair for name, pair in self.environment.items() if name in names}

    @property
    def other_code(self) -> bool:
        """Whether other sources made one of them than the other."""
        return bool(self.code) and not self.same_sources


def differences(a: Evidence, b: Evidence) -> RunDifferences:
    """Compare what two runs say of themselves."""
    roles = _by_role(a, b)
    versions = ("numerics_version", "chunked_loss_version")
    numerics = _pairs(*({name: one.identity.get(name) for name in versions} for one in (a, b)))
    known = [(one.environment.get("code") or {}) for one in (a, b)]
    code = _pairs(*known) | numerics
    environments = [
        {name: value for name, value in one.environment.items() if name not in ("code", "data", *INCIDENTAL)}
        for one in (a, b)
    ]
    training = roles[TRAIN] | _beside_keys(a, b)
    return RunDifferences(
        training=training,
        decoding=roles[DECODE],
        placement={name: pair for name, pair in roles[PLACEMENT].items() if name not in training},
        seed=None if a.config.seed == b.config.seed else (a.config.seed, b.config.seed),
        data=_known(_pairs(*(_data(one) for one in (a, b)))),
        code=code,
        environment=_pairs(*environments),
        same_sources=not numerics and (not code or _same_sources(*known)),
    )


def _by_role(a: Evidence, b: Evidence) -> dict[str, dict[str, Pair]]:
    """Differing configuration keys by role; a section's role goes for all inside it that is no mere placement."""
    found: dict[str, dict[str, Pair]] = {TRAIN: {}, DECODE: {}, PLACEMENT: {}}

    def walk(one: Any, other: Any, prefix: str, above: str) -> None:
        for field in dataclasses.fields(one):
            name, role = f"{prefix}{field.name}", field.metadata.get("role", TRAIN)
            role = role if above == TRAIN or role == PLACEMENT else above
            values = getattr(one, field.name), getattr(other, field.name)
            if name == "seed" or name in NAMES:
                continue
            if dataclasses.is_dataclass(values[0]):
                walk(*values, f"{name}.", role)
            elif values[0] != values[1]:
                found[role][name] = values

    walk(a.config, b.config, "", TRAIN)
    return found


def _beside_keys(a: Evidence, b: Evidence) -> dict[str, Pair]:
    """What both identities hold beside keys that count as they stand.

    Texts by their declared or measured checksums, components of other packages, and what counts of the distribution.
    """
    parts = [
        flatten(
            {
                "data": {
                    name: value
                    for name, value in (one.identity.get("data") or {}).items()
                    if name in ("sha256", "recipe")
                },
                "components": one.identity.get("components") or {},
                "distribution": one.identity.get("distribution") or {},
            }
        )
        for one in (a, b)
    ]
    return _pairs(*parts) if a.identity and b.identity else {}


def _data(one: Evidence) -> dict[str, Any]:
    environment = one.environment
    fingerprint = environment.get("fingerprint") or one.result.get("fingerprint")
    return {"fingerprint": fingerprint, **flatten(environment.get("data") or {})}


def _known(pairs: Differences) -> dict[str, Pair]:
    """Those that both runs say something of: an older one says less."""
    return {name: pair for name, pair in pairs.items() if ABSENT not in pair and None not in pair}


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    flat_a, flat_b = flatten(a), flatten(b)
    names = [*flat_a, *(name for name in flat_b if name not in flat_a)]
    pairs = {name: (flat_a.get(name, ABSENT), flat_b.get(name, ABSENT)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _same_sources(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether only commits differ, and no source of ours; False where this is no checkout that knows both."""
    if a.get("patch_sha256") != b.get("patch_sha256") or not a.get("commit") or not b.get("commit"):
        return False
    return same_sources(str(a["commit"]), str(b["commit"]))


def shown(value: Any) -> str:
    """A value for a screen: digests and long texts shortened."""
    text = str(value)
    if _DIGEST.fullmatch(text):
        return text[:12]
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
