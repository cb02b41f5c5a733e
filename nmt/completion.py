"""`nmt completion bash`: what a shell completes on TAB, found without composing a configuration or loading Hydra.

The script that is printed hands each command line back to `nmt completion query`, which prints the words that may stand
at the cursor: verbs, the options of a verb (its dataclass), config groups and keys (the schema and `conf/`), and their
values.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt import registry
from nmt.cli import VERBS
from nmt.config.compose import CONF, NOT_CONFIG, group_keys, groups, key_fields, read_yaml
from nmt.errors import UserError
from nmt.evaluation.catalogue import METRICS

SHELLS = ("bash", "zsh", "fish")
# Which config keys a verb takes beside its own options, by their beginnings; the others take none.
OVERRIDES = {
    "train": ("",),
    "sweep": ("",),
    "report": ("",),
    "claims": ("",),
    "reproduce": ("",),
    "compare": ("",),
    "power": ("",),
    "profile": ("",),
    "vocabulary": ("",),
    "evaluate": ("search", "data.dir", "data.test", "paths.cache", "scale"),
    "translate": ("search",),
    "analyse": ("",),
    "import": ("",),
    "pack": ("",),
    "variance": ("",),
    "rerun": ("data.dir", "device", "threads", "tokenizer.source_vocabulary", "tokenizer.target_vocabulary"),
}
INLINE = (("sweep", "grid"), ("sweep", "search_space"))  # options that hold `key=a,b;key=c` themselves
PATH_KEYS = ("data.dir", "paths.runs", "paths.cache", "paths.reports")
# Options that are no files, and that nobody can guess.
TEXTS = ("delimiter", "language", "uri", "address", "system", "version", "note", "digest")
ENDINGS = ("=", ".", "/", ",")  # of words that go on, so that no space follows

BASH = """\
# Completion of nmt for bash. Put this into ~/.bashrc:  eval "$(nmt completion bash)"
_nmt() {
    local IFS=$'\\n' replaced=${2-${COMP_WORDS[COMP_CWORD]}} line=${COMP_LINE:0:${COMP_POINT:-0}}
    if [[ -z $line ]]; then # called by another completion, with nothing but words, cut at = as bash cuts them
        line="${COMP_WORDS[*]:0:COMP_CWORD+1}"
        line=${line//$'\\n='/=} line=${line//=$'\\n'/=} line=${line//$'\\n'/ }
        [[ $replaced == = ]] && replaced=
    fi
    COMPREPLY=($(command nmt completion query "$line" "$replaced" 2>/dev/null))
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./,] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -F _nmt nmt
"""
ZSH = """\
# Completion of nmt for zsh. Put this into ~/.zshrc, below compinit:  eval "$(nmt completion zsh)"
_nmt() {
    local -a found
    found=("${(@f)$(command nmt completion query "${(j: :)words[1,CURRENT-1]} $PREFIX" "$PREFIX" 2>/dev/null)}")
    compadd -Q -S '' -- ${(M)found:#*[=./,]}
    compadd -Q -- ${found:#*[=./,]}
}
compdef _nmt nmt
"""
FISH = """\
# Completion of nmt for fish. Put this into ~/.config/fish/config.fish:  nmt completion fish | source
complete -c nmt -f -a '(command nmt completion query (commandline -cp) (commandline -ct))'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
USAGE = f"""\
Usage: nmt completion {"|".join(SHELLS)}

Print the script by which a shell completes verbs, options, config groups, keys, their values, sweeps and run ids.

  bash    put  eval "$(nmt completion bash)"  into ~/.bashrc
  zsh     put  eval "$(nmt completion zsh)"  into ~/.zshrc, below compinit
  fish    put  nmt completion fish | source  into ~/.config/fish/config.fish
"""


def main(argv: Sequence[str]) -> int:
    """Print a script, or the completions that it asks for; returns 0."""
    if any(word in ("--help", "-h", "help") for word in argv):
        sys.stdout.write(USAGE)
    elif len(argv) == 3 and argv[0] == "query":
        sys.stdout.write("".join(f"{word}\n" for word in answer(argv[1], argv[2])))
    elif len(argv) == 1 and argv[0] in SCRIPTS:
        sys.stdout.write(SCRIPTS[argv[0]])
    else:
        raise UserError("needs the name of a shell", where="nmt completion", allowed=SHELLS)
    return 0


def answer(line: str, replaced: str = "") -> list[str]:
    """What may take the place of `replaced`, the end of a command line that the shell cuts off and gets anew.

    Shells differ in how much of `experiment=t2_l` they call a word: bash replaces what stands behind the `=`. Words are
    quoted for the shell unless the cursor stands inside quotes.
    """
    words, current, quote = split(line)
    cut = replaced if quote and quote not in replaced else split(replaced)[1]  # bash leaves an open quote out
    keep = len(current) - len(cut) if current.endswith(cut) else 0
    found = _matching(words, current)
    while (
        quote
        and len(found) == 1
        and found[0].endswith(ENDINGS)
        and (further := _matching(words, found[0])) not in ([], found)
    ):
        found = further  # bash closes the quote behind the only word there is, though it is to go on
    return [word[keep:] if quote else quoted(word[keep:]) for word in found]


def _matching(words: Sequence[str], current: str) -> list[str]:
    return [word for word in dict.fromkeys(complete(words, current)) if word.startswith(current)]


def split(line: str) -> tuple[list[str], str, str]:
    """The words of a command line that are complete, the one at its end, and the quote that is open there, if any."""
    words, current, quote, inside = [], "", "", False
    characters = iter(line)
    for character in characters:
        if character == "\\" and quote != "'":
            current, inside = current + next(characters, ""), True
        elif quote:
            quote, current = ("", current) if character == quote else (quote, current + character)
        elif character in "'\"":
            quote, inside = character, True
        elif character.isspace():
            words += [current] if inside else []
            current, inside = "", False
        else:
            current, inside = current + character, True
    return words, current, quote


def quoted(word: str) -> str:
    """A word as a shell takes it literally; `=`, `,` and what else our words consist of mean nothing to one."""
    return re.sub(r"([^\w@%+=:,./~-])", r"\\\1", word)


def complete(words: Sequence[str], current: str) -> list[str]:
    """Words that may stand where `current` begins, after the complete `words`; some do not begin with `current`."""
    if len(words) < 2:
        return [*VERBS, "--help", "--version"]
    verb = words[1]
    if verb == "completion":
        return list(SHELLS)
    if verb not in VERBS:
        return []
    scope = _scope(verb, words)
    key, equals, text = current.partition("=")
    if equals:
        return [f"{key}={value}" for value in scope.values(key, text)]
    return [*scope.keys(current), "--help", *(["-m", "--multirun"] if verb == "train" else [])]


@dataclass(frozen=True)
class Scope:
    """What the command line of a verb may hold: its own options, and config overrides by their beginnings.

    `several` says that a key of the configuration may have several values, `runs` where run ids are looked up, `sweep`
    which sweep the command line names.
    """

    verb: str
    options: dict[str, dataclasses.Field[Any]]
    overrides: Sequence[str]
    several: bool
    runs: str
    sweep: str = ""

    def keys(self, begun: str) -> list[str]:
        """Keys that `begun` may become: options, groups, and config keys down to the next dot."""
        known = [*groups_of_runs(), *(set(key_fields()) - group_keys())]
        found = [f"{name}=" for name in self.options]
        for name in sorted(known):
            if name.startswith(tuple(self.overrides)):
                rest = name[len(begun) :] if name.startswith(begun) else name
                section, dot, _ = rest.partition(".")
                found.append(f"{name[: len(name) - len(rest)]}{section}." if dot else f"{name}=")
        return found

    def values(self, key: str, text: str) -> list[str]:
        """Values that `text` may become, with what stands before the last of several."""
        if (self.verb, key) in INLINE and (key == "grid" or re.search("[=;]", text)):
            return self._inline(text)
        if key in ("a", "b") and (labels := row_labels(self.sweep)):
            return labels
        if key in self.options:
            kind = str(self.options[key].type)
            return _with_list(
                text, "list" in kind, lambda last: _option_values(key, self.options[key], last, self.runs)
            )
        if not key.startswith(tuple(self.overrides)):
            return []
        return _with_list(text, self.several, lambda last: _config_values(key, last))

    def _inline(self, text: str) -> list[str]:
        """The rows of a grid, or a search space, that stand in one word."""
        done, semicolon, part = text.rpartition(";")
        key, equals, listed = part.partition("=")
        inner = dataclasses.replace(self, options={}, overrides=("",), several=True)
        ways = [f"{key}={value}" for value in inner.values(key, listed)] if equals else inner.keys(part)
        return [f"{done}{semicolon}{way}" for way in ways]


def _scope(verb: str, words: Sequence[str]) -> Scope:
    runs = [word.partition("=")[2] for word in words if word.partition("=")[0] in ("paths.runs", "runs")]
    sweeps = [word.partition("=")[2] for word in words if word.startswith("sweep=")]
    several = verb == "train" and any(word in ("-m", "--multirun") for word in words)
    return Scope(
        verb, options_of(verb), OVERRIDES.get(verb, ()), several, runs=(runs or [""])[-1], sweep=(sweeps or [""])[-1]
    )


def options_of(verb: str) -> dict[str, dataclasses.Field[Any]]:
    """The options of a verb by their keys: the fields of `<Verb>Options` in the module of the verb."""
    module = VERBS[verb][0].partition(":")[0]
    cls = registry.load(f"{module}:{verb.title()}Options")
    return {field.metadata.get("key") or field.name: field for field in dataclasses.fields(cls)}


def groups_of_runs() -> dict[str, list[str]]:
    """Config groups and their options, without the folders that are no part of a configuration."""
    return {name: options for name, options in groups().items() if name not in NOT_CONFIG}


def _with_list(text: str, several: bool, values: Callable[[str], Iterable[str]]) -> list[str]:
    """Values of the last of several that `text` lists, those left out that stand there already."""
    before, comma, last = text.rpartition(",") if several else ("", "", text)
    return [f"{before}{comma}{value}" for value in values(last) if not comma or value not in before.split(",")]


def _option_values(key: str, field: dataclasses.Field[Any], begun: str, runs: str) -> list[str]:
    if choices := field.metadata.get("choices"):
        return list(choices)
    kind = str(field.type)
    if kind == "bool":
        return ["true", "false"]
    if key in ("run", "a", "b"):
        return _else_files(run_ids(runs), begun)
    if key == "metric":
        return list(METRICS)
    if key == "claims":
        return list(groups()["claims"])
    if key in ("sweep", "grid", "search_space", "study"):
        return _else_files(groups()["sweep" if key == "grid" else key], begun)
    return files(begun) if "str" in kind and key not in TEXTS else []


def _config_values(key: str, begun: str) -> list[str]:
    found = list(groups_of_runs().get(key, []))
    field = key_fields().get(key)
    if field is None or found:
        return found
    if kind := field.metadata.get("registry"):
        return registry.names(kind)
    if choices := field.metadata.get("choices"):
        return list(choices)
    if field.type == "bool":
        return ["true", "false"]
    return files(begun) if field.metadata.get("file") or key in PATH_KEYS else []


def _else_files(names: list[str], begun: str) -> list[str]:
    """What has a name here and, where it begins otherwise, paths: such an option takes both."""
    return names if any(name.startswith(begun) for name in names) else files(begun)


def row_labels(sweep: str) -> list[str]:
    """The labels of a sweep's rows; none where there is no such sweep in `conf/sweep`."""
    path = CONF / "sweep" / f"{sweep}.yaml"
    return [str(row["label"]) for row in read_yaml(path).get("rows", [])] if sweep and path.is_file() else []


def run_ids(runs: str) -> list[str]:
    """Every run in the directory of runs that a command line means."""
    from nmt.runs import LocalRunStore, runs_directory

    return LocalRunStore(runs_directory(runs)).list_runs()


def files(begun: str) -> list[str]:
    """Files and folders whose paths begin with `begun`; hidden ones where a dot is given."""
    folder, slash, name = begun.rpartition("/")
    try:
        entries = sorted(os.scandir(Path(f"{folder}{slash}" or ".").expanduser()), key=lambda entry: entry.name)
    except OSError:
        return []
    shown = [entry for entry in entries if entry.name.startswith(name) and (name or not entry.name.startswith("."))]
    return [f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}" for entry in shown]
