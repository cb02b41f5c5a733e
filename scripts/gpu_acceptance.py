"""Does everything work on a GPU, and how fast? Within ten minutes, without a download.

    python scripts/gpu_acceptance.py                        # on the GPU that torch sees first
    python scripts/gpu_acceptance.py device=cpu size=tiny   # a rehearsal of every check, in seconds

Neither ray nor mlflow is needed; docs/gpu.md lists what is. The built-in translation task is the only data. Exit code 0
means that no check failed, 1 that one did.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # this checkout, whether it is installed or not

from nmt.arguments import exit_code, option, parse
from nmt.errors import UserError

if TYPE_CHECKING:
    from acceptance.outcome import Result
    from acceptance.setting import Setting

FORMAT_VERSION = 1

# In the order in which they are made: the most telling first, the one that may leave the GPU in disorder last.
CHECKS = {
    "device": "acceptance.device:check_device",
    "training": "acceptance.training:check_training",
    "resume": "acceptance.training:check_resume",
    "determinism": "acceptance.arithmetic:check_determinism",
    "agreement": "acceptance.arithmetic:check_agreement",
    "beam": "acceptance.decoding:check_beam",
    "bf16": "acceptance.training:check_bf16",
    "launches": "acceptance.launches:check_launches",
    "speed": "acceptance.speed:check_speed",
    "beam_speed": "acceptance.decoding:check_beam_speed",
    "staging": "acceptance.several:check_staging",
    "parameter_server": "acceptance.several:check_parameter_server",
    "ddp": "acceptance.several:check_ddp",
    "peers": "acceptance.peers:check_peers",
    "graph": "acceptance.graph:check_graph",
}


@dataclass(frozen=True, kw_only=True)
class AcceptanceOptions:
    """What the script takes."""

    device: str = option("cuda", "where the checks run; cpu rehearses all of them", choices=("cuda", "cpu"))
    size: str = option("full", "tiny: seconds, nothing is learned and no score demanded", choices=("full", "tiny"))
    only: list[str] = option(list, "these checks only", choices=tuple(CHECKS))
    minutes: float = option(10.0, "time for all checks; those that would begin later are skipped", minimum=0.0)
    threads: int = option(0, "CPU threads; 0: all cores", minimum=0)
    work: str = option("", "directory for runs and prepared data (default: a temporary one)")
    report: str = option("", "file for the report in Markdown, which is printed in any case")
    json: str = option("", "file for all figures")


def main(argv: Sequence[str]) -> int:
    """Check, and print the report; returns the exit code."""
    options = parse(
        AcceptanceOptions,
        argv,
        verb="python scripts/gpu_acceptance.py",
        summary="Does everything work on a GPU, and how fast? Ten minutes, no download.",
    )
    return _run(options)


def _run(options: AcceptanceOptions) -> int:
    import torch
    from acceptance.outcome import FAIL, markdown
    from acceptance.setting import Setting

    from nmt.environment import available_cores

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU", where="device", hint="device=cpu rehearses the checks")
    with _writing(options.report, "report") as report, _writing(options.json, "json") as figures:
        with _work_directory(options.work) as work:
            setting = Setting(
                device=options.device,
                tiny=options.size == "tiny",
                work=work,
                threads=options.threads or available_cores(),
                deadline=time.monotonic() + 60 * options.minutes,
            )
            results = [_check(name, setting) for name in CHECKS if name in (options.only or CHECKS)]
        where = "a GPU" if setting.on_gpu else "a CPU: a rehearsal, which says nothing about a GPU"
        text = markdown(f"Acceptance on {where}", results)
        print(text, end="")
        report.write(text)
        content = {"format_version": FORMAT_VERSION, "device": options.device, "size": options.size}
        json.dump(content | {"checks": {result.name: result.to_dict() for result in results}}, figures, indent=1)
    return 1 if any(result.verdict == FAIL for result in results) else 0


def _check(name: str, setting: Setting) -> Result:
    """Make one check; whatever breaks it is a failure of this check and of no other."""
    from acceptance.outcome import FAIL, PASS, SKIPPED, Outcome, Result, Skipped

    from distributed.strategy import load

    if time.monotonic() > setting.deadline:
        return Result(name, SKIPPED, 0.0, Outcome(), "no time was left")
    print(f"{name} ...", file=sys.stderr, flush=True)
    begin = time.monotonic()
    outcome, reason = Outcome(), ""
    try:
        outcome = load(CHECKS[name])(setting)
        verdict = PASS if all(outcome.demands.values()) else FAIL
    except Skipped as skipped:
        verdict, reason = SKIPPED, str(skipped)
    except Exception as error:  # a GPU may break in ways that nobody has foreseen
        traceback.print_exc()
        verdict, reason = FAIL, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    seconds = time.monotonic() - begin
    print(f"{name}: {verdict}, {seconds:.1f} s", file=sys.stderr, flush=True)
    return Result(name, verdict, seconds, outcome, reason)


@contextlib.contextmanager
def _work_directory(name: str) -> Iterator[Path]:
    if name:
        path = Path(name).expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="gpu-acceptance-") as temporary:
        yield Path(temporary)


@contextlib.contextmanager
def _writing(name: str, key: str) -> Iterator[IO[str]]:
    """A file that can be written, opened before minutes are spent; without a name what is written is lost."""
    from nmt.data.streams import refused

    with refused(name, key):
        file = Path(name or os.devnull).expanduser().open("w", encoding="utf-8")
    with file:
        yield file


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
