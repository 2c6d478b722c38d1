"""The recipe as a form."""

from collections.abc import Callable

import pytest

from luthier.errors import UserError
from luthier.recipe import Recipe

pytest.importorskip("nicegui", reason="the board needs the extra 'board'")

from luthier.board.form import Form


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("method.name=qlora", "train.learning_rate=null"),
        ("data.replay={source: org/rows, share: 0.2}", "evaluate.metrics=[bleu, exact_match]"),
        ("run.name='007'", "data.template_kwargs={enable_thinking: false}", "train.report_to=[]"),
        ("train.lr_scheduler_type=linear", "train.warmup_steps=3", "kernels.loss=false"),
    ],
)
def test_a_recipe_fills_the_form_and_the_form_makes_the_recipe(
    make_recipe: Callable[..., Recipe], settings: tuple[str, ...]
) -> None:
    recipe = make_recipe(*settings)
    form = Form(lambda: None)
    form.fill(recipe)
    made = form.recipe(recipe.model.source, recipe.train_files)
    assert made.settings() | {"data": None} == recipe.settings() | {"data": None}
    assert made.train_files == recipe.train_files
    assert made.run.name == recipe.run.name


def test_a_wrong_value_is_a_sentence() -> None:
    form = Form(lambda: None)
    form.values["train.max_steps"] = "many"
    with pytest.raises(UserError, match=r"train\.max_steps"):
        form.recipe("m", ["d.jsonl"])
