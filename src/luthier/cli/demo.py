"""`luthier demo`."""

import shlex
from typing import Annotated

import typer

from luthier.cli.app import Json, app, out, print_json
from luthier.cli.evaluate import show_comparison, show_samples
from luthier.cli.terminal import terminal
from luthier.cli.train import show_measured
from luthier.recipe import parse_overrides

_QUESTION = """Write the SQLite query.

boats(id, name, length, harbour)
Question: How many boats have the harbour Kiel?"""


@app.command()
def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="GROUP.KEY=VALUE", help="Override a key of its recipe."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune the small real model on text-to-SQL and show before and after.

    Some 400 questions over generated SQLite databases; the answers to 84 questions over databases
    that training never saw are executed, and count if they return what the reference returns.
    """
    from luthier.demo.play import demo_recipe, play

    recipe = demo_recipe(**parse_overrides(overrides or []))
    with terminal() as on_event:
        run, evaluation = play(recipe, on_event)
    root, measured = run.root, run.measured()
    if as_json:
        print_json(
            {
                "run": str(root),
                "measured": measured.to_dict(),
                "evaluation": evaluation.to_dict(),
            }
        )
        return
    show_samples(evaluation, 3)
    show_comparison(evaluation)
    show_measured(root, measured)
    out.print(
        f"next: luthier generate {root} --compare -p {shlex.quote(_QUESTION)}\n"
        f"      luthier chat {root} --compare\n"
        "      luthier train recipes/lora.yaml --set data.train=my.jsonl",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
