from __future__ import annotations

from pathlib import Path

import pytest

from nmt.config import compose, from_dict, to_dict
from nmt.config.identity import run_id
from nmt.errors import UserError
from nmt.passwords import without_password, without_passwords
from sweeps.summary import _browse


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://ann:secret@host:5432/runs", "postgresql://ann@host:5432/runs"),
        ("postgresql+psycopg://ann:se/cr:et@host/runs", "postgresql+psycopg://ann@host/runs"),
        ("postgresql://ann:secret%40@host/runs?sslmode=require", "postgresql://ann@host/runs?sslmode=require"),
        ("postgresql://host/runs?user=ann&password=secret&x=1", "postgresql://host/runs?user=ann&password=&x=1"),
        ("mysql+pymysql://ann:sec ret@host/runs", "mysql+pymysql://ann@host/runs"),
        ("https://ann:secret@host:8443/mlflow", "https://ann@host:8443/mlflow"),
        ("http://:secret@host", "http://@host"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert without_password(address) == shown
    assert without_password(f"tracking.uri={address}") == f"tracking.uri={shown}"
    assert without_password(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "postgresql://host:5432/runs",
        "postgresql://ann@host:5432/runs",
        "http://127.0.0.1:5000",
        "http://host:5000/a@b",
        "sqlite:////data/a:b@c/mlflow.db",
        "no address: a@b",
    ],
)
def test_what_holds_no_password_stays(text: str) -> None:
    assert without_password(text) == text


def test_no_error_tells_a_password(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="postgresql://ann@host") as caught:
        compose([f"paths.runs={tmp_path}", "tracking.uri=postgresql://ann:secret@host/runs?sslmode=require"])
    assert "secret" not in str(caught.value)


def test_nested_data() -> None:
    data = {"a": ["x=http://u:p@h", 1], "b": {"c": None}}
    assert without_passwords(data) == {"a": ["x=http://u@h", 1], "b": {"c": None}}


def test_a_configuration_is_written_without_the_password_and_stays_the_same_run(tmp_path: Path) -> None:
    words = [f"paths.runs={tmp_path}", "experiment=baseline"]
    config = compose([*words, "tracking.uri='postgresql://ann:secret@host/runs'"])
    assert config.tracking.uri == "postgresql://ann:secret@host/runs"  # whoever opens the store needs it
    written = to_dict(config)
    assert "secret" not in str(written)
    assert from_dict(written).tracking.uri == "postgresql://ann@host/runs"
    assert run_id(from_dict(written)) == run_id(config) == run_id(compose(words))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("", "nmt ui paths.runs=r"),
        ("sqlite:////data/my.db", "nmt ui paths.runs=r uri=sqlite:////data/my.db"),
        ("postgresql://ann:secret@host/runs", "nmt ui paths.runs=r uri=postgresql://ann@host/runs"),
        ("http://ann:secret@host:5000", "http://ann@host:5000"),
    ],
)
def test_a_sweep_says_how_to_look_at_its_store(uri: str, shown: str) -> None:
    assert _browse(uri, " paths.runs=r") == shown
