from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmt.arguments import option, parse, usage
from nmt.cli import VERBS, main
from nmt.completion import OVERRIDES, options_of
from nmt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sample:
    run: str = option("", "run id or run directory")
    beam: int | None = option(None, "hypotheses a sentence", minimum=1)
    length_penalty: float = option(0.6, "alpha of the length penalty")
    quiet: bool = option(False, "no progress")
    rows: list[str] = option(list, "rows to run")
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    store: str = option("", "directory of runs", key="paths.runs")
    grid: tuple[str, ...] = option((), "factors")


def read(*words: str) -> Sample:
    return parse(Sample, words, verb="nmt sample", summary="A sample.")


def test_defaults_and_every_type() -> None:
    assert read() == Sample()
    options = read("run=a=b", "beam=3", "length_penalty=1e-1", "quiet=True", "rows=x,y", "device=cpu", "paths.runs=r")
    assert options == Sample(
        run="a=b", beam=3, length_penalty=0.1, quiet=True, rows=["x", "y"], device="cpu", store="r"
    )
    assert read("rows=[x, y]").rows == ["x", "y"]
    assert read("rows=").rows == read("rows=[]").rows == []
    assert read("run=").run == ""


def test_the_later_word_counts() -> None:
    assert read("beam=3", "beam=5").beam == 5


def test_a_key_that_may_stand_several_times_keeps_all_its_values() -> None:
    assert read().grid == ()
    assert read("grid=a=1,2", "beam=3", "grid=b=[3,4]").grid == ("a=1,2", "b=[3,4]")
    assert "default" not in usage(Sample, verb="nmt sample", summary="").partition("grid=TEXT")[2].partition("\n")[0]


def test_list_defaults_are_not_shared() -> None:
    read().rows.append("x")
    assert read().rows == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "baem=3",
            "baem: unknown key; allowed: beam, device, grid, length_penalty, paths.runs, quiet, rows, run; "
            "did you mean beam?",
        ),
        ("store=x", "store: unknown key"),
        ("beam", "beam: is not of the form key=value; see `nmt sample --help`"),
        ("stray", "stray: is not of the form key=value; write run=stray; see `nmt sample --help`"),
        ("--beam=4", "--beam=4: is not of the form key=value; write beam=4, without dashes"),
        ("--length-penalty", "write length_penalty=..., without dashes"),
        ("beam=0", "beam: 0 is out of range; allowed: >= 1"),
        ("beam=2.5", "beam: '2.5' does not fit; allowed: a value of type INT"),
        ("length_penalty=nan", "length_penalty: 'nan' does not fit"),
        ("quiet=maybe", "quiet: 'maybe' does not fit; allowed: true, false"),
        ("device=gpu", "device: 'gpu' is not a choice; allowed: auto, cpu, cuda"),
        ("=3", "unknown key"),
    ],
)
def test_mistakes_say_what_is_allowed(word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(word)
    assert message in str(caught.value)


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_prints_every_option_and_stops(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("nonsense", word)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: nmt sample [key=value ...]\n\nA sample.\n")
    for line in (
        "run=TEXT",
        "beam=INT",
        "quiet=true|false",
        "no progress (default: false)",
        "device=auto|cpu|cuda",
        "(default: 0.6)",
        "paths.runs=TEXT",
    ):
        assert line in shown


def test_usage_keeps_the_epilog_and_names_overrides() -> None:
    text = usage(Sample, verb="nmt sample", summary="A sample.", epilog="  nmt sample run=x\n", rest=True)
    assert "[config overrides ...]" in text.splitlines()[0]
    assert text.endswith("\n\n  nmt sample run=x\n")


def test_rest_returns_unknown_words_untouched_and_in_order() -> None:
    words = ["model.units=3", "beam=2", "search=greedy", "a.b=[x,y]"]
    options, rest = parse(Sample, words, verb="nmt sample", summary="", rest=True)
    assert options == Sample(beam=2)
    assert rest == ["model.units=3", "search=greedy", "a.b=[x,y]"]
    with pytest.raises(UserError, match="key=value"):
        parse(Sample, ["stray"], verb="nmt sample", summary="", rest=True)


def test_among_overrides_a_misspelt_option_is_told_at_once() -> None:
    def rest(*words: str) -> list[str]:
        return parse(Sample, words, verb="nmt sample", summary="", rest=True)[1]

    for word, meant in {"runs=x": "run or paths.runs or rows", "baem=3": "beam", "qiet=true": "quiet"}.items():
        with pytest.raises(UserError, match=rf"unknown key; did you mean {meant}\?"):
            rest(word)
    like_options = ["threads=1", "data.options.rows=3", "search=nosuch", "search.beam=2"]
    far_from_all = ["experimnt=baseline"]  # left to whoever checks overrides
    assert rest(*like_options, *far_from_all) == [*like_options, *far_from_all]


def test_every_verb_names_the_directory_of_runs_by_its_other_name(capsys: pytest.CaptureFixture[str]) -> None:
    needed = ("sweep=quickstart", "table=5", "delta=1", "to=x.zip")  # before some verbs look at overrides
    for verb in (verb for verb in VERBS if verb != "completion"):
        keys = options_of(verb)
        if verb in ("status", "sync", "ui"):
            assert "runs" in keys  # and `paths.runs`
        elif "paths.runs" in keys or OVERRIDES.get(verb) == ("",):
            words = [word for word in needed if word.partition("=")[0] in keys]
            assert main([verb, *words, "runs=elsewhere"]) == 2
            assert re.search(r"error: runs: unknown key; .*did you mean .*\bpaths\.runs", capsys.readouterr().err), verb


@given(st.text(), st.integers(min_value=1), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_what_is_written_is_read(run: str, beam: int, penalty: float, quiet: bool) -> None:
    options = read(f"run={run}", f"beam={beam}", f"length_penalty={penalty!r}", f"quiet={quiet}")
    assert options == Sample(run=run, beam=beam, length_penalty=penalty, quiet=quiet)


def test_an_unsupported_field_type_is_our_mistake() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd:
        table: dict[str, str] = option(dict, "a table")

    with pytest.raises(TypeError):
        parse(Odd, [], verb="nmt odd", summary="")


def test_importing_it_is_light() -> None:
    code = "import sys, nmt.arguments; print(sorted({'torch', 'mlflow', 'ray', 'hydra', 'rich'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
