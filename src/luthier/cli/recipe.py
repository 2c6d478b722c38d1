"""`luthier recipe new | convert | explain | schema`."""

import shlex
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.prompt import Confirm, Prompt
from rich.table import Table
from rich.text import Text

from luthier.cli.app import Json, Overrides, app, err, out, print_json, split_list
from luthier.errors import UserError
from luthier.files import write_text
from luthier.recipe import MethodName, Recipe, as_recipe, parse_overrides
from luthier.recipe.convert import TOOLS, Converted, convert_recipe
from luthier.recipe.convert.writing import converted_recipe
from luthier.recipe.json_schema import json_schema_text
from luthier.recipe.keys import Key, all_keys, find_key, group_purpose, yaml_value
from luthier.recipe.schema import groups
from luthier.recipe.starter import next_commands, starter_recipe

recipe = typer.Typer(
    no_args_is_help=True,
    help="Recipes: write or convert one, explain its keys, their schema for editors.",
)
app.add_typer(recipe, name="recipe")

# By key: what is asked, and the answer that Enter gives.
_QUESTIONS = {
    "model.source": (
        "Which model? A name from `luthier models list`, a folder, a .gguf file or a hub id",
        "smollm2-135m",
    ),
    "data.train": ("Where is the training data? Files or folders, separated by commas", "my.jsonl"),
    "data.validation": (
        "Where is the validation data? Enter: hold out a tenth of the training data",
        "",
    ),
    "method.name": (f"Which method? {', '.join(get_args(MethodName))}", "lora"),
    "data.max_length": ("How many tokens may a row have at most?", "1024"),
    "run.name": ("What is the run called? Enter: a name is made from the recipe", ""),
}


@recipe.command()
def new(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Known name, folder, .gguf file or hub id.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Training data: file, folder or pattern. Repeatable.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Validation data; default: a tenth of --data.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="full, lora or qlora.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    overrides: Overrides = None,
    path: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("recipe.yaml"),
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: use the default answers.")
    ] = False,
) -> None:
    """Write a recipe in which each line says what it does.

    In a terminal it asks what the options do not answer. Without one, or with `--yes`, it uses the
    default answers. A file that exists is overwritten only if you say so.

    Examples: `luthier recipe new`, or `luthier recipe new --data my.jsonl --method qlora --out q.yaml`
    """
    talks = sys.stdin.isatty() and err.is_terminal and not yes
    if path.exists() and not (
        talks and Confirm.ask(f"{path} exists. Overwrite it?", default=False, console=err)
    ):
        raise UserError(f"{path} exists; give another file with --out, or delete it")
    options = {
        "model.source": model,
        "data.train": _one_or_many(data) if data else None,
        "data.validation": validation,
        "method.name": method,
        "data.max_length": max_length,
        "run.name": name,
    }
    changes = parse_overrides(overrides or [])
    for key, value in options.items():
        if value is not None:
            _put(changes, key, value)
    if not talks and not yes and "train" not in changes.get("data", {}):
        raise UserError(
            "there is no training data: give --data FILE, or --yes to write my.jsonl as a placeholder"
        )
    described = _complete(changes, talks)
    write_text(path, starter_recipe(described, path))
    for line in (f"{path} written; next:", *(f"  {c}" for c in next_commands(described, path))):
        out.print(line, highlight=False, markup=False, soft_wrap=True)


@recipe.command()
def convert(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A YAML, JSON or shell file; see below.")
    ],
    tool: Annotated[
        str | None,
        typer.Option("--from", help=f"{', '.join(TOOLS)}. Default: what the file looks like."),
    ] = None,
    overrides: Overrides = None,
    out_path: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path(
        "recipe.yaml"
    ),
    as_json: Json = False,
) -> None:
    """Make a recipe of a LLaMA-Factory or Axolotl YAML file, or of TRL's arguments.

    TRL's arguments are a JSON or YAML file of SFTConfig and LoraConfig, or a file with the command
    line (`accelerate launch sft.py --learning_rate 2e-4 …`). It lists what was taken over, and what
    has no counterpart and why. A file that exists is not overwritten.

    Example: `luthier recipe convert llama3_lora_sft.yaml --out recipe.yaml`
    """
    if out_path.exists():
        raise UserError(f"{out_path} exists; give another file with --out, or delete it")
    done = convert_recipe(path, tool, overrides or [], out_path)
    write_text(out_path, converted_recipe(done, path, out_path))
    commands = [*done.commands, *next_commands(done.recipe, out_path)]
    if as_json:
        entries = [asdict(entry) for entry in done.entries]
        told = {"from": done.tool, "out": str(out_path), "settings": entries}
        print_json({**told, "commands": commands})
        return
    _show_converted(done)
    for line in (f"{out_path} written; next:", *(f"  {command}" for command in commands)):
        out.print(line, highlight=False, markup=False, soft_wrap=True)


@recipe.command()
def explain(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[KEY]", help="A key (train.learning_rate) or a group; default: all."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain a key of recipes: meaning, type, default, allowed values. Without KEY list them all.

    Examples: `luthier recipe explain`, or `luthier recipe explain train.learning_rate`
    """
    if path is not None and path not in groups():
        key = find_key(path)
        if as_json:
            print_json(_as_json(key))
        else:
            _show_key(key)
        return
    keys = [key for key in all_keys() if path in (None, key.group)]
    if as_json:
        print_json([_as_json(key) for key in keys])
        return
    for group in dict.fromkeys(key.group for key in keys):
        table = Table("key", "default", "meaning", title=f"{group}: {group_purpose(group)}")
        table.title_justify = "left"
        table.columns[0].no_wrap = True
        for key in keys:
            if key.group == group:
                table.add_row(*map(Text, (key.path, key.usual, key.description)))
        out.print(table)


@recipe.command()
def schema(
    path: Annotated[Path | None, typer.Option("--out", help="Write it to this file.")] = None,
) -> None:
    """Print the JSON Schema of recipes, by which editors complete and check them.

    A recipe names it in its first line: `# yaml-language-server: $schema=FILE`. Recipes
    that luthier writes already do.
    """
    if path is None:
        print(json_schema_text(), end="")
    else:
        write_text(path, json_schema_text())


def _show_converted(done: Converted) -> None:
    taken = Table(title="taken over", title_justify="left")
    for name in ("there", "here"):  # a key that is cut off says nothing
        taken.add_column(name, overflow="fold")
    for entry in done.of("taken", "default"):
        here = Text("\n".join(f"{key}: {yaml_value(value)}" for key, value in entry.keys.items()))
        if entry.note:
            here.append(f"\n{entry.note}" if entry.keys else entry.note, style="dim")
        default = " (its default)" if entry.outcome == "default" else ""
        taken.add_row(Text(f"{entry.name}: {_short(entry.value)}{default}"), here)
    out.print(taken)
    for outcome, title in (("no counterpart", "no counterpart"), ("not needed", "not needed here")):
        table = Table("there", "value", "why", title=title, title_justify="left")
        for entry in done.of(outcome):
            table.add_row(*map(Text, (entry.name, _short(entry.value), entry.note)))
        if table.rows:
            out.print(table)


def _short(value: Any) -> str:
    return textwrap.shorten(yaml_value(value), 60, placeholder=" …")


def _put(changes: dict[str, dict[str, Any]], key: str, value: Any) -> None:
    group, _, name = key.partition(".")
    changes.setdefault(group, {})[name] = value


def _complete(changes: dict[str, dict[str, Any]], talks: bool) -> Recipe:
    """The recipe of the given answers and, for the rest, of those typed now or the defaults."""
    least = {"model": {"source": "m"}, "data": {"train": "t"}}  # where it is not answered yet
    described = as_recipe(least, **changes)  # a wrong option is told before anything is asked
    for key, (question, usual) in _QUESTIONS.items():
        group, _, name = key.partition(".")
        if name in changes.get(group, {}):
            continue
        while True:
            typed = Prompt.ask(question, default=usual, console=err) if talks else usual
            value: Any = typed.strip() or None
            if key == "data.train":
                value = _one_or_many(split_list(typed))
            try:
                described = described.changed(**{group: {name: value}})
                break
            except UserError as error:
                if not talks:
                    raise
                err.print(str(error), style="yellow", markup=False, highlight=False)
    return described


def _one_or_many(sources: list[str]) -> str | list[str]:
    return sources[0] if len(sources) == 1 else sources


def _as_json(key: Key) -> dict[str, Any]:
    return {"key": key.path, **asdict(key)}


def _show_key(key: Key) -> None:
    table = Table(show_header=False, title=key.path, title_justify="left", title_style="bold")
    table.add_row("meaning", Text(key.description))
    table.add_row("type", Text(key.type))
    table.add_row("default", Text(key.usual))
    if key.allowed:
        table.add_row("allowed", Text(key.allowed))
    table.add_row("example", Text(f"--set {shlex.quote(f'{key.path}={key.example}')}"))
    out.print(table)
