"""Imported by the process that others are forked from: it leaves the terminal's process group.

A signal to that group is meant for the coordinator, which writes a checkpoint. If it ended the others, there would be
nothing left to write. Imported anywhere else, this does nothing.
"""

from __future__ import annotations

import os
import sys

if any("multiprocessing.forkserver" in word for word in sys.orig_argv) and os.getpid() != os.getpgrp():
    os.setsid()
