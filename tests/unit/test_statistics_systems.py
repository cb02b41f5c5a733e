"""Tests of these systems: sacrebleu's own results, and the stratified test against enumeration."""

from __future__ import annotations

import os
from itertools import combinations, product

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from sweeps.statistics.contrasts import SEED
from sweeps.statistics.resampling import resample
from sweeps.statistics.systems import paired_test, stratified_p

WORDS = "a small dog sees the old house by the sea and sleeps".split()


def texts(count: int, wrong: float, seed: int) -> list[str]:
    """Sentences of which a share of the words is wrong."""
    draws = np.random.default_rng(seed)
    return [" ".join(word if draws.random() > wrong else "x" for word in WORDS) for _ in range(count)]


REFERENCES = [" ".join(WORDS)] * 60
A, B = texts(60, 0.20, 1), texts(60, 0.25, 2)


def mean(totals: np.ndarray) -> np.ndarray:
    return np.asarray(totals[..., 0] / totals[..., 1])


def scored(scores: np.ndarray) -> np.ndarray:
    """Statistics of a metric that is the mean over sentences: [replicates, sentences, 2]."""
    return np.stack([scores, np.ones_like(scores)], axis=-1)


@pytest.mark.parametrize(("method", "kind", "samples"), [("bootstrap", "bs", 200), ("randomisation", "ar", 500)])
def test_paired_tests_are_sacrebleus_with_a_seed_of_ours(
    method: str, kind: str, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = BLEU(references=[REFERENCES])
    monkeypatch.setenv("SACREBLEU_SEED", str(SEED))
    _, theirs = PairedTest([("b", B), ("a", A)], {"bleu": metric}, None, test_type=kind, n_samples=samples)()
    for seed in ("none", "0", "7"):  # whatever the environment says
        monkeypatch.setenv("SACREBLEU_SEED", seed)
        assert paired_test(A, B, metric, method, samples) == theirs["BLEU"][1].p_value  # type: ignore[union-attr]
        assert os.environ["SACREBLEU_SEED"] == seed
    monkeypatch.delenv("SACREBLEU_SEED")
    assert 0 < paired_test(A, texts(60, 0.9, 3), metric, method, samples) < 0.01
    assert "SACREBLEU_SEED" not in os.environ


@pytest.mark.parametrize(("n_a", "n_b"), [(1, 1), (2, 2), (1, 3)])
def test_the_stratified_test_deals_the_outputs_of_each_sentence_in_every_way(n_a: int, n_b: int) -> None:
    scores = np.random.default_rng(n_b).normal(0, 1, (n_a + n_b, 3))
    scores[:n_a] += 0.7
    observed = abs(scores[:n_a].mean() - scores[n_a:].mean())
    large = total = 0
    splits = list(combinations(range(n_a + n_b), n_a))
    for dealt in product(splits, repeat=3):
        inside = [scores[one, s] for s, chosen in enumerate(dealt) for one in chosen]
        outside = [scores[one, s] for s, chosen in enumerate(dealt) for one in range(n_a + n_b) if one not in chosen]
        large += abs(np.mean(inside) - np.mean(outside)) >= observed - 1e-9
        total += 1
    p = stratified_p(scored(scores[:n_a]), scored(scores[n_a:]), mean, shuffles=20_000)
    assert p == pytest.approx(large / total, abs=0.015)


def test_the_stratified_test_of_single_systems_is_approximate_randomisation() -> None:
    metric = BLEU(references=[REFERENCES])
    a, b = (np.array([metric._extract_corpus_statistics(side, None)], dtype=float) for side in (A, B))

    def score(totals: np.ndarray) -> np.ndarray:
        rows = totals.reshape(-1, 10)
        return np.array([metric._compute_score_from_stats(row).score for row in rows]).reshape(totals.shape[:-1])

    ours = stratified_p(a, b, score, shuffles=2000)
    assert ours == pytest.approx(paired_test(A, B, metric, "randomisation", 2000), abs=0.05)
    assert ours == stratified_p(a, b, score, shuffles=2000)


def test_many_replicates_are_dealt_by_drawing() -> None:
    draws = np.random.default_rng(0)
    scores = draws.normal(0, 1, (16, 20))  # 12870 splits of a sentence's outputs
    alike = stratified_p(scored(scores[:8]), scored(scores[8:]), mean, shuffles=400)
    scores[:8] += 1
    assert stratified_p(scored(scores[:8]), scored(scores[8:]), mean, shuffles=400) == 1 / 401 < alike
    assert np.isnan(stratified_p(scored(scores[:8] * np.nan), scored(scores[8:]), mean))


def test_resampling_is_the_bootstrap_over_both() -> None:
    draws = np.random.default_rng(5)
    a = 1.0 + draws.normal(0, 0.5, (5, 1)) + draws.normal(0, 1, (5, 40))
    b = draws.normal(0, 0.5, (4, 1)) + draws.normal(0, 1, (4, 40))
    found = resample(scored(a), scored(b), mean, draws=4000)
    differences = []
    for _ in range(4000):  # as it is defined
        sentences = draws.integers(0, 40, 40)
        side_a, side_b = a[draws.integers(0, 5, 5)], b[draws.integers(0, 4, 4)]
        differences.append(side_a[:, sentences].mean() - side_b[:, sentences].mean())
    assert found.interval == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.06)
    assert found == resample(scored(a), scored(b), mean, draws=4000)


@pytest.mark.parametrize("rho", [0.0, 1.0, 4.0])
def test_rho_tells_the_training_from_the_sentences(rho: float) -> None:
    draws = np.random.default_rng(6)
    difficulty = 3 * draws.normal(0, 1, 50)  # what all replicates have in common is none of it

    def side() -> np.ndarray:
        quality = rho / np.sqrt(50) * draws.normal(0, 1, (100, 1))
        return scored(difficulty + quality + draws.normal(0, 1, (100, 50)))

    found = resample(side(), side(), mean, draws=300).rho
    assert found is not None
    assert found == pytest.approx(rho, rel=0.1, abs=0.45)
    assert resample(side()[:1], side()[:1], mean, draws=20).rho is None
