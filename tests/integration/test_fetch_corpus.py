"""scripts/fetch_corpus.py against a miniature mirror: sums, resumed transfers, safe unpacking, and on to batches."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpus_mirror import MULTI30K, NEWSTESTS, Mirror, pairs, serving

from nmt.config import compose
from nmt.data.batching import Sampler, collate
from nmt.data.prepare import prepare
from nmt.runs import LocalRunStore

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fetch_corpus.py"
TRAIN = f"{MULTI30K}/train.en.gz"


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serving(Mirror()) as mirror:
        yield mirror


def fetch(mirror: Mirror, tmp_path: Path, *words: str, sums: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), f"mirror={mirror.url}", f"dir={tmp_path}/data", "wait=0.001", *words]
    if sums:
        command.append(f"sums={mirror.write_sums(tmp_path / 'sums')}")
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_multi30k_comes_whole_through_broken_transfers(mirror: Mirror, tmp_path: Path) -> None:
    mirror.add_multi30k()
    mirror.broken = {TRAIN: 3}
    done = fetch(mirror, tmp_path, "corpus=multi30k")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "data") == {Path(path).name for path in mirror.files}
    for path, content in mirror.files.items():
        assert (tmp_path / "data" / Path(path).name).read_bytes() == content
    size, starts, have = len(mirror.files[TRAIN]), [""], 0
    for _ in range(3):
        have += (size - have) // 2
        starts.append(f"bytes={have}-")
    assert [asked for path, asked in mirror.requests if path == TRAIN] == starts  # no byte was sent twice

    mirror.requests.clear()
    assert fetch(mirror, tmp_path, "corpus=multi30k").returncode == 0
    assert mirror.requests == []  # what is there and right is left alone


def test_a_later_command_resumes_an_earlier_one(mirror: Mirror, tmp_path: Path) -> None:
    mirror.add_multi30k()
    mirror.broken = {TRAIN: 1}
    stopped = fetch(mirror, tmp_path, "corpus=multi30k", "retries=0")
    assert stopped.returncode == 75 and "the same command goes on" in stopped.stderr
    have = (tmp_path / "data" / "train.en.gz.part").stat().st_size
    assert have == len(mirror.files[TRAIN]) // 2
    assert "train.en.gz" not in names(tmp_path / "data")
    assert fetch(mirror, tmp_path, "corpus=multi30k").returncode == 0
    assert (TRAIN, f"bytes={have}-") in mirror.requests
    assert (
        gzip.decompress((tmp_path / "data" / "train.en.gz").read_bytes()).decode().split("\n") == pairs("train", 60)[0]
    )


def test_a_server_without_ranges_starts_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.add_multi30k()
    mirror.broken, mirror.ranges = {TRAIN: 2}, False
    assert fetch(mirror, tmp_path, "corpus=multi30k").returncode == 0
    assert (tmp_path / "data" / "train.en.gz").read_bytes() == mirror.files[TRAIN]


def test_a_wrong_sum_keeps_nothing(mirror: Mirror, tmp_path: Path) -> None:
    """The built-in sums are those of the real files, which the mirror's are not."""
    mirror.add_multi30k()
    refused = fetch(mirror, tmp_path, "corpus=multi30k", sums=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1 and "was expected" in refused.stderr
    assert names(tmp_path / "data") == set()


def test_a_missing_file_is_one_clear_line(mirror: Mirror, tmp_path: Path) -> None:
    refused = fetch(mirror, tmp_path, "corpus=multi30k", sums=False)
    assert refused.returncode == 2
    assert "the server answers 404" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["corpus=multi3k"], "did you mean multi30k"),
        ([], "corpus: is needed"),
        (["corpus=wmt15", "sums=nowhere"], "nowhere: cannot be read"),
        (["corpus=wmt15", "dir=/dev/null/x"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_wmt15_from_archives_to_batches(mirror: Mirror, tmp_path: Path) -> None:
    mirror.add_wmt15()
    mirror.broken = {"europarl/v7/de-en.tgz": 1, "wmt15/test.tgz": 1}
    done = fetch(mirror, tmp_path, "corpus=wmt15")
    assert done.returncode == 0, done.stderr
    data = tmp_path / "data"
    assert (data / "commoncrawl.de-en.de").read_text().split("\n")[:-1] == pairs("commoncrawl.de-en", 40)[1]
    for number, path in enumerate(NEWSTESTS):
        assert (data / f"newstest{2013 + number}.en").read_text().split("\n")[:-1] == pairs(path, 6)[0]
        assert (data / f"newstest{2013 + number}.de").read_text().split("\n")[:-1] == pairs(path, 6)[1]
    everything = [path.name for path in tmp_path.rglob("*")]
    assert not {"outside.txt", "other.fr-en.fr"} & set(everything)
    assert not Path("/outside.txt").exists()
    assert not [name for name in everything if name.endswith(".part")]

    config = compose(
        ["data=wmt15_en_de", f"data.dir={data}", "tokenizer=bpe32k", "tokenizer.merges=60", "batch.size=16"]
    )
    prepared = prepare(config)
    assert prepared.report["train"]["read"] == prepared.report["train"]["kept"] == 120
    assert prepared.report["tokenizer"]["joint"]["merges"] == 60
    assert (prepared.source_tokenizer.size, len(prepared.validation), len(prepared.test)) == (37007, 6, 6)
    tokens = prepared.source_tokenizer.decode(prepared.train.source[0].tolist())
    assert tokens == pairs("europarl-v7.de-en", 40)[0][0].replace(",", " ,").replace("n't", "n &apos;t").replace(
        "?", " ?"
    )
    sampler = Sampler(prepared.train.source_lengths, prepared.train.target_lengths, config.batch, config.seed)
    batch = collate(prepared.train, sampler.slots(1)[0])
    assert len(batch.source) == 16 and sampler.steps_per_epoch == 7


def test_archives_without_published_sums_are_held_to_the_first_download(mirror: Mirror, tmp_path: Path) -> None:
    mirror.add_wmt15()
    sums = mirror.write_sums(tmp_path / "newstests")
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if line.split()[1] in NEWSTESTS))
    assert fetch(mirror, tmp_path, "corpus=wmt15", f"sums={sums}", sums=False).returncode == 0
    archives = tmp_path / "data" / "archives"
    assert len((archives / "SHA256SUMS").read_text().splitlines()) == 3
    (tmp_path / "data" / "europarl-v7.de-en.de").unlink()
    (archives / "de-en.tgz").unlink()
    mirror.files["europarl/v7/de-en.tgz"] = mirror.files["wmt15/training-parallel-nc-v10.tgz"]
    refused = fetch(mirror, tmp_path, "corpus=wmt15", f"sums={sums}", sums=False)
    assert refused.returncode == 2 and "was expected" in refused.stderr


def test_from_the_mirror_to_newstest_scores(mirror: Mirror, tmp_path: Path) -> None:
    """Fetch, clean, BPE, train, and both test sets, as the published study's data goes."""
    mirror.add_wmt15()
    assert fetch(mirror, tmp_path, "corpus=wmt15").returncode == 0
    words = [f"data.dir={tmp_path}/data", f"paths.runs={tmp_path}/runs", "threads=1"]
    train = [
        *("scale=smoke", "data=wmt15_en_de", "tokenizer=bpe32k", "tokenizer.vocab_size=120", "tokenizer.merges=60"),
        *("tracking=none", "data.max_sentences=0"),
    ]

    def nmt(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "nmt.cli", *command], capture_output=True, text=True, timeout=600)

    trained = nmt("train", *train, *words)
    assert trained.returncode == 0, trained.stderr
    store = LocalRunStore(tmp_path / "runs")
    (run_id,) = store.list_runs()
    newstest2015 = "data.test={source: [newstest2015.en], target: [newstest2015.de]}"
    scored = nmt("evaluate", f"run={run_id}", newstest2015, *words[:2], "threads=1")
    assert scored.returncode == 0, scored.stderr
    records = [store.read_json(run_id, f"decodes/{p.name}") for p in store.directory(run_id).glob("decodes/*.json")]
    assert len(records) == 2
    for record in records:
        assert record is not None
        assert record["sentences"] > 0
        assert "tok:13a" in record["signatures"]["bleu"]
