"""What a process of a run answers when the coordinator asks for its report."""

from __future__ import annotations

from typing import Any

from distributed.process_meter import ProcessMeter
from distributed.timeline import Timeline


def process_report(timeline: Timeline, meter: ProcessMeter, **more: Any) -> dict[str, Any]:
    """The word `report`: where its time has gone, what it has used, and what else its role has to say.

    New lines of the timeline are in it, and in no later one.
    """
    return {
        "say": "report",
        "times": timeline.totals().to_dict(),
        "use": meter.to_dict(),
        "timeline": timeline.take().decode(),
        **more,
    }
