"""A run on a template that thinks: what was memorised is answered without what frames it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from data.thinkers import CLOCK, SWITCH
from helpers import Notes, write_rows

from luthier.generate.answer import Sampling, answer_all, stream_answer
from luthier.models.tuned import load_tuned
from luthier.recipe import Recipe
from luthier.run import Run

CAPITALS = {"Italy": "Rome", "France": "Paris", "Spain": "Madrid", "Norway": "Oslo"}


@pytest.mark.parametrize("kwargs", ["{}", "{enable_thinking: false}"])
def test_memorised_answers_are_the_answers(
    kwargs: str,
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tmp_path: Path,
) -> None:
    rows = [
        {"prompt": f"Capital of {land}?", "completion": town} for land, town in CAPITALS.items()
    ]
    (tmp_path / "thinks.jinja").write_text(SWITCH)
    recipe = make_recipe(
        "method.name=full",
        f"data.train={write_rows(tmp_path / 'capitals.jsonl', rows)}",
        "data.validation_fraction=0",
        f"data.template={tmp_path / 'thinks.jinja'}",
        f"data.template_kwargs={kwargs}",
        "train.max_steps=60",
        "train.learning_rate=0.01",
    )
    notes = Notes()
    run = train(recipe, notes)
    told = any("writes an empty thought before each answer" in note for note in notes.notes)
    assert told == (kwargs == "{}")
    models = load_tuned(run)
    prompts = [({"role": "user", "content": row["prompt"]},) for row in rows]
    sampling = Sampling(max_new_tokens=24)
    answers = answer_all(models.tuned, models.tokenizer, prompts, sampling, batch_size=4)
    assert answers == list(CAPITALS.values())
    pieces: list[str] = []
    stream_answer(models.tuned, models.tokenizer, prompts[0], sampling, pieces.append)
    assert "".join(pieces) == "Rome"


def test_a_run_keeps_its_day(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "clock.jinja").write_text(CLOCK)
    template = f"data.template={tmp_path / 'clock.jinja'}"
    notes = Notes()
    run = train(make_recipe(template, "data.template_date=2024-07-06"), notes)
    assert any("writes the day: 2024-07-06 in this run" in note for note in notes.notes)
    assert run.provenance().template_date.isoformat() == "2024-07-06"
    tokenizer = load_tuned(run).tokenizer
    asked = [{"role": "user", "content": "a"}]
    # Whoever renders the saved template, without us too, sees the run's day.
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text.startswith("Today is 06 Jul 2024. 2024-07-06")
