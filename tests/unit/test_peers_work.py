"""What the comparison with other toolkits counts, and how it changes installed files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nmt.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_useful_operations_agree_with_the_count_at_any_lengths() -> None:
    from peers.prepare import settings
    from peers.useful import UsefulWork

    from nmt.config import compose
    from nmt.profiling.costs import Shape, costs

    chosen = settings(16, tied=False, max_length=9, seed=1, words=["tokenizer.vocab_size=50"])
    config = compose([*chosen.overrides, "search.beam=1"])
    useful = UsefulWork.of(config)
    counted = costs(config, Shape(1, 6, 9), (50, 50))
    assert useful.of_training([(6, 9)]) == pytest.approx(counted.training_per_token * 9, rel=1e-9)
    assert useful.of_training([(6, 9), (2, 3)]) == pytest.approx(useful.training(6, 9) + useful.training(2, 3))
    assert useful.of_decoding([(6, 9)], beam=1) == pytest.approx(counted.decoding, rel=1e-9)


def test_a_search_needs_one_hypothesis_at_first_and_the_beam_from_then_on() -> None:
    from peers.useful import needed_rows

    assert needed_rows(1, 10) == 1
    assert needed_rows(4, 10) == 31


def test_work_is_read_as_it_was_written(tmp_path: Path) -> None:
    from peers.prepare import settings
    from peers.work import Work, read_work

    chosen = settings(16, tied=True, max_length=9, seed=1, words=["data=toy_copy"])
    odd = "line\u2028separator"  # no end of a line to us, though to str.splitlines
    work = Work(tmp_path, chosen, ["<unk>", "a"], ["a b", odd], ["c", "d e"], ["a"], [[1, 0], [1]])
    work.save()
    assert read_work(tmp_path) == work
    assert work.pairs(1) == [([odd], ["d", "e"]), (["a", "b"], ["c"])]


def test_a_fix_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    from peers.install import Fix, _apply

    (tmp_path / "module.py").write_text("import heavy\nimport heavy_too\n")
    _apply(Fix("module.py", "import heavy_too\n", "", "not needed"), tmp_path)
    assert (tmp_path / "module.py").read_text() == "import heavy\n"
    with pytest.raises(UserError, match="stands there 0 times"):
        _apply(Fix("module.py", "import heavy_too\n", "", "not needed"), tmp_path)


def test_drivers_need_nothing_of_ours() -> None:
    """A peer's environment has no `nmt`."""
    for name in ("work", "protocol", "torch_model", "opennmt", "joeynmt"):
        text = (SCRIPTS / "peers" / f"{name}.py").read_text(encoding="utf-8")
        assert "import nmt" not in text and "from nmt" not in text, name
