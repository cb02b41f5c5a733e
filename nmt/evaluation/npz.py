"""Archives of arrays written one array at a time, so that a long text's dump never lies in memory as a whole."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from nmt.data.streams import refused, replacing


@contextmanager
def npz_writer(name: str, key: str) -> Iterator[Callable[[str, np.ndarray], None]]:
    """A function that adds a named array to the .npz file `name`, which appears when all went well.

    `numpy.load` reads it without pickle; the same arrays give the same bytes. `key` is the option to blame in a
    UserError.
    """
    with replacing(name, key) as temporary:
        with refused(name, key):
            archive = zipfile.ZipFile(temporary, "w")

        def add(entry: str, array: np.ndarray) -> None:
            about = zipfile.ZipInfo(f"{entry}.npy")  # dated 1980, not now
            about.compress_type = zipfile.ZIP_DEFLATED
            with refused(name, key), archive.open(about, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)

        try:
            yield add
        finally:
            with refused(name, key):
                archive.close()
