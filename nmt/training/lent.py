"""The model of a checkpoint, lent by the processes of a strategy where this one cannot hold it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from distributed.strategy import DistributedError, LinkError, Strategy
from nmt import registry
from nmt.config.schema import RunConfig
from nmt.data.prepare import load_tokenizers
from nmt.errors import UserError
from nmt.runs import RunStore
from nmt.search.distant import Distant, DistantModel
from nmt.training.checkpoint import LoadedModel, digest_tensors, read_checkpoint
from nmt.training.device import prepare_device
from nmt.training.fit import strategy_options
from nmt.training.workload import workload_spec


@contextmanager
def lent_model(config: RunConfig, store: RunStore, run_id: str, attempt: int, path: Path) -> Iterator[LoadedModel]:
    """A checkpoint's model, as long as the context lasts, of which this process reads a piece at a time.

    config: of the run, whose strategy is to have no whole model in this process. Raises UserError for what a person can
    mend.
    """
    content = read_checkpoint(path, lazily=True)
    source, target = load_tokenizers(path.parents[1] / "tokenizers")
    options = strategy_options(config, run_id, store.directory(run_id), attempt) | {"faults": []}
    strategy: Strategy = registry.lookup("strategy", config.distribution.name, "distribution.name")(options)
    try:
        strategy.start(workload_spec(config, prepare_device(config)))
        strategy.load_state(content)
        with strategy.evaluation_model() as model:
            yield LoadedModel(
                model=cast(Any, DistantModel(cast(Distant, model))),  # it is decoded and scored in the same way
                config=config,
                source_tokenizer=source,
                target_tokenizer=target,
                step=content["state"]["step"],
                digest=digest_tensors(content["parameters"]),
            )
    except LinkError:
        raise  # what becomes of processes and wires, nobody can mend by another word
    except DistributedError as error:
        raise UserError.of(error) from error
    finally:
        strategy.close()
