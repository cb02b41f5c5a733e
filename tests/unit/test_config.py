"""Composition, validation and identity of configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nmt.config import compose, explain_difference, from_dict, to_dict, train_id, training_identity
from nmt.config.compose import CONF, NOT_CONFIG, groups, known_keys
from nmt.config.identity import canonical, run_id
from nmt.config.schema import TRAIN, RunConfig, key, section
from nmt.errors import UserError


def test_later_overrides_win_and_values_beat_files() -> None:
    config = compose(["scale=smoke", "experiment=t2_lstm", "model.decoder.layers=3", "model.decoder.layers=4"])
    assert config.model.decoder.layers == 4
    assert config.model.encoder.cell.kind == "lstm"
    assert config.scale.name == "smoke"


def test_sizes_shrink_through_dim_and_plain_numbers_do_not() -> None:
    published = compose(["scale.dim_divisor=1"])
    small = compose(["scale.dim_divisor=16", "model.attention.units=99"])
    assert published.model.encoder.units == 512
    assert small.model.encoder.units == 32
    assert small.model.attention.units == 99


@pytest.mark.exhaustive
def test_the_published_factor_keeps_its_order_at_every_scale() -> None:
    for divisor in (1, 2, 4, 8, 16):
        sizes = [
            compose([f"scale.dim_divisor={divisor}", f"model.embedding.units=${{dim:{n}}}"]).model.embedding.units
            for n in (128, 256, 512, 1024, 2048)
        ]
        assert sizes == sorted(set(sizes))


def test_options_of_a_component_take_new_entries() -> None:
    config = compose(["data.options.train_size=7", "data.options.fresh=1", "data.checksums={a.gz: abc}"])
    assert config.data.options["train_size"] == 7
    assert config.data.options["fresh"] == 1
    assert config.data.options["max_length"] == 20
    assert config.data.checksums == {"a.gz": "abc"}


def test_a_config_survives_plain_data() -> None:
    config = compose(["experiment=t5_none_state"])
    assert from_dict(to_dict(config)) == config


MISTAKES: list[tuple[list[str], list[str]]] = [
    (["modle=attentional"], ["modle", "unknown key", "did you mean", "model"]),
    (["model/attention=addtive"], ["model/attention", "additive", "did you mean additive"]),
    (["model.attention.unit=3"], ["model.attention.unit", "model.attention.units"]),
    (["model.encoder.layers=0"], ["model.encoder.layers", ">= 1"]),
    (["model.encoder.cell.dropout_input=1.5"], ["model.encoder.cell.dropout_input", "< 1"]),
    (["search.beam=0"], ["search.beam", ">= 1"]),
    (["search.beam=many"], ["search.beam", "'many'", "Integer"]),
    (["+extra=1"], ["+extra=1", "schema is fixed"]),
    (["seed"], ["seed", "key=value"]),
    (["training.precision=fp61"], ["training.precision", "fp32, bf16"]),
    (["model.encoder.cell.kind=grue"], ["model.encoder.cell.kind", "did you mean gru"]),
    (["experiment=t5_none_state", "model/bridge=zero"], ["model.bridge.name", "projection"]),
    (["model/attention=dot"], ["model.attention.name", "no projections", "multiplicative"]),
    (["model/attention=none_input"], ["model.bridge.name", "concat_input"]),
    (["model/bridge=pass_through"], ["model.bridge.name", "two states a layer", "projection"]),
    (["model.decoder.residual.combiner=sum"], ["model.decoder.residual.combiner", "none, add, mean, concat"]),
    (["batch.micro_batches=4", "batch.groups=3"], ["batch.groups", "divisor"]),
    (["batch.size=2", "batch.micro_batches=4"], ["batch.micro_batches"]),
    (["model.embedding.tie_output=true", "model.embedding.units=7"], ["model.embedding.tie_output", "equal"]),
    (["validation.every_steps=0"], ["validation.every_steps"]),
    (["search.beam=2", "search.n_best=3"], ["search.n_best", "search.beam"]),
    (["schedule=warmup", "schedule.warmup_steps=0"], ["schedule.warmup_steps"]),
    (["data=files", "data.tests.extra={source: [a.en]}"], ["data.tests.extra", "parallel files"]),
]


@pytest.mark.parametrize(("overrides", "words"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_names_the_key_and_what_is_allowed(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compose(overrides)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_yaml_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    import shutil

    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "optimizer" / "adam.yaml").write_text("name: adam\nlearning_rate: [1\n")
    with pytest.raises(UserError, match=r"optimizer/adam\.yaml:\d+: YAML syntax"):
        compose([], conf=conf)


def test_placement_and_decoding_are_no_part_of_training_identity() -> None:
    base = train_id(compose([]))
    same = [
        "seed=7",
        "device=cpu",
        "threads=2",
        "paths.runs=elsewhere",
        "tracking=none",
        "executor=inline",
        "search=greedy",
        "search.beam=3",
        "replicates=9",
        "label=other",
        "training.keep_last=5",
        "validation.search.batch_size=3",
        "distribution=parameter_server",
        "loss.recompute_logits=true",
    ]
    for override in same:
        assert train_id(compose([override])) == base, override
    for override in ("validation.search.beam=2", "batch.size=65", "training.max_steps=7", "loss.label_smoothing=0.1"):
        assert train_id(compose([override])) != base, override


def test_every_key_of_role_train_changes_the_identity(tmp_path: Path) -> None:
    """Mutate each training key in turn: none may slip out of the hash."""
    config = compose([])
    base = train_id(config)
    seen = 0
    (tmp_path / "words").write_text("x\n")  # of a key that names a file the content counts

    def mutate(value: Any) -> Any:
        if isinstance(value, bool):
            return not value
        if isinstance(value, (int, float)):
            return value + 1
        if isinstance(value, str):
            return value + "x"
        return {"x": 1} if isinstance(value, dict) else ["x"]

    def walk(section_: Any, rebuild: Any) -> None:
        nonlocal seen
        for field in dataclasses.fields(section_):
            if field.metadata.get("role", TRAIN) != TRAIN or field.name in ("checksums", "recipe", "kind", "version"):
                continue
            value = getattr(section_, field.name)
            if dataclasses.is_dataclass(value):
                walk(value, lambda inner, f=field: rebuild(dataclasses.replace(section_, **{f.name: inner})))
            else:
                seen += 1
                other = str(tmp_path / "words") if field.metadata.get("file") else mutate(value)
                changed = rebuild(dataclasses.replace(section_, **{field.name: other}))
                assert train_id(changed) != base, field.name

    walk(config, lambda changed: changed)
    assert seen > 60


def test_a_new_key_at_its_neutral_value_orphans_no_run() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Before:
        units: int = key(3, neutral=None)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Section:
        fresh: int = key(0, neutral=0)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class After(Before):
        zoneout: float = key(0.5, neutral=0.0)
        other: Section = section(Section)

    assert canonical(After(zoneout=0.0), {TRAIN}) == canonical(Before(), {TRAIN})
    assert canonical(After(), {TRAIN}) == {"units": 3, "zoneout": 0.5}


def test_a_named_corpus_is_known_by_its_recipe_or_checksums_wherever_it_lies() -> None:
    for data in ("wmt15_en_de", "multi30k_en_de"):
        base = train_id(compose([f"data={data}", "tokenizer=bpe32k"]))
        assert train_id(compose([f"data={data}", "tokenizer=bpe32k", "data.dir=elsewhere"])) == base
        assert train_id(compose([f"data={data}", "tokenizer=bpe32k", "data.version=2"])) != base
        assert (
            train_id(compose([f"data={data}", "tokenizer=bpe32k", "data.test.source=[]", "data.test.target=[]"]))
            == base
        )
    recipes = [train_id(compose(["data=wmt15_en_de", "tokenizer=bpe32k", f"data.recipe={r}"])) for r in ("a", "b")]
    assert recipes[0] != recipes[1]


def test_only_a_loss_in_chunks_has_a_numerics_version_of_its_own() -> None:
    """Its bits are those of the ring softmax, and changed once without anything else."""
    assert "chunked_loss_version" not in training_identity(compose([]))
    assert training_identity(compose(["loss.vocab_chunks=2"]))["chunked_loss_version"] == 2


# The identity of every checked-in experiment in one process: (scale=local, scale=published). A changed line means that
# earlier runs are not found any more: change it on purpose only, and say so in CHANGELOG.md. A new experiment needs its
# line; where the test fails it prints the identities as they would stand:
#   pytest tests/unit/test_config.py -k pinned -m 'exhaustive or not exhaustive'
PINNED = {
    "baseline": ("5f55d63c0b28", "b0f3047daec3"),
    "convolutional": ("db72851cf67e", "1d1453a1c132"),
    "pooling": ("eee3416a731e", "0f9ffda99f13"),
    "t1_emb_1024": ("dc2df57c228d", "9875fb3481a2"),
    "t1_emb_128": ("6cb84972d121", "e2e71d66b7c8"),
    "t1_emb_2048": ("07e9510699b9", "d7e76be3cb30"),
    "t1_emb_256": ("8f9712e3bab2", "71933731f11e"),
    "t1_emb_512": ("5f55d63c0b28", "b0f3047daec3"),
    "t2_gru": ("5f55d63c0b28", "b0f3047daec3"),
    "t2_lstm": ("71746cad6810", "9b4a6e0f699f"),
    "t2_vanilla_dec": ("b0f26eabcc26", "1f53ad2c603c"),
    "t3_dec_1": ("f661653586bb", "7fc1de5e059c"),
    "t3_dec_2": ("5f55d63c0b28", "b0f3047daec3"),
    "t3_dec_4": ("070e9ac0de42", "8dfb3ead12c3"),
    "t3_dec_4_res": ("0a24f7f8219a", "c2630b5a6237"),
    "t3_dec_4_resd": ("f8c04274a22a", "ae40650c46ad"),
    "t3_dec_8": ("5bb20eaa5314", "00c515bfe833"),
    "t3_dec_8_res": ("18cd556099de", "5b2b0bb028ca"),
    "t3_dec_8_resd": ("25df3273577e", "fe83c40235ec"),
    "t3_enc_2": ("5f55d63c0b28", "b0f3047daec3"),
    "t3_enc_4": ("76e4e6fa2833", "685ba3f3cd6c"),
    "t3_enc_8": ("8cad95df5fc5", "b85a6a5ec081"),
    "t3_enc_8_res": ("35d712d2b405", "1209a8575deb"),
    "t3_enc_8_resd": ("b2dc27faf96f", "ca434582370d"),
    "t4_bidi_2": ("5f55d63c0b28", "b0f3047daec3"),
    "t4_uni_1": ("4348b5d5213e", "130f4cefd727"),
    "t4_uni_1r": ("55b48186383f", "d6c462a82574"),
    "t4_uni_2": ("038710294291", "dde026cdca65"),
    "t4_uni_2r": ("217cd8a32c45", "1f611dae90bc"),
    "t4_uni_4": ("27ba962a7381", "53b3ee8fd6bb"),
    "t4_uni_4r": ("fbd0c54d9c64", "c1229d0fb79b"),
    "t5_add_1024": ("ca3e95ecd9c7", "886db798c6fc"),
    "t5_add_128": ("5f101cf79565", "aa6462b905b2"),
    "t5_add_256": ("e99065377760", "466f6df7f970"),
    "t5_add_512": ("da1d780ff1d7", "48c32635f531"),
    "t5_mul_1024": ("871b46f26b65", "6914bcbac92d"),
    "t5_mul_128": ("2f6d315e7339", "7fe1f96743b0"),
    "t5_mul_256": ("b2b8585dc58f", "598fef1a41bd"),
    "t5_mul_512": ("5f55d63c0b28", "b0f3047daec3"),
    "t5_none_input": ("d9e77b9fa5d9", "0bb39edef101"),
    "t5_none_state": ("fe9b2b6d8607", "283ffa37e0d5"),
    "t7_combined": ("ea7f357d02c0", "b4bdd89ee607"),
    "t8_combined": ("ea7f357d02c0", "b4bdd89ee607"),
    "t8_experimental": ("da1d780ff1d7", "48c32635f531"),
    "transformer": ("7906f1062c2d", "73300143d962"),
}


# One of each kind of component, and of what is combined.
KINDS = (
    "baseline", "convolutional", "pooling", "t1_emb_128", "t2_lstm", "t2_vanilla_dec", "t3_enc_8_resd", "t3_dec_4_res",
    "t4_uni_2r", "t5_add_512", "t5_none_input", "t8_combined", "transformer",
)  # fmt: skip


def test_every_experiment_has_a_pinned_identity() -> None:
    assert list(PINNED) == groups()["experiment"]


@pytest.mark.parametrize(
    ("scale", "names"),
    [
        ("local", KINDS),
        pytest.param("local", groups()["experiment"], marks=pytest.mark.exhaustive, id="local-every"),
        pytest.param("published", groups()["experiment"], marks=pytest.mark.exhaustive, id="published-every"),
    ],
)
def test_experiments_have_their_pinned_identities(scale: str, names: Sequence[str]) -> None:
    column = ("local", "published").index(scale)
    words = [f"scale={scale}", "distribution=single"]
    found = {name: train_id(compose([f"experiment={name}", *words])) for name in names}
    pinned = {name: PINNED[name][column] for name in names if name in PINNED}
    changed = "\n".join(f'    "{name}": "{found[name]}"' for name in found if pinned.get(name) != found[name])
    assert found == pinned, f"{scale}, new or changed:\n{changed}"


def test_run_ids_name_configuration_and_seed() -> None:
    config = compose(["seed=3"])
    assert run_id(config) == f"{train_id(config)}/s3"


def test_a_difference_is_explained_by_key() -> None:
    one, other = training_identity(compose([])), training_identity(compose(["model.decoder.layers=4"]))
    assert explain_difference(one, other) == ["model.decoder.layers: 2 != 4"]


def test_every_key_is_commented_in_its_yaml() -> None:
    """Each leaf of the schema stands in some YAML file with a comment on its line."""
    text = "\n".join(path.read_text() for path in CONF.rglob("*.yaml"))
    commented = {
        line.split(":")[0].strip() for line in text.splitlines() if ":" in line and "#" in line.split(":", 1)[1]
    }
    leaves = {name.rpartition(".")[2] for name in known_keys() if not _is_section(name)}
    assert leaves - commented == set()


def _is_section(name: str) -> bool:
    cls: Any = RunConfig
    for part in name.split("."):
        field = {f.name: f for f in dataclasses.fields(cls)}[part]
        cls = field.default_factory
    return dataclasses.is_dataclass(cls)


@pytest.mark.exhaustive
def test_every_option_of_every_group_composes() -> None:
    needs = {
        ("model/attention", "none_state"): ["model/bridge=projection"],
        ("model/attention", "none_input"): ["model/bridge=concat_input"],
        ("model/attention", "dot"): ["model/encoder=unidirectional"],
        ("model/bridge", "pass_through"): ["model/encoder=unidirectional", "model.encoder.layers=2"],
        ("model/attention", "multi_head"): ["model/decoder=transformer"],
        ("model/decoder", "transformer"): ["model/attention=multi_head"],
    }
    for group, options in groups().items():
        if group in (*NOT_CONFIG, "experiment"):  # experiments compose where their identities are pinned
            continue
        for option in options:
            extra = needs.get((group, option), [])
            assert isinstance(compose([*extra, f"{group}={option}"]), RunConfig)
