"""The comparison with other toolkits as a user types it, where no other toolkit is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TINY = ["shapes=16", "bf16=none", "rounds=2", "steps=1", "beams=3", "batch_sizes=4,8", "sentences=6", "max_length=12"]
CORPUS = ["data.options.train_size=300", "data.options.test_size=10", "data.options.validation_size=2"]


def bench(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "bench_peers.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=1200)


@pytest.fixture(scope="module")
def ours_alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict]:
    states = tmp_path_factory.mktemp("states")
    words = ["peers=", *TINY, *CORPUS, "train_steps=3", f"states={states}", f"json={states / 'all.json'}"]
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    return states, done.stdout, json.loads((states / "all.json").read_text())


@pytest.mark.exhaustive
def test_our_own_system_is_measured_without_peers(ours_alone: tuple[Path, str, dict]) -> None:
    _, page, found = ours_alone
    assert "## 16 units, 1 thread" in page and "a search ends when" in page
    assert found["ratios"] == {} and found["changes"] == ["Nothing."]
    (one,) = found["comparisons"]
    assert len(one["training"]["arms"]["ours"]["seconds"]) == 2
    assert [arm["rule"] for arm in one["decoding"][0]["arms"]["ours"]] == ["top ended", "all ended"]
    assert set(one["decoding"][0]["arms"]["ours"][0]["tried"]) == {"4", "8"}


@pytest.mark.exhaustive
def test_steps_are_ours_in_order_and_tokens_those_of_the_sampler(ours_alone: tuple[Path, str, dict]) -> None:
    from nmt.config import compose
    from nmt.data.batching import Sampler
    from nmt.data.prepare import prepare

    states, _, found = ours_alone
    (one,) = found["comparisons"]
    assert one["training"]["steps"] == [5, 6]  # three to train, one that is not counted
    config = compose([*CORPUS, "tokenizer.joint=true", f"paths.cache={states}", "seed=1", "batch.size=128"])
    train = prepare(config).train
    sampler = Sampler(train.source_lengths, train.target_lengths, config.batch, 1)
    assert one["training"]["tokens"] == sum(sampler.slot_tokens(5)) + sum(sampler.slot_tokens(6))


@pytest.mark.exhaustive
def test_a_trained_state_is_read_again(ours_alone: tuple[Path, str, dict]) -> None:
    states, _, first = ours_alone
    again = bench("peers=", *TINY, *CORPUS, "train_steps=3", f"states={states}", f"json={states / 'again.json'}")
    assert again.returncode == 0 and "trained to step" not in again.stderr
    second = json.loads((states / "again.json").read_text())
    assert second["comparisons"][0]["bleu"] == first["comparisons"][0]["bleu"]
    assert second["comparisons"][0]["curves"] == first["comparisons"][0]["curves"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("peers=fairseq", "peers: unknown peer 'fairseq'; allowed: opennmt, joeynmt"),
        ("shapes=17", "shapes: 17 units cannot be halved"),
        ("threads=two", "threads: 'two' is no number"),
        ("action=instal", "did you mean install?"),
    ],
)
def test_mistakes_are_told_in_a_line(word: str, said: str) -> None:
    done = bench(word)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.exhaustive
def test_without_a_registry_the_installation_says_so_in_a_line(tmp_path: Path) -> None:
    nowhere = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
    done = bench("action=install", "peers=joeynmt", f"environments={tmp_path}", **nowhere)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: joeynmt==2.3.0: cannot be installed: ") and "registry" in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "joeynmt" / "installed.json").exists()
