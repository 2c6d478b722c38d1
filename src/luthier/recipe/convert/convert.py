"""A configuration of another tool, read and made into a recipe."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.recipe.changes import merge
from luthier.recipe.convert import axolotl, llama_factory, trl
from luthier.recipe.convert.command_line import CommandLine, parse_command
from luthier.recipe.convert.conversion import Conversion, Entry
from luthier.recipe.elsewhere import AXOLOTL, FACTORY, TRL, tool_of
from luthier.recipe.reading import parse_overrides
from luthier.recipe.schema import Recipe
from luthier.yaml_text import parse_yaml

# As `--from` takes them.
TOOLS = {"llama-factory": FACTORY, "axolotl": AXOLOTL, "trl": TRL}
_RULES = {"llama-factory": llama_factory, "axolotl": axolotl, "trl": trl}

# Groups that programs write around the settings of TRL and PEFT.
_WRAPPERS = {
    *("sft_config", "training_args", "training_arguments", "args", "script_args", "model_args"),
    *("model_config", "peft_config", "lora_config", "quantization_config", "bnb_config"),
    "model_init_kwargs",
}
_PROGRAMS = {
    "llamafactory-cli train": "llama-factory",
    "trl sft": "trl",
    "axolotl train": "axolotl",
}
_OTHER_SCRIPTS = ("dpo", "grpo", "kto", "orpo", "ppo", "reward", "rloo")
_ONE_PROCESS = "of what starts the processes; a run is one"


@dataclass(frozen=True)
class Converted:
    """A recipe, and what became of each setting.

    Attributes:
        tool: as ``--from`` takes it.
        commands: what must be typed before the recipe can be used.
    """

    tool: str
    recipe: Recipe
    entries: list[Entry]
    commands: list[str]

    def of(self, *outcomes: str) -> list[Entry]:
        """The settings that ended so."""
        return [entry for entry in self.entries if entry.outcome in outcomes]


def convert_recipe(file: Path, tool: str | None, overrides: Sequence[str], out: Path) -> Converted:
    """The recipe that means what a configuration of another tool means.

    Args:
        tool: a key of ``TOOLS``; None: the file shows it.
        overrides: ``group.key=value``, for what the file does not say.
        out: where the recipe will be; files of converted data are named after it.

    Raises:
        UserError: the file cannot be read, is no such configuration or of another kind of training,
            or it names no model or no data.
    """
    if tool is not None and tool not in TOOLS:
        raise UserError(f"unknown tool '{tool}'; known: {', '.join(TOOLS)}")
    settings = _read(file)
    tool = tool or settings.tool or _detected(settings.said, file)
    c = Conversion(TOOLS[tool], file, out, settings.said)
    usual = _RULES[tool].convert(c, settings.processes)
    c.rest()
    for name, value in settings.launcher.items():
        c.entries.append(Entry(f"--{name}", value, "not needed", note=_ONE_PROCESS))
    for key, default in usual.items():
        there = default.value if default.there is None else default.there
        c.default(default.name, there, {key: default.value})
    _patience(c)
    c.without_ours()
    tree = merge(c.tree, parse_overrides(overrides), str(file))
    for group, key, what in (("model", "source", "model"), ("data", "train", "training data")):
        if key not in tree.get(group, {}):
            raise UserError(f"{file} names no {what}; add --set {group}.{key}=…")
    recipe = Recipe.from_tree(tree, f"{file}, as a recipe")
    recipe.check_names(str(file))
    return Converted(tool, recipe, c.entries, c.commands)


@dataclass(frozen=True)
class _Settings:
    """What a file says.

    Attributes:
        processes: that train together.
        tool: where a command names it.
        launcher: options of what starts the processes.
    """

    said: dict[str, Any]
    processes: int = 1
    tool: str | None = None
    launcher: Mapping[str, Any] = field(default_factory=dict)


def _read(file: Path) -> _Settings:
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if file.suffix not in (".yaml", ".yml", ".json"):
        command = parse_command(text, str(file))
        if command is not None:
            return _of_command(command, file)
    settings = _json(text, file) if file.suffix == ".json" else parse_yaml(text, str(file))
    if not isinstance(settings, Mapping):
        raise UserError(f"{file} has neither settings by name nor a command that trains")
    return _Settings(_unwrapped(settings, file))


def _json(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None


def _of_command(command: CommandLine, file: Path) -> _Settings:
    options = dict(command.options)
    if "config" in options:  # TRL: a file of settings, which options go before
        inner = file.parent / str(options.pop("config"))
        options = {**_read(inner).said, **options}
    elif command.files and not options:
        raise UserError(
            f"{file} trains by {command.files[0]}; convert that: "
            f"`luthier recipe convert {command.files[0]}`"
        )
    name = Path(command.program).stem
    if any(part in name for part in _OTHER_SCRIPTS):
        raise UserError(
            f"{file} runs {command.program}, which is not supervised fine-tuning; nothing is written"
        )
    if name.startswith("unsloth"):
        options = {**trl.UNSLOTH_SCRIPT, **options}
    tool = _PROGRAMS.get(command.program)
    return _Settings(options, command.processes, tool, command.launcher)


def _detected(said: Mapping[str, Any], file: Path) -> str:
    known = tool_of(said)
    if known is None:
        raise UserError(
            f"{file} is no configuration of LLaMA-Factory, Axolotl or TRL that Luthier recognises; say "
            f"which it is with --from ({', '.join(TOOLS)})"
        )
    return next(name for name, tool in TOOLS.items() if tool == known)


def _unwrapped(settings: Mapping[Any, Any], file: Path) -> dict[str, Any]:
    """Settings of groups such as ``sft_config`` one level up."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = value if name in _WRAPPERS and isinstance(value, Mapping) else {name: value}
        for key, each in inner.items():
            if str(key) in found and found[str(key)] != each:
                raise UserError(f"{file} says twice what '{key}' is")
            found[str(key)] = each
    return found


def _patience(c: Conversion) -> None:
    held_out = c.tree.get("data", {})
    share = held_out.get("validation_fraction")
    if c.has("train.early_stopping_patience") and not share and "validation" not in held_out:
        patience = c.tree["train"].pop("early_stopping_patience")
        c.entries = [e for e in c.entries if "train.early_stopping_patience" not in e.keys]
        c.lose("early_stopping_patience", "no rows are held out to watch", value=patience)
