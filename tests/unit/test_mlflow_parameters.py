from __future__ import annotations

from pathlib import Path

from nmt.config import compose, to_dict, train_id
from sweeps.tracking.mirrored_configuration import ConfigurationGroup, with_factors
from sweeps.tracking.parameters import number_of, numeric_factors, parameters_of


def test_numbers_that_differ_somewhere_and_are_numbers_everywhere() -> None:
    rows = [
        {"units": "128", "rate": "1e-3", "same": "5", "cell": "lstm", "layers": "2", "bridge": "0.5"},
        {"units": "1024", "rate": "0.001", "same": "5", "cell": "gru", "layers": "none"},
        {"units": "128", "rate": "1e-2", "same": "5", "cell": "gru", "layers": "1", "bridge": "0.7"},
    ]
    assert numeric_factors(rows) == [
        {"units": 128.0, "rate": 0.001},
        {"units": 1024.0, "rate": 0.001},
        {"units": 128.0, "rate": 0.01},
    ]
    assert numeric_factors(rows[:1]) == [{}] and numeric_factors([]) == []


def test_what_is_a_number() -> None:
    assert [number_of(text) for text in ("0", "-1.5", "1e-3", "", "True", "nan", "inf", "1 2")] == [
        0.0,
        -1.5,
        0.001,
        *[None] * 5,
    ]


def test_of_a_distribution_stands_there_what_can_change_a_result() -> None:
    words = ["distribution=parameter_server", "batch.micro_batches=2", "distribution.workers=2"]
    single, exact, free = (
        parameters_of(compose(list(one))) for one in (words[1:2], words, [*words, "distribution.mode=asp"])
    )
    assert exact == single
    assert {name: free[name] for name in free.keys() - single.keys()} == {
        "distribution.name": "parameter_server",
        "distribution.mode": "asp",
        "distribution.workers": "2",
        "distribution.servers": "1",
    }


def test_rows_of_a_sweep_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    configs = [
        compose([f"paths.runs={tmp_path}", f"optimizer.learning_rate={rate}", f"batch.size={size}"])
        for rate, size in ((1e-3, 8), (1e-4, 8))
    ]
    groups = [ConfigurationGroup(str(n), train_id(one), [], to_dict(one)) for n, one in enumerate(configs)]
    told = with_factors(groups)
    assert [group.factors for group in told] == [
        {"optimizer.learning_rate": 1e-3},
        {"optimizer.learning_rate": 1e-4},
    ]
    assert [group.key for group in told] == [group.key for group in groups]  # which tells them apart in MLflow
    assert told[0].run_config == configs[0]
    assert ConfigurationGroup.of("0", train_id(configs[0]), [], configs[0]) == groups[0]
    assert ConfigurationGroup.of("0", train_id(configs[0]), [], configs[0]).key == groups[0].key
    assert parameters_of(told[1].run_config)["optimizer.learning_rate"] == "0.0001"
