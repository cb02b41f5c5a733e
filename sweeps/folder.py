"""`<runs>/.sweeps/`: what sweeps and searches keep beside the runs. No result needs anything in it."""

from __future__ import annotations

import re

FOLDER = ".sweeps"


def file_name(text: str) -> str:
    """A name, of a sweep for instance, as the name of a file."""
    return re.sub(r"[^-.=,_@A-Za-z0-9]", "_", text)
