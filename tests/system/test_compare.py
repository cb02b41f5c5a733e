"""`nmt compare` and `nmt power` as a person types them, on the archived runs of docs/results."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from commands import Command
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
ATTENTION, NONE = "da1d780ff1d7", "fe9b2b6d8607"  # rows Add-512 and None-State of the quickstart


def scores(train_id: str, *seeds: int) -> list[float]:
    found = []
    for seed in seeds:
        (path,) = (RESULTS / train_id / f"s{seed}" / "decodes").glob("*.json")
        found.append(json.loads(path.read_text())["metrics"]["test/decode/bleu"])
    return found


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NMT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SACREBLEU_SEED", "none")


def test_two_rows_of_a_sweep(nmt: Command) -> None:
    code, out, err = nmt("compare", "sweep=quickstart", "a=Add-512", "b=None-State", f"results={RESULTS}")
    assert (code, err) == (0, "")
    a, b = scores(ATTENTION, 1, 2), scores(NONE, 1, 2)
    p = stats.ttest_ind(a, b, equal_var=False).pvalue
    assert f"a  Add-512: 2 replicates ({ATTENTION}/s1, {ATTENTION}/s2)" in out
    assert f"a − b = +{sum(a) / 2 - sum(b) / 2:.2f}" in out
    assert f"Welch's t test              p = {p:.3f}   simulated size 0.0" in out
    assert re.search(r"exact permutation test +p = 0\.333 .* the smallest it can be is 0\.333", out)
    assert out.index("These configurations: would it hold if both were trained again?") < out.index("These systems: ")
    assert re.search(rf"paired bootstrap +p = 0\.001 +of {ATTENTION}/s\d and {NONE}/s\d", out)
    assert "stratified randomisation    p = 0.001   of all replicates, simulated size " in out
    assert "a is better than b as a configuration (p = 0.002, for one comparison that was planned)" in out
    assert nmt("compare", "sweep=quickstart", "a=Add-512", "b=None-State", f"results={RESULTS}")[1] == out


def test_one_replicate_answers_for_the_system_only(nmt: Command) -> None:
    words = [f"a={ATTENTION}/s1", f"b={NONE}", f"results={RESULTS}", "metric=chrf,rougeL,token_accuracy"]
    code, out, _ = nmt("compare", *words)
    assert code == 0
    assert out.count("not answerable: a has one replicate, and another training might differ by as much") == 3
    assert "not answerable: token_accuracy does not come apart into sentences" in out
    assert out.count("of the configurations nothing can be said") == 2
    chrf, rouge, accuracy = (part for part in re.split(r"\n(?=\w+: a )", out)[1:])
    assert "paired bootstrap" in chrf and "paired bootstrap" not in rouge and "stratified" in rouge
    assert "stratified" not in accuracy


def test_json_has_every_figure(nmt: Command) -> None:
    code, out, _ = nmt("compare", f"a={ATTENTION}", "b=5ee802290a8a", f"results={RESULTS}", "json=true")
    found = json.loads(out)
    (bleu,) = found["metrics"]
    contrast = bleu["configurations"]["contrast"]
    assert code == 0
    assert contrast["p_smallest"] == pytest.approx(2 / 12870)
    assert contrast["p_welch"] == pytest.approx(
        stats.ttest_ind(scores(ATTENTION, *range(1, 9)), scores("5ee802290a8a", *range(1, 9)), equal_var=False).pvalue
    )
    low, high = bleu["systems"]["rho_interval"]
    assert low < bleu["systems"]["rho"] < high
    assert bleu["systems"]["stratified_size"]["value"] > 0.5  # where trainings vary, it is no test of configurations
    assert [run["run_id"] for run in found["b"]["runs"]] == [f"5ee802290a8a/s{seed}" for seed in range(1, 9)]


def test_mistakes_are_one_line_each(nmt: Command, tmp_path: Path) -> None:
    where = f"results={RESULTS}"
    cases = {
        ("compare",): "error: a: is missing",
        ("compare", "a=Add", "b=None-State", "sweep=quickstart"): "did you mean Add-512?",
        ("compare", "a=baseline", f"b={NONE}", where): "error: a: 'baseline' has no complete replicate",
        ("compare", f"a={ATTENTION}", "b=39a63c500ef4", where): "were scored on different test sets",
        ("compare", f"a={NONE}/s1", f"b={NONE}/s1", where): "are the same runs",
        ("compare", f"a={ATTENTION}/s1,{NONE}/s1", f"b={NONE}", where): "2 configurations: replicates of one side are",
        ("compare", f"a={ATTENTION}", f"b={NONE}", where, "metric=bleau"): "has no bleau; allowed: bleu, ",
        ("compare", f"a={ATTENTION}", f"b={NONE}", f"results={tmp_path / 'none'}"): "no such directory",
        ("compare", f"a={ATTENTION}", f"b={NONE}", where, "model.encoder.layers=2"): "belongs to the training",
        ("power", "sd=0.3"): "give the difference that is to be seen",
        ("power", "delta=0.5"): "give sweep=... or sd=...",
        ("power", "delta=0.5", "sd=much"): "must be one sd above 0",
        ("power", "delta=0.5", "sd=0.3", "scale=smoke"): "error: scale=smoke: goes with a sweep only",
        ("power", "delta=0.5", "sweep=quickstart", "paths.runs=none"): "no row of it has two replicates with a bleu",
    }
    for words, said in cases.items():
        code, out, err = nmt(*words)
        assert (code, out) == (2, ""), words
        assert said in err and len(err.splitlines()) == 1, (words, err)


def test_outputs_that_are_not_at_hand_leave_the_configurations(nmt: Command, tmp_path: Path) -> None:
    for train_id in (ATTENTION, NONE):
        shutil.copytree(RESULTS / train_id, tmp_path / "runs" / train_id)
    for path in (tmp_path / "runs" / NONE).glob("s*/decodes/*.txt"):
        path.unlink()
    code, out, _ = nmt("compare", f"a={ATTENTION}", f"b={NONE}")
    assert code == 0
    assert "Welch's t test" in out
    assert re.search(r"not answerable: .*there are no outputs; its scores are there without its outputs", out)


def test_power_of_a_given_spread(nmt: Command) -> None:
    code, out, _ = nmt("power", "sd=0.3", "delta=0.5")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if re.match(r"^ +\d", line)}
    assert rows["3"][:3] == ["0.27", "0.00", "0.1000"]
    assert rows["4"] == ["0.46", "0.36", "0.0286", "0.75"]
    assert "With 2 or 3 replicates a side no exact two-sided test can reach 0.05" in out


def test_power_at_the_spread_that_a_sweep_has_measured(nmt: Command) -> None:
    words = ["power", "sweep=quickstart", "delta=2", f"results={RESULTS}", "replicates=8"]
    code, out, _ = nmt(*words)
    assert code == 0
    assert re.search(r"Add-512 +8 +2\.99 +1\.98 to 6\.09", out)
    found = json.loads(nmt(*words, "json=true")[1])
    assert found["rows"][0]["n"] == 8
    assert found["table"][2]["replicates"] == 4
    assert found["table"][2]["welch_at_high_sd"] < found["table"][2]["welch"]


def test_a_system_that_was_imported_is_a_side_like_any_other(nmt: Command, tmp_path: Path) -> None:
    outputs = []
    for seed in (1, 2):
        (path,) = (RESULTS / ATTENTION / f"s{seed}" / "decodes").glob("*.txt")
        outputs.append(f"hyp={shutil.copy(path, tmp_path / f'{seed}.txt')}")
    assert nmt("import", "system=joeynmt", *outputs, "sweep=quickstart")[0] == 0
    code, out, _ = nmt("compare", "sweep=quickstart", "a=joeynmt", "b=None-State", f"results={RESULTS}", "json=true")
    found = json.loads(out)
    assert (code, found["a"]["name"]) == (0, "joeynmt (imported)")
    (bleu,) = found["metrics"]
    p = stats.ttest_ind(scores(ATTENTION, 1, 2), scores(NONE, 1, 2), equal_var=False).pvalue
    assert bleu["configurations"]["contrast"]["p_welch"] == pytest.approx(p)
    assert bleu["systems"]["sentences"] == 500 and bleu["systems"]["stratified"] < 0.01
    code, _, err = nmt("compare", "a=joeynmt", "b=39a63c500ef4", f"results={RESULTS}")
    assert code == 2 and "were scored on different test sets" in err
