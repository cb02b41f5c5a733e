"""Hydra's launchers of `nmt train -m`; see `sweeps.launchers`."""
