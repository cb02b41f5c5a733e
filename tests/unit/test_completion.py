"""What is offered on TAB: words that the command line would accept, and all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nmt import registry
from nmt.cli import VERBS, main
from nmt.completion import OVERRIDES, answer, options_of, split
from nmt.config.compose import NOT_CONFIG, group_keys, groups, known_keys, refuse_unknown_keys
from nmt.errors import UserError


def offered(line: str) -> list[str]:
    """What a shell shows that calls the whole of the last word a word."""
    return answer(line, line.rpartition(" ")[2])


def test_verbs() -> None:
    assert offered("nmt ") == [*VERBS, "--help", "--version"]
    assert offered("nmt tr") == ["train", "translate"]
    assert offered("nmt nosuch x") == []
    assert offered("nmt completion ") == ["bash", "zsh", "fish"]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "completion"])
def test_every_verb_offers_its_options_and_config_keys_where_it_takes_them(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    usage = capsys.readouterr().out
    for key in options_of(verb):
        assert f"{key}=" in offered(f"nmt {verb} {key}")
        assert f"  {key}=" in usage
    assert ("config overrides" in usage) == (verb in OVERRIDES)
    assert bool(offered(f"nmt {verb} model.enc")) == (OVERRIDES.get(verb) == ("",))


def test_keys_go_down_to_the_next_dot_and_reach_every_leaf_and_group() -> None:
    reached, begun = [], ["nmt train "]
    while begun:
        for word in offered(begun.pop()):
            if word.endswith("."):
                begun.append(f"nmt train {word}")
            elif word.endswith("="):
                reached.append(word[:-1])
    configured = {*known_keys()} - group_keys() | {*groups()} - {*NOT_CONFIG}
    assert sorted(reached) == sorted(configured | {"dry_run"})
    assert offered("nmt train model.decoder.l") == ["model.decoder.layers="]
    assert offered("nmt train model.enc") == ["model.encoder."]
    for word in reached:
        if word != "dry_run":
            refuse_unknown_keys([f"{word}=null"])


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("nmt train experiment=t2_", ["t2_gru", "t2_lstm", "t2_vanilla_dec"]),
        ("nmt train model/attention=", groups()["model/attention"]),
        ("nmt train model.attention.name=", registry.names("attention")),
        ("nmt train search.stop=", ["all", "bound", "first_n", "patience"]),
        ("nmt train deterministic=", ["true", "false"]),
        ("nmt train dry_run=t", ["true"]),
        ("nmt train training.max_steps=", []),
        ("nmt train nosuch=", []),
        ("nmt translate device=", ["auto", "cpu", "cuda"]),
        ("nmt translate search=gr", ["greedy"]),
        ("nmt translate batch.unit=", []),
        ("nmt evaluate search.stop=b", ["bound"]),
        ("nmt evaluate grid=table6", ["table6_beam"]),
        ("nmt sweep sweep=quick", ["quickstart"]),
        ("nmt sweep search_space=rate", ["rate_and_dropout"]),
        ("nmt sweep sampler=", ["random", "tpe"]),
        ("nmt reproduce study=", ["ringtmp"]),
    ],
)
def test_values(line: str, values: list[str]) -> None:
    key = line.rpartition(" ")[2].partition("=")[0]
    assert offered(line) == [f"{key}={value}" for value in values]


def test_several_values_follow_commas_only_where_they_may_stand() -> None:
    assert offered("nmt train -m experiment=t2_gru,t2_") == [
        "experiment=t2_gru,t2_lstm",
        "experiment=t2_gru,t2_vanilla_dec",
    ]
    assert offered("nmt train experiment=t2_gru,t2_") == []


def test_a_grid_is_completed_inside_its_quotes() -> None:
    def inside(text: str) -> list[str]:
        return answer(f"nmt sweep grid='{text}", text)

    assert inside("model.enc") == [
        "model.encoder.cell.", "model.encoder.layers=", "model.encoder.name=", "model.encoder.options=",
        "model.encoder.residual.", "model.encoder.reverse_source=", "model.encoder.units=",
    ]  # fmt: skip
    assert inside("search.stop=all,bo") == ["search.stop=all,bound"]
    assert inside("seed=1;model/bridge=zero,pro") == ["seed=1;model/bridge=zero,projection"]
    space = "optimizer.learning_rate=log:1e-4..1e-2;model.attention.scaling="
    assert answer(f"nmt sweep search_space='{space}le", f"{space}le") == [f"{space}learned"]


def test_run_ids_come_from_the_directory_that_the_line_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for store, run_id in (("a", "0123456789ab/s1"), ("a", "0123456789ab/s10"), ("b", "fedcba987654/s2")):
        (tmp_path / store / run_id).mkdir(parents=True)
        (tmp_path / store / run_id / "config.yaml").touch()
    monkeypatch.setenv("NMT_RUNS", str(tmp_path / "a"))
    monkeypatch.chdir(tmp_path)
    assert offered("nmt average run=") == ["run=0123456789ab/s1", "run=0123456789ab/s10"]
    assert offered(f"nmt average paths.runs={tmp_path / 'b'} run=f") == ["run=fedcba987654/s2"]
    assert offered("nmt average run=b") == ["run=b/"]  # a path, where no run begins so
    assert offered("nmt evaluate run=0123456789ab/s1,0123456789ab/s1") == ["run=0123456789ab/s1,0123456789ab/s10"]


def test_files_are_quoted_for_the_shell_unless_they_stand_in_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a folder" / "text$.en").touch()
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)
    assert offered("nmt translate input=") == ["input=a\\ folder/"]
    assert offered("nmt translate input=.") == ["input=.hidden"]
    assert answer("nmt translate input=a\\ folder/t", "a\\ folder/t") == ["a\\ folder/text\\$.en"]
    assert answer("nmt translate input='a folder/t", "a folder/t") == ["a folder/text$.en"]
    assert answer(f"nmt train data.dir={tmp_path}/a", f"{tmp_path}/a") == [f"{tmp_path}/a\\ folder/"]
    assert offered("nmt sweep sweep=nosuch/") == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ([], "", "")),
        ("nmt  train ", (["nmt", "train"], "", "")),
        ("nmt a\\ b 'c d' e\"f g", (["nmt", "a b", "c d"], "ef g", '"')),
        ("nmt '' x='\\", (["nmt", ""], "x=\\", "'")),
        ("nmt \\", (["nmt"], "", "")),
    ],
)
def test_words_of_a_line(line: str, expected: tuple[list[str], str, str]) -> None:
    assert split(line) == expected


def test_what_the_shell_calls_a_word_is_what_it_gets_anew() -> None:
    assert answer("nmt train experiment=t2_l", "t2_l") == ["t2_lstm"]
    assert answer("nmt train experiment=t2_l", "experiment=t2_l") == ["experiment=t2_lstm"]
    assert answer("nmt train search.stop=", "") == ["all", "bound", "first_n", "patience"]


def test_neither_hydra_nor_torch_is_loaded() -> None:
    code = """
import sys
from nmt.cli import main
for line in ("nmt train experiment=", "nmt sweep model.", "nmt evaluate run="):
    main(["completion", "query", line, ""])
print([name for name in ("hydra", "omegaconf", "torch", "rich", "numpy") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "t2_lstm" in done.stdout.splitlines()


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"], ["query"]])
def test_another_shell_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="bash, zsh, fish"):
        from nmt.completion import main as completion

        completion(words)


def test_the_sides_of_a_comparison_are_the_rows_of_its_sweep() -> None:
    assert offered("nmt compare sweep=quickstart a=") == ["a=Add-512", "a=None-State"]
    assert offered("nmt compare sweep=quickstart a=Add-512 b=N") == ["b=None-State"]
    assert offered("nmt compare metric=bleu,chr") == ["metric=bleu,chrf"]
    assert offered("nmt power metric=te") == ["metric=ter"]
