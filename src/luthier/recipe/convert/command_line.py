"""The options of a training script, as they stand in a shell script."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import UserError
from luthier.yaml_text import parse_yaml

_ASSIGNED = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(\S*|'[^']*'|\"[^\"]*\")")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_CONTINUED = re.compile(r"\\[ \t]*\n")
_COMMANDS = ("llamafactory-cli", "trl", "axolotl")
_TRAINING = ("train", "sft")  # the subcommands of those
_LAUNCHED = ("num_processes", "nproc_per_node", "num_gpus", "n_gpus")
_MACHINES = ("nnodes", "num_machines")  # `accelerate` counts processes over all of them


@dataclass(frozen=True)
class CommandLine:
    """A command that trains.

    Attributes:
        program: the script, or the command and its subcommand.
        options: of the program, values read as YAML.
        launcher: options of what starts it (``accelerate launch``).
        processes: that it starts, all machines together.
    """

    program: str
    options: dict[str, Any]
    launcher: dict[str, Any]
    processes: int
    files: tuple[str, ...]


def parse_command(text: str, origin: str) -> CommandLine | None:
    """The first command of a script that trains, None where there is none.

    Raises:
        UserError: quotes do not match, an option has no name, or a variable has no value.
    """
    variables: dict[str, str] = {}
    for line in _CONTINUED.sub(" ", text).splitlines():
        line = line.strip().removeprefix("$ ")
        assigned = _ASSIGNED.fullmatch(line)
        if assigned:
            variables[assigned[1]] = _filled(assigned[2].strip("'\""), variables)
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{origin}: not a shell command: {error}") from None
        start = _program(words)
        if start is not None:
            return _command([_filled(word, variables) for word in words], start, origin)
    return None


def _program(words: Sequence[str]) -> int | None:
    """Where the program begins."""
    for number, word in enumerate(words):
        name = word.rpartition("/")[2]
        if name.endswith(".py"):
            return number
        if name in _COMMANDS and number + 1 < len(words) and "-" not in words[number + 1][:1]:
            return number
    return None


def _filled(word: str, variables: dict[str, str]) -> str:
    return _VARIABLE.sub(lambda v: variables.get(v[1] or v[2], v[0]), word)


def _command(words: list[str], start: int, origin: str) -> CommandLine:
    first = start + 1
    if words[start].endswith(".py"):
        program = words[start]
    else:
        program, first = f"{words[start]} {words[start + 1]}", start + 2
    launcher, _ = _options(words[:start], origin)
    options, files = _options(words[first:], origin)
    processes = 1
    for name in _LAUNCHED:
        processes = max(processes, _count(launcher.get(name)))
    if "num_processes" not in launcher:
        for name in _MACHINES:
            processes *= _count(launcher.get(name))
    return CommandLine(program, options, launcher, processes, tuple(files))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1


def _options(words: Sequence[str], origin: str) -> tuple[dict[str, Any], list[str]]:
    """Options by name, and the words that belong to none."""
    given: dict[str, list[str]] = {}
    loose: list[str] = []
    name = None
    for word in words:
        if word in ("&&", ";", "|", "&", ">", "2>&1", ">>"):
            break
        if re.match(r"--?[A-Za-z]", word):
            name, equals, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            given[name] = [value] if equals else []
        elif name is None:
            loose.append(word)
        else:
            given[name].append(word)
    return {name: _value(name, values, origin) for name, values in given.items()}, loose


def _value(name: str, words: list[str], origin: str) -> Any:
    for word in words:
        if missing := _VARIABLE.search(word):
            raise UserError(
                f"{origin}: --{name} is {word}, and the file does not say what {missing[0]} is"
            )
    values = [parse_yaml(word, f"{origin}, --{name}") for word in words]
    if not values:
        return True
    return values[0] if len(values) == 1 else values
