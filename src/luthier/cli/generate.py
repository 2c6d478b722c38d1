"""`luthier generate`, and the options of sampling."""

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.app import AdapterScale, Json, app, err, out, print_json
from luthier.cli.terminal import terminal
from luthier.cli.trusting import Trust
from luthier.cli.tuned import BaseModel, open_tuned
from luthier.errors import Interrupted, UserError
from luthier.events import OnEvent, during
from luthier.run import Run

if TYPE_CHECKING:
    from luthier.api import Model, Pace, Sampling, TunedModel

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
System = Annotated[str | None, typer.Option(help="System prompt.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[
    float, typer.Option(min=0, help="0: greedy decoding; higher is more random.")
]
TopP = Annotated[
    float,
    typer.Option(min=0, max=1, help="Nucleus sampling: total probability of the tokens kept."),
]
TopK = Annotated[int, typer.Option(min=0, help="Sample from the k likeliest tokens; 0: all.")]
RepetitionPenalty = Annotated[float, typer.Option(min=0.1, help="Above 1: less repetition.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the sampling.")]
Base = Annotated[bool, typer.Option("--base", help="Ask the base model instead.")]
Compare = Annotated[bool, typer.Option("--compare", help="Show base and tuned, one after another.")]


@app.command()
def generate(
    run_path: RunPath,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="What to ask; '-' reads stdin. Repeatable."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--input", help="Rows to answer, in any format of training data.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File for the answers to --input, one JSON object per line.")
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Answers generated at once; fewer where memory does not hold them."
        ),
    ] = 64,
    system: System = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    base: Base = False,
    compare: Compare = False,
    adapter_scale: AdapterScale = 1.0,
    base_model: BaseModel = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Answer prompts with a tuned model, in the chat template it was trained with.

    A model that was trained on plain text continues the prompt instead.

    Example: `luthier generate runs/demo -p "List files over 1 MB" --compare`

    To answer a file (after Ctrl-C or a kill the same command goes on where it stopped):
    `luthier generate runs/demo --input questions.jsonl --output answers.jsonl`
    """
    if (source is None) != (output is None) or (source is None) == (not prompt):
        raise UserError("give either --prompt, or --input and --output")
    run = open_tuned(run_path, base_model, trust)
    from luthier.api import Messages, Pace, Sampling, answer_sides

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    if source is not None and output is not None:
        if compare or system:
            raise UserError("--compare and --system are for --prompt, not for --input")
        _answer_file(run, source, output, sampling, batch_size, base, adapter_scale, as_json)
        return
    questions = [sys.stdin.read() if text == "-" else text for text in prompt or []]

    learned_turns = run.provenance().learned_turns

    def as_prompt(question: str) -> Messages | str:
        return _messages(system, [], question) if learned_turns else question

    sides, pace = _sides(base, compare), Pace()
    with terminal() as on_event:
        models = _load(run, adapter_scale, on_event)
        with during(f"answering, {' and '.join(sides)}", on_event):
            prompts = [as_prompt(question) for question in questions]
            answers = answer_sides(models, prompts, sides, sampling, batch_size, pace)
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
    _show(pace)


def _answer_file(
    run: Run,
    source: str,
    output: Path,
    sampling: "Sampling",
    batch_size: int,
    base: bool,
    adapter_scale: float,
    as_json: bool,
) -> None:
    from luthier.api import answer_file

    side = _sides(base, False)[0]
    try:
        with terminal() as on_event:
            models = _load(run, adapter_scale, on_event)
            with _pick(models, side) as model:
                done = answer_file(
                    model,
                    models.tokenizer,
                    source,
                    output,
                    sampling,
                    batch_size,
                    f"{side} of {run.root.resolve()}, scale {adapter_scale:g}",
                    on_event,
                    run.recipe().data.columns,
                )
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped: the answers so far are in {output}.part; the same command goes on from there"
        ) from None
    if as_json:
        print_json({"output": str(output), **asdict(done)})
        return
    before = f", {done.resumed} of them earlier" if done.resumed else ""
    out.print(f"{done.rows} rows answered{before}: {output}", highlight=False, soft_wrap=True)
    _show(done.pace)
    if done.errors:
        err.print(f"{done.errors} rows could not be answered: see their 'error'", style="yellow")


def _show(pace: "Pace") -> None:
    if pace.steps:  # none by Transformers, which does not count them
        err.print(str(pace), style="dim", highlight=False)


def _messages(
    system: str | None, turns: list[dict[str, str]], line: str
) -> tuple[dict[str, str], ...]:
    opening = [{"role": "system", "content": system}] if system else []
    return (*opening, *turns, {"role": "user", "content": line})


def _sides(base: bool, compare: bool) -> list[str]:
    if compare:
        return ["base", "tuned"]
    return ["base"] if base else ["tuned"]


def _load(run: Run, adapter_scale: float, on_event: OnEvent) -> "TunedModel":
    from luthier.api import load_tuned

    return load_tuned(run, adapter_scale, on_event)


def _pick(models: "TunedModel", side: str) -> AbstractContextManager["Model"]:
    return models.as_base() if side == "base" else nullcontext(models.tuned)
