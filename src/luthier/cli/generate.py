"""`luthier generate`, and the options of sampling."""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.app import Json, app, out, print_json
from luthier.run import Run, open_run

if TYPE_CHECKING:
    from luthier.generate.answer import Model
    from luthier.models.tuned import TunedModel

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
System = Annotated[str | None, typer.Option(help="System prompt.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[
    float, typer.Option(min=0, help="0 takes the likeliest token; more varies more.")
]
TopP = Annotated[
    float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens of this probability.")
]
TopK = Annotated[int, typer.Option(min=0, help="Sample from so many likeliest tokens; 0: all.")]
RepetitionPenalty = Annotated[float, typer.Option(min=0.1, help="Above 1: repeat less.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the sampling.")]
Base = Annotated[bool, typer.Option("--base", help="Ask the model as it was before tuning.")]
Compare = Annotated[bool, typer.Option("--compare", help="Show base and tuned, one after another.")]


@app.command()
def generate(
    run_path: RunPath,
    prompt: Annotated[
        list[str], typer.Option("--prompt", "-p", help="What to ask; '-' reads stdin. Repeatable.")
    ],
    system: System = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    base: Base = False,
    compare: Compare = False,
    as_json: Json = False,
) -> None:
    """Answer prompts with a tuned model, by the template it was trained with.

    A run that learned plain text goes on from the prompt instead.

    Example: `luthier generate runs/demo -p "List files over 1 MB" --compare`
    """
    run = open_run(run_path)
    from luthier.data.template import Messages
    from luthier.generate.answer import Sampling, answer_all

    questions = [sys.stdin.read() if text == "-" else text for text in prompt]
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    models = _load(run)

    def as_prompt(question: str) -> Messages | str:
        return question if _plain_text(run) else _messages(system, [], question)

    answers: dict[str, list[str]] = {}
    for side in _sides(base, compare):
        with _pick(models, side) as model:
            answers[side] = answer_all(
                model, models.tokenizer, [as_prompt(q) for q in questions], sampling, batch_size=8
            )
    if as_json:
        rows = [
            {"prompt": question, **{side: answers[side][i] for side in answers}}
            for i, question in enumerate(questions)
        ]
        print_json(rows)
        return
    for i in range(len(questions)):
        for side, texts in answers.items():
            if len(answers) > 1:
                out.print(f"[bold]{side}:[/]")
            print(texts[i].strip())


def _messages(
    system: str | None, turns: list[dict[str, str]], line: str
) -> tuple[dict[str, str], ...]:
    opening = [{"role": "system", "content": system}] if system else []
    return (*opening, *turns, {"role": "user", "content": line})


def _plain_text(run: Run) -> bool:
    return (run.recipe().provenance or {}).get("template") == "none"


def _sides(base: bool, compare: bool) -> list[str]:
    if compare:
        return ["base", "tuned"]
    return ["base"] if base else ["tuned"]


def _load(run: Run) -> "TunedModel":
    from luthier.models.tuned import load_tuned

    return load_tuned(run)


def _pick(models: "TunedModel", side: str) -> AbstractContextManager["Model"]:
    return models.as_base() if side == "base" else nullcontext(models.tuned)
