"""What a machine can do at best: matrix products and copies, which training and decoding are held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

SIZES = (512, 1024, 2048)  # rows and columns of the square products among which the best rate is looked for
COPIED_BYTES = 1 << 28  # far beyond any cache that one core has for itself
_LEAST_SECONDS = 2e-3  # a timing shorter than this says more about the clock than about the product


class Product(NamedTuple):
    """A matrix product [rows, inner] x [inner, columns], done `batch` times side by side."""

    rows: int
    inner: int
    columns: int
    batch: int = 1

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.batch * self.rows * self.inner * self.columns


def product_rate(product: Product, dtype: torch.dtype, device: str = "cpu", timings: int = 3) -> float:
    """Operations a second of `product`, in the fastest of `timings` timings.

    fp32 products are true ones: `torch.set_float32_matmul_precision` is "highest" (torch's default).
    """
    shape = (product.batch,) if product.batch > 1 else ()
    one = torch.randn(*shape, product.rows, product.inner, device=device).to(dtype)
    other = torch.randn(*shape, product.inner, product.columns, device=device).to(dtype)
    out = one @ other
    return product.operations / fastest(lambda: torch.matmul(one, other, out=out), device, timings)


def square_rates(
    dtype: torch.dtype, device: str = "cpu", sizes: Sequence[int] = SIZES, timings: int = 3
) -> dict[int, float]:
    """`product_rate` of square matrices, by their size; the largest of these rates is the machine's best."""
    return {size: product_rate(Product(size, size, size), dtype, device, timings) for size in sizes}


def bandwidth(device: str = "cpu", timings: int = 3) -> float:
    """Bytes a second, read and written ones together, of copying an array that fits no cache."""
    source = torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.ones_like(source)  # written once, so that its pages are there
    return 2 * COPIED_BYTES / fastest(lambda: target.copy_(source), device, timings)


def fastest(run: Callable[[], object], device: str = "cpu", timings: int = 3) -> float:
    """Seconds of one call of `run`, in the fastest of `timings` timings of as many calls as a clock needs."""

    def repeated(calls: int) -> float:
        return timed(lambda: [run() for _ in range(calls)], device)

    run()
    calls = 1
    while (seconds := repeated(calls)) < _LEAST_SECONDS:
        calls *= 2
    return min([seconds, *(repeated(calls) for _ in range(timings - 1))]) / calls


def timed(run: Callable[[], object], device: str = "cpu") -> float:
    """Seconds that `run` takes, until the device has done it all."""
    if device != "cpu":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin
