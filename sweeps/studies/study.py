"""A study as it is written down: `conf/study/<name>.yaml`, read strictly.

title: what the study is about
source: what made the claims
experiments:
  - name: idle
    title: Idle time
    question: who waits, and for what?
    sweep: ringtmp_idle        # conf/sweep/<name>.yaml, trained for real; optional
    curves: true               # draw its loss against iterations, tokens and seconds; optional
    emulated:                  # steps on machines that are not there (`distributed.emulation`); optional
      overrides: [...]         # the model whose stages are timed, laid over experiment=baseline
      rows:
        - {label: PS bsp, scheme: parameter_server, servers: 1}   # further keys are the scheme's
      nodes: [2, 4, 8, 14]
      links_mbit: [100, 1000]  # rate of every link, each way
      slowest: [1.0, 0.5]      # speed of the last node; optional
      tokens: [3840]           # target tokens of a step; optional
      micro_batches: 16        # of a ring of stages; optional
      scaling: [strong]        # strong: the step stays as it is; weak: it grows with the nodes; optional
      figures: [idle_mean]     # that tables and pictures show; optional
    largest: {...}             # `sweeps.studies.largest`; optional
    network: {...}             # `sweeps.studies.network`; optional

Its claims are in `conf/claims/<study>/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.config.compose import CONF, read_yaml
from nmt.errors import UserError, did_you_mean
from sweeps.spec import known_keys_only, read_flag, read_override_list, read_text, refuse_shared_labels

STUDY_KEYS = ("title", "source", "experiments")
EXPERIMENT_KEYS = ("name", "title", "question", "sweep", "curves", "emulated", "largest", "network")
EMULATED_KEYS = (
    "overrides", "rows", "nodes", "links_mbit", "slowest", "tokens", "micro_batches", "scaling", "figures",
)  # fmt: skip
EMULATED_FIGURES = ("idle_mean", "idle_max", "step_seconds", "tokens_per_second", "busiest_bytes")
SCALINGS = ("strong", "weak")


@dataclass(frozen=True, kw_only=True)
class EmulatedRow:
    """A scheme of `distributed.emulation.SCHEMES` with its options, under a label."""

    label: str
    scheme: str
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EmulatedSpec:
    """Machines that are not there: every row on every combination of what follows."""

    overrides: tuple[str, ...]
    rows: tuple[EmulatedRow, ...]
    nodes: tuple[int, ...]
    links_mbit: tuple[float, ...]
    slowest: tuple[float, ...] = (1.0,)
    tokens: tuple[float, ...] = (3840.0,)
    micro_batches: int = 16
    scaling: tuple[str, ...] = ("strong",)
    figures: tuple[str, ...] = ("idle_mean",)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment and its parts; `largest` and `network` are read by the modules of these names."""

    name: str
    title: str
    question: str = ""
    sweep: str = ""
    curves: bool = False
    emulated: EmulatedSpec | None = None
    largest: Mapping[str, Any] | None = None
    network: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """Experiments in their order."""

    name: str
    title: str
    source: str
    experiments: tuple[Experiment, ...]

    def of(self, names: Sequence[str]) -> tuple[Experiment, ...]:
        """The experiments with these names, or all. Raises UserError for one that there is not."""
        known = [one.name for one in self.experiments]
        for name in names:
            if name not in known:
                raise UserError(
                    f"unknown experiment '{name}'",
                    where="experiments",
                    allowed=known,
                    hint=did_you_mean(name, known),
                )
        return tuple(one for one in self.experiments if not names or one.name in names)


def available_studies(conf: Path | None = None) -> list[str]:
    """Names of the checked-in studies, sorted."""
    return sorted(path.stem for path in ((conf or CONF) / "study").glob("*.yaml"))


def load_study(name: str, conf: Path | None = None) -> Study:
    """The study called `name`. Raises UserError for an unknown one, and for whatever in its file cannot be meant."""
    known = available_studies(conf)
    if name not in known:
        raise UserError(f"unknown study '{name}'", where="study", allowed=known, hint=did_you_mean(name, known))
    path = (conf or CONF) / "study" / f"{name}.yaml"
    data, where = read_yaml(path), str(path)
    known_keys_only(data, STUDY_KEYS, where)
    listed = data.get("experiments")
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed) or not listed:
        raise UserError("must be a list of at least one mapping", where=f"{where}: experiments")
    experiments = tuple(_experiment(one, f"{where}: experiments[{number}]") for number, one in enumerate(listed))
    refuse_shared_labels([one.name for one in experiments], f"{where}: experiments")
    return Study(
        name=name,
        title=read_text(data, "title", where),
        source=read_text(data, "source", where),
        experiments=experiments,
    )


def _experiment(data: Mapping[str, Any], where: str) -> Experiment:
    known_keys_only(data, EXPERIMENT_KEYS, where)
    emulated = read_mapping(data, "emulated", where)
    return Experiment(
        name=read_text(data, "name", where),
        title=read_text(data, "title", where),
        question=read_text(data, "question", where, required=False),
        sweep=read_text(data, "sweep", where, required=False),
        curves=read_flag(data, "curves", where),
        emulated=None if emulated is None else _emulated(emulated, f"{where}.emulated"),
        largest=read_mapping(data, "largest", where),
        network=read_mapping(data, "network", where),
    )


def _emulated(data: Mapping[str, Any], where: str) -> EmulatedSpec:
    known_keys_only(data, EMULATED_KEYS, where)
    rows = data.get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(one, dict) for one in rows):
        raise UserError("must be a list of at least one mapping", where=f"{where}.rows")
    found = tuple(
        EmulatedRow(
            label=read_text(one, "label", f"{where}.rows[{number}]"),
            scheme=read_text(one, "scheme", f"{where}.rows[{number}]"),
            options={name: value for name, value in one.items() if name not in ("label", "scheme")},
        )
        for number, one in enumerate(rows)
    )
    refuse_shared_labels([one.label for one in found], f"{where}.rows")
    defaults = EmulatedSpec(overrides=(), rows=found, nodes=(), links_mbit=())
    micro_batches = data.get("micro_batches", defaults.micro_batches)
    if not isinstance(micro_batches, int) or isinstance(micro_batches, bool) or micro_batches < 1:
        raise UserError(f"'{micro_batches}' is no number above 0", where=f"{where}.micro_batches")
    return EmulatedSpec(
        overrides=read_override_list(data, where),
        rows=found,
        nodes=tuple(int(one) for one in read_numbers(data, "nodes", where)),
        links_mbit=read_numbers(data, "links_mbit", where),
        slowest=read_numbers(data, "slowest", where, defaults.slowest),
        tokens=read_numbers(data, "tokens", where, defaults.tokens),
        micro_batches=micro_batches,
        scaling=read_choices(data, "scaling", where, SCALINGS, defaults.scaling),
        figures=read_choices(data, "figures", where, EMULATED_FIGURES, defaults.figures),
    )


def read_mapping(data: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any] | None:
    """The mapping under `name`, None where it is absent. Raises UserError for anything else."""
    value = data.get(name)
    if value is not None and not isinstance(value, dict):
        raise UserError("must be a mapping", where=f"{where}.{name}")
    return value


def read_numbers(data: Mapping[str, Any], name: str, where: str, default: tuple[float, ...] = ()) -> tuple[float, ...]:
    """The numbers above 0 under `name`; `default` where it is absent, which nothing is not."""
    value = data.get(name, list(default))
    numbers = isinstance(value, list) and all(isinstance(one, int | float) and one is not True for one in value)
    if not numbers or not value or min(value) <= 0:
        raise UserError("must be a list of numbers above 0", where=f"{where}.{name}")
    return tuple(float(one) for one in value)


def read_choices(
    data: Mapping[str, Any], name: str, where: str, known: Sequence[str], default: tuple[str, ...]
) -> tuple[str, ...]:
    """The words under `name`, each of `known`; `default` where it is absent."""
    value = data.get(name, list(default))
    if not isinstance(value, list) or not value or not all(one in known for one in value):
        raise UserError(f"'{value}' is no list of choices", where=f"{where}.{name}", allowed=list(known))
    return tuple(value)
