"""Components of installed packages: found by name, told apart by source, and blamed where they are broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed.optimizers import build_optimizer
from nmt import registry
from nmt.config import compose, train_id
from nmt.config.identity import training_identity
from nmt.errors import UserError
from nmt.training.workload import optimizer_spec

LION = '''
class Lion:
    """Signs of a moving mean."""

    slots = ("mean",)

    def __init__(self, *, beta1=0.9, strength=1.0):
        self.beta1, self.strength = beta1, strength

    def apply(self, values, gradient, state, update, rate):
        state["mean"].mul_(self.beta1).add_(gradient, alpha=1 - self.beta1)
        values.sub_(state["mean"].sign(), alpha=rate * self.strength)
'''


@pytest.fixture(autouse=True)
def fresh_tables() -> Iterator[None]:
    for table in (registry._outside, registry._table):
        table.cache_clear()
    yield
    for table in (registry._outside, registry._table):
        table.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, site: Path, package: str, points: str, **files: str) -> None:
    """What pip leaves behind: modules, and a folder that says whose they are."""
    about = site / f"{package}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[nmt.components]\n{points}\n")
    for name, text in files.items():
        (site / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)  # of an earlier test
    monkeypatch.syspath_prepend(str(site))


def test_an_update_rule_from_outside_takes_the_keys_that_it_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "lion", "optimizer.lion = lion_rule:Lion", lion_rule=LION)
    assert registry.names("optimizer") == ["adam", "lion", "sgd"]
    config = compose(["optimizer.name=lion", "optimizer.beta1=0.5", "optimizer.options={strength: 2.0}"])
    spec = optimizer_spec(config)
    assert spec.rule == "lion_rule:Lion"
    assert spec.options == {"beta1": 0.5, "strength": 2.0}
    rule = build_optimizer(spec)
    assert (rule.slots, rule.strength) == (("mean",), 2.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("option", ["strenght", "beta1"])
def test_an_option_that_the_rule_does_not_take_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str
) -> None:
    """A key of the section itself is set there, not among the options."""
    install(monkeypatch, tmp_path, "lion", "optimizer.lion = lion_rule:Lion", lion_rule=LION)
    with pytest.raises(UserError, match=f"unknown option '{option}'"):
        optimizer_spec(compose(["optimizer.name=lion", f"optimizer.options={{{option}: 2.0}}"]))
    with pytest.raises(UserError, match="unknown option"):
        optimizer_spec(compose([f"optimizer.options={{{option}: 2.0}}"]))


def test_the_rules_of_ours_get_what_they_always_got() -> None:
    adam = optimizer_spec(compose([]))
    assert adam.options == {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "epsilon_form": "tf"}
    assert optimizer_spec(compose(["optimizer=sgd"])).options == {"momentum": 0.0}


def test_code_from_outside_counts_in_the_identity_and_ours_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "lion", "optimizer.lion = lion_rule:Lion", lion_rule=LION)
    plain, lion = compose([]), compose(["optimizer.name=lion"])
    assert "components" not in training_identity(plain)
    (key,) = training_identity(lion)["components"]
    assert key == "optimizer.name"
    before = train_id(lion)
    (tmp_path / "lion_rule.py").write_text(LION + "\n# a word more\n")
    assert train_id(lion) != before
    (tmp_path / "lion_rule.py").write_text(LION)
    assert train_id(lion) == before


def test_every_source_of_a_package_counts_and_none_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "big", "attention.big = big_package.deep:Big")
    (tmp_path / "big_package").mkdir()
    (tmp_path / "big_package" / "__init__.py").write_text("raise RuntimeError('it was run')\n")
    (tmp_path / "big_package" / "deep.py").write_text("x = 1\n")
    before = registry.provenance("attention", "big")
    assert before is not None
    assert (before["package"], before["version"]) == ("big", "1.0")
    (tmp_path / "big_package" / "helper.py").write_text("")
    after = registry.provenance("attention", "big")
    assert after is not None
    assert after["sha256"] != before["sha256"]
    assert registry.provenance("attention", "additive") is None
    assert registry.provenance("attention", "unknown") is None


def test_ours_are_never_replaced_and_two_of_a_name_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path / "a", "a", "attention.additive = a:A\nattention.twice = a:A", a="")
    install(monkeypatch, tmp_path / "b", "b", "attention.twice = b:B", b="")
    with pytest.raises(UserError, match=r"attention 'twice' is offered twice: .*[ab]:[AB] and [ab]:[AB]"):
        registry.names("attention")
    (tmp_path / "b" / "b-1.0.dist-info" / "entry_points.txt").write_text("")
    assert registry.location("attention", "additive", "x") == "nmt.models.attention:AdditiveAttention"


@pytest.mark.parametrize("point", ["absent_module:Lion", "lion_rule:Tiger"])
def test_what_cannot_be_imported_is_blamed_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, point: str
) -> None:
    install(monkeypatch, tmp_path, "lion", f"optimizer.lion = {point}", lion_rule=LION)
    with pytest.raises(UserError, match="cannot be imported") as error:
        registry.lookup("optimizer", "lion", "optimizer.name")
    assert error.value.where == "optimizer.name"
    assert "\n" not in str(error.value)
