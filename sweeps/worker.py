"""What an executor hands to a process: a list of runs, trained one after the other, and what became of them."""

from __future__ import annotations

import dataclasses
import json
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nmt import registry
from nmt.config import RunConfig, from_dict
from nmt.errors import UserError
from nmt.events import record_death
from nmt.runs import LeaseLostError, LocalRunStore, RunBusyError, RunStore
from sweeps.apart import own_id

if TYPE_CHECKING:
    from nmt.training.observers import Observer

TRAINER = "nmt.train:train"


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """Runs for one process, as plain data.

    `configs` are dictionaries of `nmt.config.to_dict`, one for each of `run_ids`; a run id may stand twice, for two
    searches with one training. An executor fills in `timing` (`exclusive` or `shared`) and `threads` (CPU threads of a
    run) when it knows how many runs share the machine. `trainer` is an importable function with the signature of
    `nmt.train.train`.
    """

    title: str
    run_ids: tuple[str, ...]
    configs: tuple[dict[str, Any], ...]
    timing: str = "exclusive"
    threads: int = 1
    trainer: str = TRAINER

    @property
    def distribution(self) -> dict[str, Any]:
        """The section `distribution` of its runs, which are one training."""
        return dict(self.configs[0]["distribution"])

    def pack(self) -> str:
        """The item as a text, for a process that is handed many and needs one."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def unpack(cls, text: str) -> WorkItem:
        """The item that `pack` made a text of."""
        data = json.loads(text)
        return cls(**data | {"run_ids": tuple(data["run_ids"]), "configs": tuple(data["configs"])})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run; `retry` says whether starting it again may help (a user's mistake stays one)."""

    run_id: str
    state: str
    error: str = ""
    retry: bool = False


def run_work_item(item: WorkItem, observer: Observer | None = None) -> list[Outcome]:
    """Train the item's runs in this process, one after the other. Raises nothing: an error is an outcome.

    `observer` watches the runs. A run that is interrupted ends the item, since the process has been asked to stop.
    """
    outcomes: list[Outcome] = []
    watched = {} if observer is None else {"observer": observer}
    for run_id, data in zip(item.run_ids, item.configs, strict=True):
        config = from_dict(data)
        config = dataclasses.replace(config, threads=config.threads or item.threads)
        store = LocalRunStore(config.paths.runs)
        try:
            ended = _train(item, config, store, run_id, watched)
            outcomes.append(Outcome(run_id=run_id, state=ended.state))
        except RunBusyError as error:
            outcomes.append(Outcome(run_id=run_id, state="running", error=str(error)))
        except UserError as error:
            record_failure(store, own_id(run_id), str(error))
            outcomes.append(Outcome(run_id=run_id, state="failed", error=str(error)))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            record_failure(store, own_id(run_id), reason, details=traceback.format_exc())
            outcomes.append(Outcome(run_id=run_id, state="failed", error=reason, retry=True))
        if outcomes[-1].state == "interrupted":
            break
    return outcomes


def _train(item: WorkItem, config: RunConfig, store: RunStore, run_id: str, watched: dict[str, Any]) -> Any:
    train = registry.load(item.trainer)
    try:
        return train(config, timing=item.timing, **watched)
    except LeaseLostError:
        raise
    except RunBusyError:
        if not store.outlives_holder(own_id(run_id)):
            raise
        return train(config, timing=item.timing, **watched)  # the node that held the run is dead


def record_failure(store: RunStore, run_id: str, reason: str, details: str = "") -> None:
    """Write state `failed` with its reason into the run directory, and the traceback beside it as `error.txt`.

    A run that ended or that another process has taken over meanwhile is left alone, and so is a disk that refuses:
    the outcome carries the reason too. Of an attempt that died without a word, the end is put down in events.jsonl, and
    the status keeps its process and last sign of life.
    """
    try:
        with store.unclaimed(run_id) as dead:
            if dead is not None:
                record_death(store, run_id, dead, "killed", reason)
            status = store.status(run_id)
            if status.state in ("finished", "diverged"):
                return
            failed = dataclasses.replace(status, state="failed", error=reason)
            if dead is None:
                store.set_status(run_id, failed)
            else:
                seen = max(status.heartbeat, dead.heartbeat)
                of_the_dead = {"pid": dead.pid, "host": dead.host, "heartbeat": seen, "attempts": dead.attempt}
                store.write_json(run_id, "status.json", dataclasses.asdict(failed) | of_the_dead)
            if details:
                store.write_text(run_id, "error.txt", details)
    except (UserError, OSError):
        return


def summarise(outcomes: list[Outcome]) -> str:
    """One line for the failures among outcomes, empty where there are none."""
    return "; ".join(f"{outcome.run_id}: {outcome.error}" for outcome in outcomes if outcome.state == "failed")
