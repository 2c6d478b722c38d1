"""TensorBoard's files, as TensorBoard reads them."""

import threading

import pytest
from helpers import Notes
from played import play
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from luthier.recipe import Recipe
from luthier.run import Run
from luthier.sinks.all import stream_of


@pytest.fixture
def reporting(recipe: Recipe) -> Recipe:
    return recipe.changed(train={"report_to": "tensorboard"})


def test_points_under_the_tags_of_transformers_none_twice(reporting: Recipe, run: Run) -> None:
    for begin, end in ((0, 3), (2, 4)):  # killed after step 3, a checkpoint at step 2
        with stream_of(reporting, run, Notes()) as stream:
            for event in play(run, begin, end):
                stream(event)
    events = EventAccumulator(str(run.tensorboard_path)).Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "train/learning_rate", "train/epoch", "train/memory_bytes", "train/seconds",
        "eval/loss", "eval/probe_accuracy",
    }  # fmt: skip
    loss = [(point.step, point.value) for point in events.Scalars("train/loss")]
    assert loss == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    assert [point.step for point in events.Scalars("eval/loss")] == [2, 4]


def test_a_session_that_ran_out_of_memory_begins_again(reporting: Recipe, run: Run) -> None:
    before = threading.excepthook
    with stream_of(reporting, run, Notes()) as stream:
        for event in [*play(run, 0, 1), *play(run, 0, 4)]:
            stream(event)
    events = EventAccumulator(str(run.tensorboard_path)).Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert threading.excepthook is before
