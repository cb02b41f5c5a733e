"""Plain data as JSON that every reader takes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nmt.strict_json import strict_json


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


def test_only_what_is_not_finite_is_left_out() -> None:
    data = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": "NaN", "d": None, "e": True, "f": 10**400}}
    read = json.loads(strict_json(data), parse_constant=refuse)
    assert read == {"a": [1.5, None, [None, None]], "b": data["b"]}
    assert strict_json({"ä": Path("x")}, default=str) == '{"ä": "x"}'
    with pytest.raises(TypeError):
        strict_json({"a": Path("x")})
