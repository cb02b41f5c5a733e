"""Where a model can be cut into stages, and what a cut carries.

A model is a list of parts in the order in which they run. Each says which named tensors it reads and which it makes; a
cut between two parts carries what was made before it and is read behind it, and nothing else. What follows from a
sentence's length alone (masks, the packing of sentences) is made anew by every part that needs it and never carried.

A tensor that a part reads has to be used as it is: the gradient of a carried tensor begins with what comes back from
behind the cut, to which the part's own uses are added one by one, the last first, which is the order of a graph that is
not cut. A view made first and used twice would add up the uses apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from nmt.models.dropout import Dropout
from nmt.models.scheduled_sampling import ScheduledSampling
from nmt.models.watch import GradientWatch

# What encoders are given: the source's embeddings [time, batch, e], dropped out, in the order in which they are read.
SOURCE = "source"
# What decoders are given, the same of the target [time, batch, e] (to the layers of a Transformer with what a bridge
# puts beside it), and what they make: [time, batch, h], before the softmax layer.
TARGET, MIX = "target", "mix"


class Batch(Protocol):
    """Parallel sentences as the model reads them; see `nmt.data.batching.Batch`. Padded positions hold any valid id."""

    source: Tensor
    source_lengths: Tensor
    target_input: Tensor
    target_output: Tensor
    target_lengths: Tensor


class Slot(Protocol):
    """A micro-batch with its dropout masks; `target_tokens` is the sum of the batch's target lengths."""

    @property
    def batch(self) -> Any:
        """A `Batch`."""

    @property
    def dropout(self) -> Dropout:
        """The slot's masks."""

    @property
    def sampling(self) -> ScheduledSampling | None:
        """Which of the decoder's inputs come from its own output; None: none."""

    @property
    def watch(self) -> GradientWatch | None:
        """Who is told of gradients inside the decoder; None: nobody."""

    @property
    def target_tokens(self) -> int:
        """Target tokens whose losses are summed."""

    @property
    def is_scored(self) -> bool:
        """Whether the last stage makes what `Seq2Seq.score` makes, [2, tokens], under the name of the loss."""


Run = Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]
"""A part's computation: from a `Slot` and the tensors that it reads, by name, to those that it makes."""


@dataclass(frozen=True)
class Part:
    """A piece of a model that is not cut any further.

    name: what its stage is called.
    run: its computation.
    reads, makes: names of tensors; one that is not there (an encoder's values, where it has none) is left out.
    modules: those whose parameters it reads.
    couples: why it is not cut further, where that limits how evenly a model can be shared out; a clause.
    elsewhere: modules inside these whose parameters other parts read instead.
    """

    name: str
    run: Run
    reads: Collection[str]
    makes: Collection[str]
    modules: tuple[nn.Module, ...] = ()
    couples: str = ""
    elsewhere: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class ModelStage:
    """One of the model's stages; see `distributed.strategy.Stage`."""

    name: str
    run: Run
    parameters: tuple[str, ...]
    couples: str = ""

    def parameter_names(self) -> Sequence[str]:
        """The parameters that it reads, by the model's names for them."""
        return self.parameters

    def __call__(self, slot: Any, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute this stage's share for `slot` from what the stage before returned."""
        return self.run(slot, carried)


def stages_of(parts: Sequence[Part], names_in: Callable[..., tuple[str, ...]]) -> list[ModelStage]:
    """A stage for each part, which hands on what later ones read, its own or as it came.

    `names_in` tells the model's names for the parameters of some modules.
    """
    stages: list[ModelStage] = []
    needed: set[str] = {"loss"}
    for part in reversed(parts):
        run, elsewhere = _handing_on(part.run, sorted(needed)), names_in(*part.elsewhere)
        parameters = tuple(name for name in names_in(*part.modules) if name not in elsewhere)
        stages.append(ModelStage(part.name, run, parameters, part.couples))
        needed = (needed - set(part.makes)) | set(part.reads)
    return stages[::-1]


def _handing_on(run: Run, names: Sequence[str]) -> Run:
    def handing_on(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {**carried, **run(slot, carried)}
        return {name: found[name] for name in names if name in found}

    return handing_on
