"""Sequence-to-sequence models for architecture studies: data, models, search, training and evaluation."""

__version__ = "0.1.0"
