"""The rows of a model's state in the course of a search: whose they are, and where their states come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nmt.models.hypothesis_rows import HypothesisRows
from nmt.search.interface import RowModel
from nmt.search.next_tokens import Predicted
from nmt.search.rows import STABLE_ROWS, take


@dataclass(frozen=True)
class AtHand:
    """The hypotheses of a grid [batch, k] whose states are at hand, a row each.

    packed: the hypotheses that go on, of which `real` there are, and copies of the first up to `STABLE_ROWS`; else all
        places in order.
    going: [batch, k] those that go on, if the host may look.
    """

    rows: HypothesisRows
    packed: bool
    real: int
    going: Tensor | None

    @classmethod
    def of(cls, going: Tensor, packed: bool, looks: bool) -> AtHand:
        """Of the hypotheses `going` [batch, k]; `looks`: whether the host may read tensors."""
        batch, k = going.shape
        if not packed:
            return cls(HypothesisRows(batch, k), packed, batch * k, going if looks else None)
        places = _places(going)
        whole = len(places) == batch * k
        return cls(HypothesisRows(batch, k, None if whole else _filled(places)), packed, len(places), going)

    @property
    def count(self) -> int:
        """Number of rows."""
        places = self.rows.places
        return self.rows.batch * self.rows.k if places is None else len(places)

    def predicted(self, model: RowModel, outputs: Any) -> Predicted:
        """The next-token distributions of the hypotheses that go on, from what a step gave for all rows."""
        batch, k, places = self.rows
        if self.packed:
            real = None if places is None else places[: self.real]
            return Predicted(model, outputs, self.count, HypothesisRows(batch, k, real))
        if self.going is None:  # on a device that would have to wait, and has memory for all logits
            return Predicted(model, outputs, self.count, self.rows, self.count)
        own = _places(self.going)
        if len(own) == self.count:
            return Predicted(model, outputs, self.count, self.rows)
        filled = _filled(own)
        return Predicted(model, take(outputs, filled), len(filled), HypothesisRows(batch, k, own))

    def after(self, parents: Tensor, kept: Tensor | None, going: Tensor) -> tuple[AtHand, Tensor | None]:
        """The rows of the next step, and for each the row of this step that its state comes from; None: the same.

        parents: [batch, k] slot of this step that each hypothesis goes on from. kept: sentences that stay; None: all.
        going: [kept, k] hypotheses that go on.
        """
        new = AtHand.of(going, self.packed, self.going is not None)
        k = self.rows.k
        if k == 1 and kept is None and new.real == self.real:
            return new, None
        places = new.rows.places
        if places is None:
            places = torch.arange(new.count, device=parents.device)
        if kept is not None:
            places = kept[places // k] * k + places % k
        before = (places // k) * k + parents.flatten()[places]
        if self.rows.places is None:
            return new, before
        row_of = before.new_zeros(self.rows.batch * k)
        row_of[self.rows.places] = torch.arange(self.count, device=parents.device)
        return new, row_of[before]


def _places(going: Tensor) -> Tensor:
    """Flat places where `going` is true, on a CPU."""
    return torch.from_numpy(np.flatnonzero(going.numpy()))


def _filled(places: Tensor) -> Tensor:
    missing = STABLE_ROWS - len(places)
    return torch.cat((places, places[:1].expand(missing))) if missing > 0 else places
