"""Configuration: schema, composition from YAML, validation across fields, identity."""

from nmt.config.compose import compose, from_dict, load_run_config, to_dict
from nmt.config.identity import decode_id, explain_difference, train_id, training_identity
from nmt.config.schema import RunConfig

__all__ = [
    "RunConfig",
    "compose",
    "decode_id",
    "explain_difference",
    "from_dict",
    "load_run_config",
    "to_dict",
    "train_id",
    "training_identity",
]
