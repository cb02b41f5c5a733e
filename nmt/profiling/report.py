"""A profile as text: a name, a figure and a remark a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nmt.profile import Profile
    from nmt.profiling.costs import Costs
    from nmt.profiling.phases import Measurements

Line = tuple[str, str, str]


def report(profile: Profile) -> str:
    """All that was counted and measured, and what was left out."""
    machine, costs, measured = profile.machine, profile.costs, profile.measured
    sections = [_machine(profile), _parts("parameters", costs.parameters, "{:,}"), _operations(costs)]
    if measured:
        sections += [_memory(measured, machine["device"]), _time(measured, costs)]
    else:
        what = f"in fp32, of a micro-batch of {costs.shape.sentences} sentences"
        sections += [
            _section("memory", [("activations", _mega(costs.activation_bytes), what)]),
            f"times, and memory beside that, are left out: {profile.left_out}",
        ]
    return "\n\n".join(sections)


def _machine(profile: Profile) -> str:
    machine = profile.machine
    threads = f"{machine['threads']} of {machine['cores']} cores, load {machine['load']:.1f} before"
    return f"{profile.label or 'a configuration'}: {machine['processor']}, {machine['precision']}, {threads}"


def _operations(costs: Costs) -> str:
    shape = costs.shape
    stages = {**costs.forward, "backward": costs.backward}
    lines = [
        (name, f"{count / shape.target_tokens / 1e6:,.2f} M", _share(count, stages)) for name, count in stages.items()
    ]
    lines += [
        ("training", f"{costs.training_per_token / 1e6:,.2f} M", ""),
        ("decoding", f"{costs.decoding_per_token / 1e6:,.2f} M", f"for a token of the output, beam {costs.beam}"),
    ]
    lengths = f"{shape.source_length} source and {shape.target_length} target tokens a sentence"
    return _section(f"operations for each target token, with {lengths}", lines)


def _memory(measured: Measurements, device: str) -> str:
    sizes = {**measured.state_bytes, "gradients": measured.state_bytes["parameters"]}
    lines = [(name, _mega(size), "") for name, size in sizes.items()]
    peak = "of this process, libraries included" if device == "cpu" else "allocated on the GPU"
    lines += [
        ("activations", _mega(measured.activation_bytes), "of one micro-batch, kept for its backward pass"),
        ("peak", _mega(measured.peak_bytes), peak),
    ]
    return _section("memory", lines)


def _time(measured: Measurements, costs: Costs) -> str:
    milliseconds = {name: 1000 * seconds for name, seconds in measured.phases.items()}
    speed = measured.tokens_per_second
    attention = 1000 * sum(measured.attention.values())
    inside = (
        f"attention takes {attention:,.1f} of them, inside {', '.join(measured.attention)}\n\n" if attention else ""
    )
    return (
        _parts(f"milliseconds of a step, mean of {measured.steps}", milliseconds, "{:,.1f}")
        + f"\n\n{inside}{speed:,.0f} target tokens/s, of {measured.target_tokens:,.0f} a step (and of the source "
        f"{measured.source_tokens:,.0f}): {speed * costs.training_per_token / 1e9:,.1f} billion operations/s"
    )


def _parts(title: str, parts: Mapping[str, float], form: str) -> str:
    """Parts of a whole with their shares, and the total."""
    lines = [(name, form.format(part), _share(part, parts)) for name, part in parts.items()]
    return _section(title, [*lines, ("total", form.format(sum(parts.values())), "")])


def _section(title: str, lines: Iterable[Line]) -> str:
    rows = [f"  {name:<20}{figure:>14}  {remark}".rstrip() for name, figure, remark in lines]
    return "\n".join([title, *rows])


def _share(part: float, parts: Mapping[str, float]) -> str:
    total = sum(parts.values())
    return f"{100 * part / total:5.1f} %" if total else ""


def _mega(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
