"""`luthier demo`."""

import shlex

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from luthier.cli.app import Json, Overrides, app, out, print_json
from luthier.cli.evaluate import show_comparison, show_samples
from luthier.cli.terminal import terminal
from luthier.cli.train import show_measured
from luthier.recipe import parse_overrides

_QUESTION = """Write the SQLite query.

boats(id, name, length, harbour)
Question: How many boats have the harbour Kiel?"""


@app.command()
def demo(
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a small real model on text-to-SQL and show it before and after.

    It trains on some 400 questions over generated SQLite databases. Then its answers to 84 questions
    over databases it never saw are executed; an answer is right if it returns what the reference does.
    """
    from luthier.demo.play import demo_recipe, play

    recipe = demo_recipe(**parse_overrides(overrides or []))
    with terminal() as on_event:
        run, evaluation, seconds = play(recipe, on_event)
    root, measured = run.root, run.measured()
    if as_json:
        print_json(
            {
                "run": str(root),
                "measured": measured.to_dict(),
                "evaluation": evaluation.to_dict(),
                "seconds": {part: round(took, 1) for part, took in seconds.items()},
            }
        )
        return
    show_samples(evaluation, 3)
    show_comparison(evaluation)
    show_measured(root, measured)
    whole = sum(seconds.values())
    table = Table("time", Column("", justify="right"), Column("", justify="right"), box=SIMPLE_HEAD)
    for part, took in (*seconds.items(), ("in all", whole)):
        table.add_row(part, f"{took:.0f} s", f"{took / whole:.0%}")
    out.print(table)
    out.print(
        f"next: luthier generate {root} --compare -p {shlex.quote(_QUESTION)}\n"
        f"      luthier chat {root} --compare\n"
        "      luthier train recipes/lora.yaml --set data.train=my.jsonl",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
