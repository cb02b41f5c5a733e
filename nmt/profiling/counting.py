"""Counting what a piece of code does, whatever the machine and its load: products, memory, waits for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nmt.profiling.floors import Product

_aten = torch.ops.aten

# Where the two factors of a product stand among its arguments.
_FACTORS = {_aten.mm: 0, _aten.bmm: 0, _aten.addmm: 1, _aten.baddbmm: 1, _aten.addmm_: 1, _aten.baddbmm_: 1}
# The results of these are read by the host, which waits for them on a GPU. Those of the second kind leave no operation
# behind on a CPU, where the host can simply look.
_READ_BY_HOST = (_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.equal, _aten._unique2)
_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_)
_READ_IN_PLACE = ("tolist", "cpu", "numpy", "__array__")


class _Watch(TorchDispatchMode):
    """Sees every operation of torch in its context, those of forward and of backward passes alike."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Without gradients composite operations such as `linear` arrive whole.
        with self, torch._C.DisableTorchFunction():  # else a mode of functions would see its own parts, without end
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        self.before(func, args, kwargs)
        result = func(*args, **kwargs)
        self.after(result)
        return result

    def before(self, func: Any, args: Any, kwargs: Any) -> None:
        """An operation begins."""

    def after(self, result: Any) -> None:
        """An operation is done."""


class ProductCount(_Watch):
    """How often each matrix product is made: `products`, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def before(self, func: Any, args: Any, kwargs: Any) -> None:
        """Count a product."""
        place = _FACTORS.get(func.overloadpacket)
        if place is not None:
            one, other = args[place : place + 2]
            batch = one.shape[0] if one.dim() == 3 else 1
            self.products[Product(one.shape[-2], one.shape[-1], other.shape[-1], batch)] += 1

    @property
    def count(self) -> int:
        """Products in all."""
        return self.products.total()

    @property
    def operations(self) -> int:
        """Their multiplications and additions."""
        return sum(times * product.operations for product, times in self.products.items())


class Allocations(_Watch):
    """The memory of the tensors that are made in its context, each storage once.

    largest: bytes of the largest one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def alive(self) -> int:
        """Bytes of those that are still in use: by a variable, an autograd graph, or what a function keeps for it."""
        return sum(size for reference, size in self._storages.values() if not reference.expired())

    def before(self, func: Any, args: Any, kwargs: Any) -> None:
        """What an operation reads or changes was there before it, so it is made elsewhere where it is not known yet."""
        for storage in self._unknown((args, kwargs)):
            self._storages[storage._cdata] = (StorageWeakRef(storage), 0)

    def after(self, result: Any) -> None:
        """What is new has been made here."""
        for storage in self._unknown(result):
            size = storage.nbytes()
            self._storages[storage._cdata] = (StorageWeakRef(storage), size)
            self.largest = max(self.largest, size)

    def _unknown(self, values: Any) -> Iterator[torch.UntypedStorage]:
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                known = self._storages.get(storage._cdata)
                if known is None or known[0].expired():  # freed, and its address used again
                    yield storage


class HostReads(_Watch):
    """How often the host reads a result, and on a GPU would have to wait for it: `counts`, by the operation's name.

    Counted as well on a CPU, so that a test needs no GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._methods = _Methods(self.counts)

    def __enter__(self) -> Self:
        self._methods.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._methods.__exit__(*error)

    def before(self, func: Any, args: Any, kwargs: Any) -> None:
        """Count an operation whose result has a size or a value that the host must know."""
        packet = func.overloadpacket
        masked = packet in _INDEXING and any(_is_mask(index) for index in args[1])
        if packet in _READ_BY_HOST or masked:
            self.counts[packet.__name__] += 1

    @property
    def count(self) -> int:
        """Reads in all."""
        return self.counts.total()


class _Methods(TorchFunctionMode):
    def __init__(self, counts: Counter[str]):
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _READ_IN_PLACE:
            self._counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
