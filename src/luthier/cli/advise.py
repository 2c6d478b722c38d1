"""`luthier advise`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.panel import Panel
from rich.prompt import Prompt
from rich.table import Table

from luthier.cli.app import Json, app, err, out, print_json
from luthier.cli.terminal import terminal
from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.api import Alternative, Answers, Decision, Question, Way

_COSTS_HELP = "Average per query, for the cost table; has a default."


@app.command()
def advise(
    metric: Annotated[
        bool | None, typer.Option(help="Is there a metric that scores an answer?")
    ] = None,
    budget: Annotated[
        bool | None, typer.Option(help="Can you spend a few days and tens of dollars?")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="one or several (unrelated).")] = None,
    few_shot: Annotated[
        str | None,
        typer.Option(
            help="Are few-shot examples good enough? enough, too_dear, not_enough, untried."
        ),
    ] = None,
    goals: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: knowledge, facts, style, behaviour, format, reasoning, cost, "
            "privacy, or none."
        ),
    ] = None,
    knowledge: Annotated[str | None, typer.Option(help="stable or changing.")] = None,
    examples: Annotated[int | None, typer.Option(help="How many good examples you have.")] = None,
    reviewed: Annotated[bool | None, typer.Option(help="Has a person read every example?")] = None,
    prompts_exhausted: Annotated[
        bool | None, typer.Option(help="Have you improved the prompt until it got no better?")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model to fine-tune.")
    ] = None,
    billions: Annotated[
        float | None, typer.Option(help="Its parameters in billions, if its name does not say.")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="GB of GPU memory; 0: none.")] = None,
    priority: Annotated[str | None, typer.Option(help="accuracy, balanced or memory.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help=_COSTS_HELP)] = None,
    completion_tokens: Annotated[int | None, typer.Option(help=_COSTS_HELP)] = None,
    context_tokens: Annotated[int | None, typer.Option(help=_COSTS_HELP)] = None,
    queries: Annotated[
        int | None, typer.Option(help="Queries per month, for the cost table.")
    ] = None,
    answers_path: Annotated[
        Path | None,
        typer.Option("--answers", help="JSON file of answers; options take precedence."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Training data, to answer the questions that it can.")
    ] = None,
    prices_path: Annotated[
        Path | None,
        typer.Option("--prices", help="YAML file of prices that replace the built-in ones."),
    ] = None,
    recipe_path: Annotated[
        Path | None,
        typer.Option("--recipe", help="If the advice is to fine-tune, write a recipe here."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether to fine-tune at all, with which method, and what the alternatives cost.

    Asks one question at a time, and only those that matter. Options answer questions in advance; in
    a script they must answer all of them. The advice comes with the rules that led to it and with
    what would change it.

    Examples: `luthier advise`, or `luthier advise --data my.jsonl --recipe my.yaml`
    """
    from luthier.api import QUESTIONS, alternatives, load_prices, parse_answers
    from luthier.api import compare_costs as compare

    typed = {key: value for key, value in locals().items() if key in QUESTIONS}
    typed["goals"] = [goal.strip() for goal in goals.split(",")] if goals else None
    prices = load_prices(prices_path)
    given: dict[str, Any] = _answers_of_data(data) if data else {}
    given |= _read_answers(answers_path) if answers_path else {}
    given |= {key: value for key, value in typed.items() if value is not None}
    answers = parse_answers(given)
    talks = sys.stdin.isatty() and err.is_terminal and not as_json
    answers, decision = _settle(answers, talks)
    if talks:
        answers = _ask_costs(answers)
    others = alternatives(answers, decision)
    ways = compare(answers, prices)
    recipe = _recipe(answers, decision, data)
    if recipe is not None and recipe_path is not None:
        from luthier.files import write_text

        write_text(recipe_path, recipe)
    if as_json:
        print_json(
            {
                "answers": answers.model_dump(mode="json", exclude_none=True),
                "outcome": decision.outcome,
                "method": decision.method,
                "rent_gb": decision.choice and decision.choice.rent,
                "path": json.loads(json.dumps([asdict(s) for s in decision.path], default=sorted)),
                "otherwise": [asdict(other) for other in others],
                "ways": [asdict(way) for way in ways],
                "recipe": recipe,
            }
        )
        return
    _show_path(decision)
    _show_others(others)
    _show_ways(ways, answers, decision)
    _show_next(recipe, recipe_path, data)


def _answers_of_data(paths: list[str]) -> dict[str, Any]:
    with terminal() as on_event:
        from luthier.api import answers_from_data

        found = answers_from_data(paths, on_event)
    said = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in found.items())
    err.print(f"from the data: {said}", highlight=False, soft_wrap=True)
    return found


def _read_answers(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the answers {path}: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(given, dict):
        raise UserError(f'{path}: answers must be one JSON object: {{"metric": true, …}}')
    return given


def _settle(answers: "Answers", talks: bool) -> "tuple[Answers, Decision]":
    """Ask until there is a decision; where nobody can be asked, say what is missing."""
    from luthier.api import QUESTIONS, Decision, decide

    asked = 0
    while not isinstance(found := decide(answers), Decision):
        if not talks:
            choices = f": {', '.join(found.choices)}" if found.choices else ""
            flag = found.key.replace("_", "-")
            form = (
                f"--{flag} or --no-{flag}" if set(found.choices) == {"yes", "no"} else f"--{flag}"
            )
            raise UserError(
                f"'{found.key}' has no answer{choices}. {found.text} Give {form}, put it in "
                "--answers FILE, or run luthier advise in a terminal"
            )
        asked += 1
        answers = _ask(found, answers, f"question {asked} (at most {len(QUESTIONS) - 4})")
    return answers, found


def _ask(question: "Question", answers: "Answers", title: str) -> "Answers":
    """Show one question, and repeat it until the answer is valid."""
    from luthier.api import parse_answers

    err.clear()
    lines = [f"[bold]{question.text}[/]", f"[dim]why: {question.why}[/]"]
    names = list(question.choices)
    if names:
        lines.append("")
        lines += [f"  {n}  {question.choices[name] or name}" for n, name in enumerate(names, 1)]
    if question.many:
        lines += ["", "[dim]choose one or more: numbers separated by commas[/]"]
    err.print(Panel("\n".join(lines), title=title, title_align="left", highlight=False))
    while True:
        typed = Prompt.ask("answer", console=err).strip()
        picked = [_name(part.strip(), names) for part in typed.split(",")]
        value: Any = picked if question.many else picked[0] if names else typed.replace(",", "")
        try:
            return parse_answers(
                answers.model_dump(exclude_none=True) | {question.key: value}, "not a valid answer"
            )
        except UserError as error:
            err.print(str(error), style="yellow", markup=False)


def _name(typed: str, names: list[str]) -> str:
    """A choice by its number, its name or its first letters."""
    if typed.isdecimal() and 1 <= int(typed) <= len(names):
        return names[int(typed) - 1]
    starting = [name for name in names if typed and name.startswith(typed.lower())]
    return starting[0] if len(starting) == 1 else typed


def _ask_costs(answers: "Answers") -> "Answers":
    """Ask what a query looks like; Enter takes the default."""
    from luthier.api import QUESTIONS, USUAL, parse_answers

    for key, usual in USUAL.items():
        while getattr(answers, key) is None:
            typed = Prompt.ask(QUESTIONS[key].text, default=f"{usual}", console=err)
            try:
                answers = parse_answers(
                    answers.model_dump(exclude_none=True) | {key: typed.replace(",", "")},
                    "not a valid answer",
                )
            except UserError as error:
                err.print(str(error), style="yellow", markup=False)
    return answers


def _recipe(answers: "Answers", decision: "Decision", data: list[str] | None) -> str | None:
    if decision.choice is None:
        return None
    from luthier.api import make_advised_recipe as make_recipe

    return make_recipe(answers, decision, data or ["my.jsonl"])


_HEADLINES = {
    "few-shot": "do not fine-tune: use few-shot prompting",
    "rag": "do not fine-tune: add retrieved documents to the prompt (RAG)",
    "hybrid": "fine-tune for style and behaviour, and add retrieved documents for the facts (RAG)",
    "fine-tune": "fine-tune",
    "prepare": "not yet: first make a test set and choose a metric",
}


def _show_path(decision: "Decision") -> None:
    by = f" — with {decision.method}" if decision.method else ""
    out.print(f"[bold green]{_HEADLINES[decision.outcome]}{by}[/]", highlight=False)
    table = Table("rule", "your answer", "conclusion", "source", show_lines=True)
    for step in decision.path:
        given = "; ".join(_said(value) for value in step.answers.values())
        finding = f"[bold]{step.finding}[/]" if step.settled else step.finding
        table.add_row(step.rule, given, finding, f"[dim]{step.source}[/]")
    out.print(table)


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    if isinstance(value, int | float):
        return f"{value:,g}"
    return str(value).replace("_", " ")


def _show_others(others: "list[Alternative]") -> None:
    if not others:
        return
    table = Table("what would change it", "if it were", "outcome")
    for other in others:
        table.add_row(
            other.key.replace("_", " "), other.instead.replace("_", " "), f"→ {other.outcome}"
        )
    out.print(table)


def _show_ways(ways: "list[Way]", answers: "Answers", decision: "Decision") -> None:
    from luthier.api import USUAL

    table = Table("", *(way.name for way in ways))
    for column, way in zip(table.columns[1:], ways, strict=True):
        column.justify = "right"
        column.style = "bold" if way.name == decision.outcome else ""
    table.add_row("set-up, days of work", *(f"{way.setup_days:,.1f}" for way in ways))
    table.add_row("set-up, labour and compute", *(f"${way.setup_cost:,.0f}" for way in ways))
    table.add_row("data", *(way.data for way in ways))
    table.add_row(
        "tokens per query, in + out", *(f"{w.tokens_in:,} + {w.tokens_out:,}" for w in ways)
    )
    table.add_row("cost of 1,000 queries", *(f"${1000 * way.cost_per_query:,.3f}" for way in ways))
    table.add_row("cost per month", *(f"${way.cost_per_month:,.2f}" for way in ways))
    table.add_row("latency per answer", *(f"{way.latency:,.2f} s" for way in ways))
    queries = answers.queries or USUAL["queries"]
    table.add_row(
        "cheaper than few-shot after",
        *("–" if way.name == "few-shot" else _after(way.pays_after, queries) for way in ways),
    )
    out.print(table)
    guessed = [key.replace("_", "-") for key in USUAL if getattr(answers, key) is None]
    if guessed:
        out.print(f"default values were used for --{', --'.join(guessed)}", style="dim")
    out.print("these prices are examples: give yours with --prices FILE", style="dim")


def _after(queries: float | None, a_month: int) -> str:
    if queries is None:
        return "never"
    months = queries / a_month
    when = f"{months:,.1f} months" if months < 120 else f"{months / 12:,.0f} years"
    return f"{queries:,.0f} queries ({when})"


def _show_next(recipe: str | None, recipe_path: Path | None, data: list[str] | None) -> None:
    if recipe is None:
        return
    if recipe_path is None:
        out.print("a recipe to start from (--recipe FILE saves it):", highlight=False)
        out.print(recipe, highlight=False, markup=False, soft_wrap=True)
        return
    files = " ".join(data or ["my.jsonl"])
    out.print("next:", highlight=False)
    for command in (f"data check {files}", f"plan {recipe_path}", f"train {recipe_path}"):
        out.print(f"  luthier {command}", highlight=False, markup=False, soft_wrap=True)
