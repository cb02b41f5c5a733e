"""The grammar that all verbs share: `key=value` words, declared as the fields of a frozen dataclass.

    @dataclass(frozen=True, kw_only=True)
    class TranslateOptions:
        run: str = option("", "run id or run directory")
        beam: int | None = option(None, "hypotheses a sentence; unset: as the run says", minimum=1)

    options = parse(TranslateOptions, argv, verb="nmt translate", summary="Translate text with a trained run.")

A field's type is one of str, int, float, bool and list[str], or one of these with `| None` for "not given"; of type
`tuple[str, ...]` it collects the values of a key that may stand several times. The usage text is made of the same
fields, so it cannot disagree with what is accepted.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar, overload

from nmt.errors import UserError, did_you_mean

Options = TypeVar("Options")

_HELP_WORDS = ("--help", "-h", "help")
_TYPE_NAMES: dict[Any, str] = {
    str: "TEXT",
    int: "INT",
    float: "FLOAT",
    bool: "true|false",
    list[str]: "A,B,...",
    tuple[str, ...]: "TEXT",
}


def option(default: Any, doc: str, *, key: str = "", choices: Sequence[str] = (), minimum: float | None = None) -> Any:
    """A field of an options dataclass.

    Parameters
    ----------
    default: value where the key is not given, or a function that makes it (`list`).
    doc: one line of the usage text.
    key: what is written on the command line, where that is not the field's name (`paths.runs`).
    choices: the only values allowed (of each element, for a list).
    minimum: the smallest number allowed.
    """
    metadata = {"doc": doc, "key": key, "choices": tuple(choices), "minimum": minimum}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@overload
def parse(cls: type[Options], argv: Sequence[str], *, verb: str, summary: str, epilog: str = "") -> Options: ...


@overload
def parse(
    cls: type[Options], argv: Sequence[str], *, verb: str, summary: str, epilog: str = "", rest: Literal[True]
) -> tuple[Options, list[str]]: ...


def parse(
    cls: type[Options], argv: Sequence[str], *, verb: str, summary: str, epilog: str = "", rest: bool = False
) -> Options | tuple[Options, list[str]]:
    """The options that the words of `argv` give; of a key given twice the later word counts.

    With `rest=True`, also the `key=value` words whose key is no option, untouched and in order: config overrides for
    someone else to check, but for a key that is nearly an option and none of the configuration's. `epilog` ends the
    usage text, line by line as it is (examples).

    Raises UserError for a word that is not `key=value`, an unknown key (with the nearest known ones) and a value of the
    wrong type or out of range. A help word (`--help`, `-h`) prints the usage on stdout and raises SystemExit(0).
    """
    if any(word in _HELP_WORDS for word in argv):
        sys.stdout.write(usage(cls, verb=verb, summary=summary, epilog=epilog, rest=rest))
        raise SystemExit(0)
    fields = _fields(cls)
    values: dict[str, Any] = {}
    others: list[str] = []
    for word in argv:
        key, equals, text = word.partition("=")
        name = key.lstrip("-").replace("-", "_")
        if key.startswith("-"):
            hint = f"write {name}={text or '...'}, without dashes" if name in fields else f"see `{verb} --help`"
            raise UserError("is not of the form key=value", where=word, hint=hint)
        if not equals:
            first, (kind, _) = next(iter(fields.items()), ("", (bool, None)))
            meant = f"write {first}={word}; " if kind in (str, list[str]) and key not in fields else ""
            raise UserError("is not of the form key=value", where=word, hint=f"{meant}see `{verb} --help`")
        if key in fields:
            kind, field = fields[key]
            before = values.get(field.name, ()) if kind == tuple[str, ...] else None
            values[field.name] = _value(key, text, kind, field) if before is None else (*before, text)
        elif rest:
            _refuse_nearly_an_option(word, fields)
            others.append(word)
        else:
            hint = did_you_mean(key, fields) or f"see `{verb} --help`"
            raise UserError("unknown key", where=key, allowed=sorted(fields), hint=hint)
    options = cls(**values)
    return (options, others) if rest else options


def _refuse_nearly_an_option(word: str, options: Iterable[str]) -> None:
    """Raise UserError for a misspelt option: whoever checks overrides would name keys of the configuration alone."""
    key = word.partition("=")[0]
    if not did_you_mean(key, options):
        return
    from nmt.config.compose import groups, known_keys, refuse_unknown_keys

    try:
        refuse_unknown_keys([word])
    except UserError as error:
        if error.what == "unknown key":
            hint = did_you_mean(key, [*options, *groups(), *known_keys()])
            raise UserError(error.what, where=key, hint=hint) from None


def names(cls: type[Any]) -> list[str]:
    """The keys of an options dataclass, as they are written on the command line."""
    return list(_fields(cls))


def usage(cls: type[Any], *, verb: str, summary: str, epilog: str = "", rest: bool = False) -> str:
    """The usage text: summary, one entry a key with its meaning, choices and default, then `epilog`."""
    fields = _fields(cls)
    width = min(shutil.get_terminal_size().columns, 120)
    column = max((len(_form(name, kind, field)) for name, (kind, field) in fields.items()), default=0) + 4
    column = min(column, 36)
    lines = [f"Usage: {verb} [key=value ...]{' [config overrides ...]' if rest else ''}", ""]
    lines += [*textwrap.wrap(summary, width), ""]
    for name, (kind, field) in fields.items():
        form = f"  {_form(name, kind, field)}"
        text = field.metadata.get("doc", "") + _default_note(field)
        wrapped = textwrap.wrap(text, max(width - column, 30)) or [""]
        first = f"{form:<{column}}{wrapped[0]}" if len(form) < column else f"{form}\n{'':{column}}{wrapped[0]}"
        lines += [first, *(f"{'':{column}}{line}" for line in wrapped[1:])]
    if epilog:
        lines += ["", *epilog.strip("\n").splitlines()]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _fields(cls: type[Any]) -> dict[str, tuple[Any, dataclasses.Field[Any]]]:
    hints = typing.get_type_hints(cls)
    return {
        field.metadata.get("key") or field.name: (_plain_type(hints[field.name]), field)
        for field in dataclasses.fields(cls)
    }


def _plain_type(annotation: Any) -> Any:
    """`X` of `X | None`; whether None is possible is the default's business."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = [part for part in typing.get_args(annotation) if part is not type(None)]
    if annotation not in _TYPE_NAMES:
        raise TypeError(f"an option cannot be of type {annotation}")
    return annotation


def _value(key: str, text: str, kind: Any, field: dataclasses.Field[Any]) -> Any:
    try:
        value = _READERS[kind](text)
    except ValueError:
        allowed = ["true", "false"] if kind is bool else [f"a value of type {_TYPE_NAMES[kind]}"]
        raise UserError(f"'{text}' does not fit", where=key, allowed=allowed) from None
    choices = field.metadata.get("choices", ())
    for item in value if isinstance(value, list) else [value]:
        if choices and item not in choices:
            hint = did_you_mean(str(item), choices)
            raise UserError(f"'{item}' is not a choice", where=key, allowed=list(choices), hint=hint)
    minimum = field.metadata.get("minimum")
    if minimum is not None and value < minimum:
        raise UserError(f"{value} is out of range", where=key, allowed=[f">= {minimum:g}"])
    return value


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _words(text: str) -> list[str]:
    """`a,b` or `[a,b]`; the empty text is the empty list."""
    inner = re.sub(r"^\[(.*)\]$", r"\1", text.strip())
    return [word.strip() for word in inner.split(",")] if inner.strip() else []


_READERS: dict[Any, Callable[[str], Any]] = {str: str, int: int, float: _finite, bool: _bool, list[str]: _words}


def _form(name: str, kind: Any, field: dataclasses.Field[Any]) -> str:
    return f"{name}={'|'.join(field.metadata.get('choices', ())) or _TYPE_NAMES[kind]}"


def _default_note(field: dataclasses.Field[Any]) -> str:
    if field.default in (None, "", (), dataclasses.MISSING):
        return ""
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return f" (default: {default})"


def exit_code(command: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """What a command returns for these words; a user's mistake is one line on stderr and 2."""
    try:
        return command(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
