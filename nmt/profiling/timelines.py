"""What the processes of a trained run spent their time on: a picture, a Chrome trace and a table of shares."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.strategy import DistributedError, load
from nmt.errors import UserError
from nmt.runs import RunStore
from nmt.training.journals import FOLDER

PICTURE, TRACE = "timeline.png", "timeline.json"
_COLUMNS = ("busy", "copy", "wait_recv", "wait_barrier", "wait_send", "other", "idle")


@dataclass(frozen=True)
class DrawnTimelines:
    """What was drawn of a run.

    steps: the first and the last step in the picture; None where no step was noted.
    shares: by process, the share of the whole attempt's wall time of every kind, of `other` and of `idle`.
    oversubscribed: processes whose busy thread was held from its core, so that shares are not the algorithm's.
    """

    run_id: str
    steps: tuple[int, int] | None
    shares: Sequence[tuple[str, Mapping[str, float]]]
    oversubscribed: Sequence[str]
    picture: Path
    trace: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `format=json` prints it."""
        return {
            "format_version": 1,
            "run_id": self.run_id,
            "steps": self.steps,
            "shares": {process: dict(shares) for process, shares in self.shares},
            "oversubscribed": list(self.oversubscribed),
            "picture": str(self.picture),
            "trace": str(self.trace),
        }

    def report(self) -> str:
        """The table of shares, and where the files are."""
        width = max(len(process) for process, _ in self.shares)
        names = [name.replace("_", " ") for name in _COLUMNS]
        lines = [
            f"{self.run_id}: shares of the last attempt's time, evaluations included",
            "",
            "  ".join([" " * width, *(f"{name:>12}" for name in names)]),
            *(
                "  ".join([f"{process:<{width}}", *(f"{100 * shares[name]:>10.1f} %" for name in _COLUMNS)])
                if shares
                else f"{process:<{width}}  ended before it wrote its times down"
                for process, shares in self.shares
            ),
            "",
        ]
        if self.oversubscribed:
            lines.append(
                f"cores were shared: {', '.join(self.oversubscribed)}; their busy time holds waiting for a core"
            )
        shown = f"steps {self.steps[0]} to {self.steps[1]}" if self.steps else "everything recorded"
        return "\n".join([*lines, f"{shown}: {self.picture}", f"for Perfetto: {self.trace}"])


def draw_timelines(store: RunStore, run_id: str, *, steps: int = 0, out: str = "") -> DrawnTimelines:
    """Draw the last `steps` recorded steps of a run (0: all) into the run, or into the directory `out`.

    Raises UserError for a run that has no timelines, and for one whose timelines are damaged or of another format.
    """
    read, lay, cut, numbers, chrome = (
        load(f"distributed.timeline_files:{name}")
        for name in ("newest_recordings", "side_by_side", "last_steps", "step_numbers", "to_chrome_trace")
    )
    draw, summary = (load(f"distributed.timeline_picture:{name}") for name in ("draw", "summary"))
    try:
        recorded = read(store.directory(run_id) / FOLDER)
    except DistributedError as error:
        raise UserError.of(error) from error
    if not recorded:
        raise UserError(
            f"{run_id} has no timelines",
            where="run",
            hint="runs of several processes write them: distribution=parameter_server, ring_allreduce, ring_tmp, ddp",
        )
    shown = lay(cut(lay(recorded), steps))
    found = numbers(recorded)[-steps:]
    between = (found[0], found[-1]) if found else None
    title = f"{run_id}, steps {between[0]} to {between[1]}" if between else run_id
    picture, trace = draw(shown, title), json.dumps(chrome(shown)).encode()
    folder = Path(out).expanduser().absolute() if out else store.directory(run_id)
    if out:
        _write(folder, {PICTURE: picture, TRACE: trace})
    else:
        store.write_bytes(run_id, PICTURE, picture)
        store.write_bytes(run_id, TRACE, trace)
    return DrawnTimelines(
        run_id=run_id,
        steps=between,
        shares=summary(recorded),
        oversubscribed=[one.process for one in recorded if one.totals.get("oversubscribed")],
        picture=folder / PICTURE,
        trace=folder / TRACE,
    )


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        folder.mkdir(exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=f"out={folder}") from error
