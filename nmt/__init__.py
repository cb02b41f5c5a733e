"""Sequence-to-sequence models for architecture studies: data, models, search, training and evaluation."""

import os
from pathlib import Path

__version__ = "0.1.0"


def _on_intel() -> bool:
    try:
        with Path("/proc/cpuinfo").open("rb") as file:
            return b"GenuineIntel" in file.read(512)
    except OSError:
        return False  # not Linux


# On Intel processors MKL cuts a matrix product by the number of rows and threads unless it is told not to, and then a
# run's bits depend on both. It reads the variable at its first product, so it must be set before anything computes.
# Measured with torch 2.13: fp32 products are as fast with it. On AMD processors MKL takes one path for all, and this
# setting might take a slower one.
if _on_intel():
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
