"""Training in a process of its own: its events, its result, its errors."""

from collections.abc import Callable

import pytest
from helpers import Notes

from luthier.errors import UserError
from luthier.events import Finished, Started, Step
from luthier.recipe import Recipe
from luthier.run import claim_run
from luthier.train.launch import train_apart

MakeRecipe = Callable[..., Recipe]


def test_events_and_the_result_come_back(
    make_recipe: MakeRecipe, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe("train.max_steps=3")
    run = claim_run(recipe, "x")
    heard = Notes()
    measured = train_apart(recipe, run, heard)
    assert measured == run.measured()
    kinds = [type(e) for e in heard.events if isinstance(e, Started | Step | Finished)]
    assert kinds == [Started, Step, Step, Step, Finished]
    assert any("training rows" in note for note in heard.notes)
    assert capfd.readouterr().err == ""  # nor do bars of libraries


def test_a_mistake_there_is_a_user_error_here(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("data.max_length=4096")
    with pytest.raises(UserError, match="more than the 512 positions"):
        train_apart(recipe, claim_run(recipe, "x"))


def test_a_process_that_ends_without_a_word_is_told(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    with pytest.raises(UserError, match=r"ended without a result \(exit code 1\).*log\.txt"):
        train_apart(recipe, claim_run(recipe, "x"), how="os:getpid")  # takes no arguments
