"""What the drivers of both peers do with a plain torch model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def counted(model: Any) -> dict[str, int]:
    """Parameters of a model by module, two levels deep; one that several layers share counts once."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        module = ".".join(name.split(".")[:-1][:2])
        counts[module] = counts.get(module, 0) + parameter.numel()
    return counts


def save_parameters(model: Any, path: Path) -> None:
    """Write the parameters by name."""
    import torch

    torch.save({name: parameter.detach() for name, parameter in model.named_parameters()}, path)


def load_parameters(model: Any, path: Path) -> None:
    """Copy stored parameters into those of the same names."""
    import torch

    stored = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stored[name])


@contextmanager
def counting_rows(module: Any, method: str, argument: int | str) -> Iterator[list[int]]:
    """A list whose one number grows by the first dimension of an argument at every call of a module's method.

    The argument is given by its place, or by its name where the toolkit's calls name it.
    """
    rows, original = [0], getattr(module, method)

    def called(*arguments: Any, **named: Any) -> Any:
        rows[0] += len(arguments[argument] if isinstance(argument, int) else named[argument])
        return original(*arguments, **named)

    setattr(module, method, called)
    try:
        yield rows
    finally:
        delattr(module, method)
