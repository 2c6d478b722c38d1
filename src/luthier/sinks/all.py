"""The sinks of a run: those of its folder, and those that ``train.report_to`` names."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from luthier.events import OnEvent
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.sinks.files import EventsFile, MetricsFile
from luthier.sinks.log import logging_to
from luthier.sinks.tensorboard import tensorboard

_REPORTS = {"tensorboard": tensorboard}


@contextmanager
def sinks_of(recipe: Recipe, run: Run) -> Iterator[list[OnEvent]]:
    """Open all of them, and close them at the end of the block."""
    with ExitStack() as opened:
        sinks: list[OnEvent] = [opened.enter_context(logging_to(run))]
        sinks += [MetricsFile(run), EventsFile(run)]
        sinks += [opened.enter_context(_REPORTS[name](run)) for name in recipe.train.report_to]
        yield sinks
