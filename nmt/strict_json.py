"""JSON that every reader takes: Python alone writes NaN and Infinity into it, which jq and browsers refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def strict_json(data: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """Plain data as JSON, in which figures that are not finite are null.

    `default` makes plain data of anything else, as for `json.dumps`.
    """
    return json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, indent=indent, default=default)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
