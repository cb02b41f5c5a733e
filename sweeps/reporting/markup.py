"""HTML elements from Python: text is escaped unless it is markup already."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that is HTML, and goes into a page as it stands."""

    __slots__ = ()


Content = str | Iterable[str]


def element(name: str, *content: Content, **attributes: object) -> Markup:
    """An element with its content: strings, or lists of them.

    Attributes are those that are not None or False; True stands for one without a value, and `_` for `-` (a trailing
    one is dropped: `class_`).
    """
    named = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    return Markup(f"<{name}{named}>{join(*content)}</{name}>")


def join(*content: Content) -> Markup:
    """Pieces one after the other: strings, or lists of them."""
    return Markup("".join(_piece(part) for part in content))


def _piece(part: Content) -> str:
    if isinstance(part, Markup):
        return part
    return escape(part) if isinstance(part, str) else "".join(map(_piece, part))


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
