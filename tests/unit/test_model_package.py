"""What of a configuration goes into an MLflow model, and under which names."""

from __future__ import annotations

import dataclasses

import pytest

from nmt.config import compose, to_dict
from nmt.config.schema import SearchConfig, SplitConfig
from sweeps.results import Replicate
from sweeps.tracking.model_package import TYPES, requirements, without_places
from sweeps.tracking.registered_model import model_name
from sweeps.tracking.translation_model import settings


def test_every_key_of_a_search_is_a_parameter_but_those_that_make_no_sense_for_one_text() -> None:
    names = {field.name for field in dataclasses.fields(SearchConfig)}
    found = settings(SearchConfig(beam=7))
    assert names - found.keys() == {"n_best", "dictionary"}
    assert found["beam"] == 7
    assert {type(value) for value in found.values()} <= TYPES.keys(), "MLflow has no name for the type of a new key"


def test_nothing_of_the_machine_is_left_in_the_configuration() -> None:
    place = "/somewhere/on/this/machine"
    words = [f"{key}={place}" for key in ("paths.runs", "paths.cache", "paths.reports", "data.dir")]
    config = compose([*words, "tracking.uri=http://ann:secret@host", "data=multi30k_en_de", "executor=inline"])
    search = SearchConfig(beam=3)
    kept = without_places(config, "a row", search)
    assert place not in str(to_dict(kept)) and "secret" not in str(to_dict(kept))
    assert (kept.label, kept.search, kept.model) == ("a row", search, config.model)


def test_of_files_that_were_named_by_their_place_the_names_are_left() -> None:
    config = compose()
    train = SplitConfig(source=["/home/ann/train.de", "~/more.de.gz"], target=["relative/train.en"])
    tests = {"second": {"source": ["/home/ann/test.de"], "target": []}}
    data = dataclasses.replace(config.data, train=train, tests=tests)
    kept = without_places(dataclasses.replace(config, data=data), "", config.search).data
    assert kept.train == SplitConfig(source=["train.de", "more.de.gz"], target=["relative/train.en"])
    assert kept.tests == {"second": {"source": ["test.de"], "target": []}}


def test_requirements_are_names_with_versions() -> None:
    ours, *others = requirements(compose())
    assert ours.startswith("seq2seq-studies==")
    assert [line.partition("==")[0] for line in others] == ["torch", "mlflow"]
    assert not [line for line in others if set(line) & set("/:@+ ")]


@pytest.mark.parametrize(
    ("experiment", "name"), [("quickstart@local", "quickstart@local"), ("it's 1:2/3@local", "it-s 1-2-3@local")]
)
def test_a_registered_model_is_named_like_its_experiment(experiment: str, name: str) -> None:
    assert model_name(experiment) == name


def test_validation_chooses_the_best_replicate_among_complete_ones() -> None:
    from sweeps.aggregate import best_replicate

    def one(seed: int, validation: float, test: float = 10.0, complete: bool = True) -> Replicate:
        scores = {"bleu": test, "ter": 100 - test}
        chosen_by = {"bleu": validation, "ter": 100 - validation}
        return Replicate(
            run_id=f"r/s{seed}", seed=seed, state="finished", complete=complete, metrics=scores, validation=chosen_by
        )

    replicates = [one(3, 20.0, test=99.0), one(2, 21.0), one(1, 21.0), one(4, 30.0, complete=False)]
    assert best_replicate(replicates, "bleu").seed == 1, "the earlier seed among equals"
    assert best_replicate(replicates, "ter").seed == 1, "the lower, the better"
    assert best_replicate(replicates, "chrf") is None
    assert best_replicate([*replicates, one(5, 21.0, test=11.0)], "bleu").seed == 5, "one training, two searches"
