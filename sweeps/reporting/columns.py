"""The columns that a table of rows can have: what each is called, and what stands in its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nmt.errors import UserError, did_you_mean
from nmt.evaluation.catalogue import best_form
from sweeps.aggregate import RowResult, Statistics
from sweeps.process_figures import CAUSES, OTHER
from sweeps.wording import NOTHING, mean_and_sd

Cell = Callable[[RowResult, str], str]
ROW, MARKS, PUBLISHED = "row", "marks", "published"  # heads of columns whose cells are no figures of runs


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of figures.

    title: its head, in which `{metric}` stands for the metric that the sweep chooses by.
    cell: its text for a row and that metric, NOTHING where there is nothing to say; None for what the tests against the
        baseline say of all rows at once (`sweeps.reporting.significance`).
    note: a line below the table, for what the head does not say.
    """

    title: str
    cell: Cell | None
    note: str = ""


def statistics_cell(values: Statistics | None, best: str = "max") -> str:
    """`mean ± sd (max)` with two decimals; without ± for a single value. `best` is `min` for an error rate."""
    text = mean_and_sd(values)
    return text if values is None or values.sd is None else f"{text} ({getattr(values, best):.2f})"


def _score(row: RowResult, metric: str) -> str:
    return statistics_cell(row.metrics.get(metric), best_form(metric))


def _part(part: str) -> Cell:
    """One of the statistics of the score."""

    def cell(row: RowResult, metric: str) -> str:
        values = row.metrics.get(metric)
        value = None if values is None else getattr(values, part)
        return NOTHING if value is None else f"{value:.2f}"

    return cell


def _published(row: RowResult, metric: str) -> str:
    published = row.published
    if published is None or published.mean is None:
        return NOTHING
    text = f"{published.mean:.2f}"
    text += f" ± {published.std:.2f}" if published.std is not None else ""
    return text + (f" ({published.max:.2f})" if published.max is not None else "")


def _parameters(row: RowResult, metric: str) -> str:
    return NOTHING if row.parameters is None else f"{row.parameters / 1e6:.2f}"


def _mean(name: str, form: str, unit: float = 1.0) -> Cell:
    """The mean of one of a row's figures; of times, those of the timing that the table shows."""

    def cell(row: RowResult, metric: str) -> str:
        values = getattr(row, name)
        if isinstance(values, dict):
            values = values.get(row.timing)
        return NOTHING if values is None else format(values.mean / unit, form)

    return cell


def _process(name: str, form: str, unit: float = 1.0) -> Cell:
    """The mean of a figure of `sweeps.process_figures`."""

    def cell(row: RowResult, metric: str) -> str:
        values = row.processes.get(name)
        return NOTHING if values is None else format(values.mean / unit, form)

    return cell


def _same_bits(row: RowResult, metric: str) -> str:
    values = row.processes.get("same_bits")
    return NOTHING if values is None else "yes" if values.min == 1.0 else "no"


def _best(row: RowResult, metric: str) -> str:
    best = row.best_run(metric)
    return NOTHING if best is None else f"s{best.seed} @ {best.best_step:,}"


COLUMNS: dict[str, Column] = {
    "score": Column(title="test {metric}", cell=_score),
    "median": Column(title="median", cell=_part("median")),
    "min": Column(title="min", cell=_part("min")),
    "max": Column(title="max", cell=_part("max")),
    "published": Column(title=PUBLISHED, cell=_published),
    "n": Column(title="n", cell=lambda row, _: str(len(row.complete))),
    "diverged": Column(
        title="div.",
        cell=lambda row, _: str(row.diverged) if row.diverged else NOTHING,
        note="div.: replicates that diverged; they are among the n, with the score of the best checkpoint before",
    ),
    "difference": Column(title="vs baseline", cell=None),
    "p_holm": Column(title="p Holm", cell=None),
    "p_exact": Column(title="p exact", cell=None),
    "needed": Column(title="needed", cell=None),
    "parameters": Column(title="params M", cell=_parameters),
    "log_perplexity": Column(
        title="log-ppl",
        cell=_mean("log_perplexity", ".3f"),
        note="log-ppl: teacher-forced, nats per target token of the validation split, at the chosen checkpoint",
    ),
    "tokens_per_second": Column(title="tok/s", cell=_mean("tokens_per_second", ",.0f")),
    "steps": Column(title="steps", cell=_mean("steps", ",.0f"), note="steps: of the whole training"),
    "convergence_steps": Column(
        title="conv. steps", cell=_mean("convergence_steps", ",.0f"), note="conv. steps: until the chosen checkpoint"
    ),
    "convergence_tokens": Column(
        title="conv. tokens M",
        cell=_mean("convergence_tokens", ",.2f", 1e6),
        note="conv. tokens M: million target tokens until the chosen checkpoint",
    ),
    "convergence_seconds": Column(
        title="conv. s",
        cell=_mean("convergence_seconds", ",.0f"),
        note="conv. s: seconds of training until the chosen checkpoint, evaluation excluded",
    ),
    "peak_memory": Column(
        title="memory MiB",
        cell=_mean("peak_memory_bytes", ",.0f", 2**20),
        note="memory MiB: the most that a run's processes held together, on devices where they compute on GPUs",
    ),
    "energy": Column(
        title="J/1k tok",
        cell=_mean("joules_per_1000_tokens", ",.1f"),
        note="J/1k tok: joules of training for each thousand target tokens, by the counters that each host has; "
        "evaluation excluded",
    ),
    "idle": Column(
        title="idle %",
        cell=_mean("idle_workers", ".1f", 0.01),
        note="idle %: share of the time of steps that workers wait, of runs of several processes",
    ),
    "staleness": Column(
        title="staleness",
        cell=_mean("staleness", ".2f"),
        note="staleness: updates between the parameters of a gradient and those that it was applied to, on average, of "
        "asynchronous runs",
    ),
    "idle_mean": Column(
        title="nodes idle %",
        cell=_process("idle_mean", ".1f", 0.01),
        note="nodes idle %, max, causes: shares of the time of steps in which nodes neither compute nor pack, the mean "
        "over nodes and the largest; a message is not here (recv), a rule holds a node back (barrier), a peer does not "
        "take what is sent (send), or no wait that a timeline knows (other)",
    ),
    "idle_max": Column(title="max idle %", cell=_process("idle_max", ".1f", 0.01)),
    **{
        f"{cause}_{form}": Column(
            title=f"{cause.partition('_')[2]}{' max' if form == 'max' else ''} %",
            cell=_process(f"{cause}_{form}", ".1f", 0.01),
        )
        for cause in (*CAUSES, OTHER)
        for form in ("mean", "max")
    },
    "process_tokens_per_second": Column(
        title="tok/s, own cores",
        cell=_process("process_tokens_per_second", ",.0f"),
        note="tok/s, own cores: of runs of several processes that had a core each to compute on",
    ),
    "node_memory": Column(
        title="node MiB",
        cell=_process("node_memory", ",.0f", 2**20),
        note="node MiB: the most that one worker or node held, with what every process of torch holds",
    ),
    "idle_servers": Column(title="servers idle %", cell=_process("idle_servers", ".1f", 0.01)),
    "node_bytes": Column(
        title="sent kB", cell=_process("node_bytes", ",.1f", 1e3), note="sent kB: of a node in a step, on average"
    ),
    "busiest_bytes": Column(
        title="busiest kB",
        cell=_process("busiest_bytes", ",.1f", 1e3),
        note="busiest kB: of a step, what the kind of process with most to send or receive sends or receives",
    ),
    "all_bytes": Column(title="all kB", cell=_process("all_bytes", ",.1f", 1e3)),
    "losses": Column(title="losses", cell=_process("losses", ",.0f")),
    "stall": Column(
        title="stall s",
        cell=_process("stall", ".2f"),
        note="stall s: by how much the slowest step was slower than the median one; of that, recover s from the notice "
        "of the loss to the go-ahead, and detect s at most until the notice",
    ),
    "detect": Column(title="detect s", cell=_process("detect", ".2f")),
    "recover": Column(title="recover s", cell=_process("recover", ".3f")),
    "steps_lost": Column(
        title="steps lost", cell=_process("steps_lost", ",.0f"), note="steps lost: made, and made again after a loss"
    ),
    "loss_difference": Column(
        title="loss diff.",
        cell=_process("loss_difference", ".2g"),
        note="loss diff.: the largest difference of validation log-perplexity from the undisturbed row of the same "
        "training; same bits: whether parameters were the same at every evaluation",
    ),
    "same_bits": Column(title="same bits", cell=_same_bits),
    "best": Column(
        title="best",
        cell=_best,
        note="best: seed and step of the checkpoint that validation likes best; table.csv has its run id",
    ),
}
SHOWN = (
    "score", "published", "n", "diverged", "difference", "p_holm", "p_exact", "needed", "parameters", "log_perplexity",
    "tokens_per_second", "convergence_seconds", "energy", "best",
)  # fmt: skip
# What a narrow screen does without, first to go first; table.md and table.csv have it all the same.
DROPPED = (
    "best", "staleness", "idle", "peak_memory", "energy", "steps", "convergence_tokens", "convergence_steps",
    "convergence_seconds", "tokens_per_second", "log_perplexity", "parameters", "min", "max", "median", "needed",
    "p_exact",
)  # fmt: skip
COLUMNS_HELP = "columns of the table beside row and marks, a,b,… or all; unset: the usual ones"


def choose_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns that `columns=` names, in its order: all for `all`, the usual ones where it names none.

    Raises UserError for one that does not exist.
    """
    if not names:
        return SHOWN
    if list(names) == ["all"]:
        return tuple(COLUMNS)
    for name in names:
        if name not in COLUMNS:
            allowed = [*COLUMNS, "all"]
            raise UserError(
                f"unknown column '{name}'", where="columns", allowed=allowed, hint=did_you_mean(name, allowed)
            )
    return tuple(dict.fromkeys(names))
