"""The typed schema of a run: every key, its meaning, its range, and the part it plays in a run's identity.

The only place that knows config keys. Each field states, through `key(...)`:

- `role`: TRAIN (the default; part of `train_id`), DECODE (part of `decode_id` only) or PLACEMENT (where and how fast a
  run happens, never what comes out; part of neither);
- `neutral`: the value at which the canonical form omits the key, so that a key added later orphans no run. None means
  that the key is always written;
- what validation needs: `choices`, `registry` (a kind of `nmt.registry`), `minimum`, `maximum`;
- `file`: the value is a path, and what counts for the identity is the file's content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nmt.evaluation.catalogue import CHOOSING

TRAIN, DECODE, PLACEMENT = "train", "decode", "placement"


def key(default: Any, *, neutral: Any, role: str = TRAIN, **constraints: Any) -> Any:
    """A schema field; see the module's docstring. `default` may be a callable that makes a fresh list or dict."""
    metadata = {"neutral": neutral, "role": role, **constraints}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: Callable[[], Any], role: str = TRAIN) -> Any:
    """A nested section; a role other than TRAIN goes for everything inside it."""
    return field(default_factory=cls, metadata={"role": role})


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Parallel files of one split; several files a side are read one after the other. Plain text or .gz."""

    source: list[str] = key(list, neutral=[])
    target: list[str] = key(list, neutral=[])


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A corpus and its cleaning."""

    name: str = key("", neutral="", role=PLACEMENT)
    kind: str = key("generated", neutral=None, choices=("files", "generated"))
    generator: str = key("", neutral="", registry="generator")
    options: dict[str, Any] = key(dict, neutral={})
    dir: str = key("", neutral="", role=PLACEMENT)
    source_language: str = key("", neutral="")
    target_language: str = key("", neutral="")
    train: SplitConfig = section(SplitConfig)
    validation: SplitConfig = section(SplitConfig)
    test: SplitConfig = section(SplitConfig, role=DECODE)
    tests: dict[str, dict[str, list[str]]] = key(dict, neutral={}, role=DECODE)
    checksums: dict[str, str] = key(dict, neutral={})
    recipe: str = key("", neutral="")
    version: int = key(1, neutral=1, minimum=1)
    lowercase: bool = key(False, neutral=False)
    moses: bool = key(False, neutral=False)
    overlong: str = key("filter", neutral="filter", choices=("filter", "truncate"))
    max_length: int = key(50, neutral=None, minimum=1)
    max_ratio: float = key(0.0, neutral=0.0, minimum=0.0)
    max_sentences: int = key(0, neutral=0, minimum=0)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Segmentation into the vocabulary, learned or read from files. `vocab_size` counts UNK, SOS and EOS."""

    name: str = key("whitespace", neutral=None, registry="tokenizer")
    vocab_size: int = key(1000, neutral=None, minimum=4)
    merges: int = key(0, neutral=0, minimum=0)
    joint: bool = key(True, neutral=True)
    dropout: float = key(0.0, neutral=0.0, minimum=0.0, below=1.0)
    source_vocabulary: str = key("", neutral="", file=True)
    target_vocabulary: str = key("", neutral="", file=True)


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """A recurrent cell; dropout values are probabilities of dropping."""

    kind: str = key("gru", neutral=None, registry="cell")
    family: str = key("tf", neutral="tf", choices=("tf", "torch"))
    dropout_input: float = key(0.2, neutral=0.0, minimum=0.0, below=1.0)
    dropout_output: float = key(0.0, neutral=0.0, minimum=0.0, below=1.0)
    forget_bias: float = key(1.0, neutral=1.0)


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Embedding tables and what they share."""

    units: int = key(512, neutral=None, minimum=1)
    share: bool = key(False, neutral=False)
    tie_output: bool = key(False, neutral=False)


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """Connections past the layers of a recurrent stack."""

    combiner: str = key("none", neutral="none", choices=("none", "add", "mean", "concat"))
    dense: bool = key(False, neutral=False)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The encoder; `layers` counts layers per direction, `units` those of one direction."""

    name: str = key("bidirectional", neutral=None, registry="encoder")
    units: int = key(512, neutral=None, minimum=1)
    layers: int = key(1, neutral=None, minimum=1)
    reverse_source: bool = key(False, neutral=False)
    cell: CellConfig = section(CellConfig)
    residual: ResidualConfig = section(ResidualConfig)
    options: dict[str, Any] = key(dict, neutral={})


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The decoder."""

    name: str = key("recurrent", neutral=None, registry="decoder")
    units: int = key(512, neutral=None, minimum=1)
    layers: int = key(2, neutral=None, minimum=1)
    cell: CellConfig = section(CellConfig)
    residual: ResidualConfig = section(ResidualConfig)
    options: dict[str, Any] = key(dict, neutral={})


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The attention mechanism; `units` is the width of keys and query."""

    name: str = key("multiplicative", neutral=None, registry="attention")
    units: int = key(512, neutral=None, minimum=0)
    scaling: str = key("none", neutral="none", choices=("none", "sqrt", "learned"))
    masked: bool = key(True, neutral=True)
    options: dict[str, Any] = key(dict, neutral={})


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """How the encoder's final state reaches the decoder; `units` is the width of what is appended to its inputs."""

    name: str = key("zero", neutral="zero", registry="bridge")
    units: int = key(0, neutral=0, minimum=0)
    activation: str = key("linear", neutral="linear", choices=("linear", "tanh"))
    options: dict[str, Any] = key(dict, neutral={})


@dataclass(frozen=True, kw_only=True)
class InitialisationConfig:
    """Distribution of the first parameters."""

    name: str = key("glorot_uniform", neutral="glorot_uniform", choices=("glorot_uniform", "uniform"))
    scale: float = key(0.04, neutral=0.04, above=0.0)
    recurrent_scale: float = key(0.0, neutral=0.0, minimum=0.0)
    embedding_scale: float = key(0.0, neutral=0.0, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sequence-to-sequence model."""

    embedding: EmbeddingConfig = section(EmbeddingConfig)
    encoder: EncoderConfig = section(EncoderConfig)
    decoder: DecoderConfig = section(DecoderConfig)
    attention: AttentionConfig = section(AttentionConfig)
    bridge: BridgeConfig = section(BridgeConfig)
    initialisation: InitialisationConfig = section(InitialisationConfig)
    dropout_embedding: float = key(0.0, neutral=0.0, minimum=0.0, below=1.0)
    dropout_mix: float = key(0.0, neutral=0.0, minimum=0.0, below=1.0)


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """What one step sees, and how it is cut into micro-batch slots."""

    size: int = key(128, neutral=None, minimum=1)
    unit: str = key("sentences", neutral="sentences", choices=("sentences", "tokens"))
    micro_batches: int = key(1, neutral=1, minimum=1)
    groups: int = key(0, neutral=0, minimum=0)
    pool: int = key(100, neutral=100, minimum=1)
    per: str = key("step", neutral="step", choices=("step", "push"))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule and gradient clipping."""

    name: str = key("adam", neutral=None, registry="optimizer")
    learning_rate: float = key(1e-4, neutral=None, above=0.0)
    beta1: float = key(0.9, neutral=0.9, minimum=0.0, below=1.0)
    beta2: float = key(0.999, neutral=0.999, minimum=0.0, below=1.0)
    epsilon: float = key(1e-8, neutral=1e-8, above=0.0)
    epsilon_form: str = key("tf", neutral="tf", choices=("tf", "torch"))
    momentum: float = key(0.0, neutral=0.0, minimum=0.0, below=1.0)
    clip_norm: float = key(5.0, neutral=0.0, minimum=0.0)
    clip_embedding_norm: float = key(0.0, neutral=0.0, minimum=0.0)
    options: dict[str, Any] = key(dict, neutral={})


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate as a function of the step (and of validation, for `plateau`)."""

    name: str = key("constant", neutral="constant", registry="schedule")
    warmup_steps: int = key(0, neutral=0, minimum=0)
    decay_start: int = key(0, neutral=0, minimum=0)
    decay_stop: int = key(0, neutral=0, minimum=0)
    decay_steps: int = key(0, neutral=0, minimum=0)
    decay_rate: float = key(1.0, neutral=1.0, above=0.0, maximum=1.0)
    staircase: bool = key(False, neutral=False)
    plateau_patience: int = key(0, neutral=0, minimum=0)
    minimum_rate: float = key(0.0, neutral=0.0, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy over the target vocabulary."""

    label_smoothing: float = key(0.0, neutral=0.0, minimum=0.0, below=1.0)
    vocab_chunks: int = key(1, neutral=1, minimum=1)
    recompute_logits: bool = key(False, neutral=False, role=PLACEMENT)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Decoding: beam search (beam 1 is greedy) or sampling. Its defaults are those of `conf/search/beam10.yaml`."""

    method: str = key("beam", neutral="beam", choices=("beam", "sample"))
    beam: int = key(10, neutral=None, minimum=1)
    n_best: int = key(1, neutral=1, minimum=1)
    finishing: str = key("google", neutral="google", choices=("google", "standard"))
    stop: str = key("all", neutral="all", choices=("all", "bound", "first_n", "patience"))
    patience: float = key(1.0, neutral=1.0, above=0.0)
    penalty: str = key("gnmt", neutral="gnmt", choices=("gnmt", "power", "average", "none"))
    length_penalty: float = key(0.0, neutral=0.0)
    penalty_counts_eos: bool = key(False, neutral=False)
    coverage: str = key("none", neutral="none", choices=("none", "wu", "summary"))
    coverage_weight: float = key(0.0, neutral=0.0, minimum=0.0)
    min_length: int = key(0, neutral=0, minimum=0)
    min_length_ratio: float = key(0.0, neutral=0.0, minimum=0.0)
    max_length: int = key(100, neutral=100, minimum=1)
    max_length_ratio: float = key(0.0, neutral=0.0, minimum=0.0)
    block_ngrams: int = key(0, neutral=0, minimum=0)
    block_unknown: bool = key(False, neutral=False)
    temperature: float = key(1.0, neutral=1.0, above=0.0)
    top_k: int = key(0, neutral=0, minimum=0)
    top_p: float = key(1.0, neutral=1.0, above=0.0, maximum=1.0)
    seed: int = key(1, neutral=1, minimum=0)
    diverse_groups: int = key(1, neutral=1, minimum=1)
    diverse_strength: float = key(0.0, neutral=0.0, minimum=0.0)
    replace_unknown: bool = key(False, neutral=False)
    dictionary: str = key("", neutral="", file=True)
    precision: str = key("training", neutral="training", choices=("training", "fp32", "bf16"))
    batch_size: int = key(256, neutral=256, role=PLACEMENT, minimum=1)


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Free-running evaluation during training, on the validation split."""

    every_steps: int = key(1000, neutral=0, minimum=0)
    every_minutes: float = key(0.0, neutral=0.0, minimum=0.0)
    max_sentences: int = key(0, neutral=0, minimum=0)
    metric: str = key("bleu", neutral="bleu", choices=CHOOSING)
    patience: int = key(0, neutral=0, minimum=0)
    search: SearchConfig = section(SearchConfig)


@dataclass(frozen=True, kw_only=True)
class ScheduledSamplingConfig:
    """Training on the model's own output in place of the given previous token (Bengio et al. 2015)."""

    form: str = key("none", neutral="none", choices=("none", "embedding", "output"))
    probability: float = key(0.0, neutral=0.0, minimum=0.0, maximum=1.0)
    ramp_steps: int = key(0, neutral=0, minimum=0)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """A look inside training, which changes nothing of it."""

    every_steps: int = key(0, neutral=0, minimum=0)
    sentences: int = key(200, neutral=200, minimum=0)


@dataclass(frozen=True, kw_only=True)
class SeedsConfig:
    """What the run's seed decides; a stream with a number above 0 has that seed in every replicate."""

    initialisation: int = key(0, neutral=0, minimum=0)
    data: int = key(0, neutral=0, minimum=0)
    dropout: int = key(0, neutral=0, minimum=0)
    jitter: float = key(0.0, neutral=0.0, minimum=0.0, below=1.0)
    jittered: list[str] = key(list, neutral=[])


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Budget, arithmetic, scheduled sampling, probes and checkpoints."""

    max_steps: int = key(2000, neutral=None, minimum=1)
    precision: str = key("fp32", neutral="fp32", choices=("fp32", "bf16"))
    collapse_margin: float = key(1.0, neutral=1.0, minimum=0.0)
    log_every_steps: int = key(50, neutral=50, role=PLACEMENT, minimum=1)
    checkpoint_every_steps: int = key(0, neutral=0, role=PLACEMENT, minimum=0)
    keep_last: int = key(2, neutral=2, role=PLACEMENT, minimum=1)
    scheduled_sampling: ScheduledSamplingConfig = section(ScheduledSamplingConfig)
    probe: ProbeConfig = section(ProbeConfig, role=PLACEMENT)


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """What one process of a distributed run is given, by resource; 0: as conf/distribution says for its role."""

    cpu: float = key(0.0, neutral=0.0, minimum=0.0)
    gpu: float = key(0.0, neutral=0.0, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What the processes of a distributed run are given, by role."""

    coordinator: ProcessConfig = section(ProcessConfig)
    worker: ProcessConfig = section(ProcessConfig)
    server: ProcessConfig = section(ProcessConfig)


@dataclass(frozen=True, kw_only=True)
class DistributionConfig:
    """The strategy that runs a step, over which processes, and how these deal with each other.

    None of it is part of the identity as it stands: what can change a result is said by the strategy (kind `numerics`
    of `nmt.registry`). `stands_for` says in words which published way of training an option of this group is there for.
    """

    name: str = key("single", neutral="single", registry="strategy")
    stands_for: str = key("", neutral="")
    mode: str = key("bsp", neutral="bsp", choices=("bsp", "ssp", "asp", "stage", "rotate"))
    schedule: str = key("flush", neutral="flush", choices=("flush", "async"))
    staleness: int = key(0, neutral=0, minimum=0)
    nodes: int = key(1, neutral=1, minimum=1)
    rings: int = key(1, neutral=1, minimum=1)
    whole_model: bool = key(True, neutral=True)
    node_memory_mib: int = key(0, neutral=0, minimum=0)
    workers: int = key(1, neutral=1, minimum=1)
    servers: int = key(1, neutral=1, minimum=1)
    apply_every: int = key(1, neutral=1, minimum=1)
    backup: int = key(0, neutral=0, minimum=0)
    rate_scaling: str = key("none", neutral="none", choices=("none", "workers", "staleness"))
    on_loss: str = key("recompute", neutral="recompute", choices=("recompute", "drop"))
    shadows: int = key(0, neutral=0, minimum=0, maximum=1)
    replace_lost: bool = key(True, neutral=True)
    speeds: str = key("measured", neutral="measured", choices=("measured", "equal"))
    wire: str = key("fp32", neutral="fp32", choices=("fp32", "bf16"))
    sparse: bool = key(False, neutral=False)
    top_k: float = key(0.0, neutral=0.0, minimum=0.0, below=1.0)
    top_k_warm_up: int = key(0, neutral=0, minimum=0)
    top_k_momentum: float = key(0.0, neutral=0.0, minimum=0.0, below=1.0)
    link: str = key("auto", neutral="auto", choices=("auto", "tcp", "shm"))
    staging: str = key("auto", neutral="auto", choices=("auto", "always"))
    engine: str = key("gloo", neutral="gloo", choices=("own", "gloo", "nccl"))
    launcher: str = key("auto", neutral="auto", choices=("auto", "processes", "ray", "external"))
    bind: str = key("auto", neutral="auto")
    heartbeat_seconds: float = key(1.0, neutral=1.0, above=0.0)
    deadline_seconds: float = key(30.0, neutral=30.0, above=0.0)
    watchdog_seconds: float = key(600.0, neutral=600.0, minimum=0.0)
    bucket_mib: int = key(25, neutral=25, minimum=1)
    tls_certificate: str = key("", neutral="")
    tls_key: str = key("", neutral="")
    checksum: str = key("auto", neutral="auto", choices=("auto", "always"))
    faults: list[str] = key(list, neutral=[])
    replay: str = key("", neutral="")
    resources: ResourcesConfig = section(ResourcesConfig)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where MLflow's view of the runs is written."""

    name: str = key("mlflow", neutral="mlflow", registry="tracker")
    uri: str = key("", neutral="")
    register: str = key("best", neutral="best", choices=("best", "none"))


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """How a sweep's runs are spread over processes."""

    name: str = key("ray_tune", neutral="ray_tune", registry="executor")
    workers: int = key(0, neutral=0, minimum=0)
    gpus_per_run: float = key(0.0, neutral=0.0, minimum=0.0)
    memory_gib_per_run: float = key(0.0, neutral=0.0, minimum=0.0)
    retries: int = key(2, neutral=2, minimum=0)
    oversubscribe: bool = key(False, neutral=False)
    address: str = key("local", neutral="local")


@dataclass(frozen=True, kw_only=True)
class PathsConfig:
    """Where things lie on disk."""

    runs: str = key("runs", neutral="runs")
    cache: str = key("", neutral="")
    reports: str = key("", neutral="")


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """How far published sizes are shrunk; read by the `dim` resolver only, so it is no part of an identity itself."""

    name: str = key("local", neutral="local")
    dim_divisor: int = key(1, neutral=1, minimum=1, maximum=16)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that one training run is made of."""

    label: str = key("", neutral="", role=PLACEMENT)
    seed: int = key(1, neutral=None, role=PLACEMENT, minimum=0)
    replicates: int = key(1, neutral=1, role=PLACEMENT, minimum=1)
    device: str = key("auto", neutral="auto", role=PLACEMENT, choices=("auto", "cpu", "cuda"))
    threads: int = key(0, neutral=0, role=PLACEMENT, minimum=0)
    deterministic: bool = key(True, neutral=True, role=PLACEMENT)
    faults: list[str] = key(list, neutral=[], role=PLACEMENT)
    seeds: SeedsConfig = section(SeedsConfig)
    data: DataConfig = section(DataConfig)
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    model: ModelConfig = section(ModelConfig)
    batch: BatchConfig = section(BatchConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    schedule: ScheduleConfig = section(ScheduleConfig)
    loss: LossConfig = section(LossConfig)
    training: TrainingConfig = section(TrainingConfig)
    validation: ValidationConfig = section(ValidationConfig)
    search: SearchConfig = section(SearchConfig, role=DECODE)
    distribution: DistributionConfig = section(DistributionConfig, role=PLACEMENT)
    tracking: TrackingConfig = section(TrackingConfig, role=PLACEMENT)
    executor: ExecutorConfig = section(ExecutorConfig, role=PLACEMENT)
    paths: PathsConfig = section(PathsConfig, role=PLACEMENT)
    scale: ScaleConfig = section(ScaleConfig, role=PLACEMENT)
