from __future__ import annotations

import pytest

pytest.importorskip("mlflow", reason="MLflow is not installed")

from mlflow.entities import Metric

from sweeps.tracking.mirrored_run import Pending


def points(sizes: list[int]) -> list[list[Metric]]:
    return [[Metric(f"m{place}", 1.0, 0, step) for place in range(size)] for step, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [[], [7] * 10, [7] * 1000, [1000, 1, 999, 2], [1500, 3]])
@pytest.mark.parametrize(("tags", "params"), [(0, 0), (5, 120), (250, 1)])
def test_requests_are_full_within_the_limits_and_split_no_point(sizes: list[int], tags: int, params: int) -> None:
    pending = Pending(
        tags={f"t{place}": "x" for place in range(tags)},
        params={f"p{place}": "x" for place in range(params)},
        values={"bleu": 30.0},
        points=points(sizes),
    )
    batches = list(pending.batches())
    steps = [{metric.step for metric in metrics if metric.key != "bleu"} for metrics, _, _ in batches]
    assert all(not one & other for place, one in enumerate(steps) for other in steps[:place])
    assert [metric.step for metrics, _, _ in batches for metric in metrics if metric.key != "bleu"] == [
        step for step, size in enumerate(sizes) for _ in range(size)
    ]
    assert sum(len(batch[1]) for batch in batches) == params and sum(len(batch[2]) for batch in batches) == tags
    for metrics, some, others in batches:
        assert len(some) <= 100 and len(others) <= 100
        assert len(metrics) + len(some) + len(others) <= 1000 or (len(metrics) == 1500 and not some and not others)
    needed = max(-(-tags // 100), -(-params // 100))
    assert len(batches) <= needed + len(sizes) * 7 // 990 + 4


def test_nothing_pending_is_no_request() -> None:
    assert not Pending() and list(Pending().batches()) == []
