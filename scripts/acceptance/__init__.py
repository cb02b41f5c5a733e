"""The checks of scripts/gpu_acceptance.py: a file a subject, each with functions that take a `Setting`."""
