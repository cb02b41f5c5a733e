"""Executors of sweeps as launchers of Hydra: `nmt train -m hydra/launcher=ray_tune experiment=a,b seed=1,2`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def register() -> None:
    """Make the launchers known to Hydra, in this process.

    Hydra takes plugins from the namespace package `hydra_plugins` alone. Ours has its place in this folder, which holds
    nothing else and goes onto the module search path here: so it is found in a wheel and in an editable install alike
    (where a mapping of packages to folders is not), and other applications of Hydra do not load it.
    """
    from hydra.core.plugins import Plugins

    folder = str(Path(__file__).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()
    module = importlib.import_module("hydra_plugins.nmt_launchers.executor_launcher")
    Plugins.instance().register(module.ExecutorLauncher)
