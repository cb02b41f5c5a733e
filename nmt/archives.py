"""Archives of runs: compact result files, without checkpoints, that count as if the runs were in the runs directory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nmt.errors import UserError
from nmt.runs import LocalRunStore

if TYPE_CHECKING:
    from nmt.config.schema import DataConfig


class ArchivedRunStore(LocalRunStore):
    """A directory of runs with archives beside it, for reading.

    A run that has not ended in the directory itself is read from the first archive that has its result; `list_runs`
    lists those of the directory. What trains opens the directory alone: an archive is never written to.
    """

    def __init__(self, root: Path | str, archives: Iterable[Path] = ()):
        super().__init__(root)
        self.archives = tuple(archives)
        self._left: set[str] = set()

    def directory(self, run_id: str) -> Path:
        """Where the run's files can be read."""
        here = super().directory(run_id)
        if not self.archives or run_id in self._left or (here / "result.json").exists():
            return here
        archived = (archive / run_id for archive in self.archives)
        return next((path for path in archived if (path / "result.json").exists()), here)

    def is_archived(self, run_id: str) -> bool:
        """Whether the run is read from an archive."""
        return self.directory(run_id) != super().directory(run_id)

    def leave_archives(self, run_ids: Iterable[str]) -> None:
        """Read these runs from the directory alone from now on, because they are trained there again.

        An archived run has no checkpoint, so a decoding that it lacks takes another training.
        """
        self._left |= set(run_ids)


RESULTS_HELP = (
    "folders of archived runs, a,b,…: what is complete there counts as done; docs/results has those of this repository"
)


def archive_directories(text: str) -> list[Path]:
    """The directories that `results=<dir>[,<dir>]` names. Raises UserError where one does not exist."""
    return [_existing(part.strip()) for part in text.split(",") if part.strip()]


def at_usual_place(data: DataConfig) -> DataConfig:
    """The corpus where `conf/data/<name>.yaml` has it, if nothing says where it lies: an archived run does not."""
    from nmt.config.compose import compose, groups

    if data.kind != "files" or data.dir or data.name not in groups().get("data", []):
        return data
    return replace(data, dir=compose([f"data={data.name}"]).data.dir)


def _existing(text: str) -> Path:
    path = Path(text).expanduser().resolve()
    if not path.is_dir():
        raise UserError("no such directory", where=f"results={text}", hint="name a folder of archived runs")
    return path
