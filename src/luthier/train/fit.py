"""A recipe in, a run folder out: all of `luthier train`."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

from luthier.data.changes import note_changed_sources
from luthier.errors import Interrupted, UserError
from luthier.events import Finished, OnEvent, ignore
from luthier.recipe import Recipe
from luthier.records import Measured
from luthier.run import Run
from luthier.sinks.all import stream_of
from luthier.train.finish import finish
from luthier.train.memory import OutOfMemory, free_memory, is_out_of_memory, smaller_micro_batch
from luthier.train.processes import Processes, joined
from luthier.train.session import Asked, Forecast, Materials, Session, open_session
from luthier.train.stop import StopRequest
from luthier.train.validation import Probe


def fit(
    recipe: Recipe,
    run: Run,
    on_event: OnEvent = ignore,
    *,
    probe: Probe | None = None,
    forecast: Forecast | None = None,
    materials: Materials | None = None,
    stop: StopRequest | None = None,
) -> Measured:
    """Train by ``recipe`` into ``run``, from its last checkpoint if there is one.

    Args:
        on_event: receives every event, besides the files of the run folder.
        probe: asked before the first step and at every evaluation.
        forecast: says before a new run what it will take.
        materials: rows and weights that are shared with other runs.
        stop: for a caller who may ask the run to save and stop.

    Raises:
        UserError: the recipe, the data or the machine does not allow it.
        Interrupted: the user or ``stop`` asked for it, and a checkpoint of that step was written.
    """
    with joined() as processes, _owned(run, processes):
        if processes.from_first(lambda: run.finished):
            if processes.leads:
                note_changed_sources(recipe.data, run, on_event)
            return run.measured()
        with _stream(recipe, run, on_event, processes) as stream:
            asked = Asked(
                recipe,
                run,
                stream,
                probe,
                forecast,
                materials=materials or Materials(),
                stop=stop or StopRequest(),
                processes=processes,
            )
            measured = _until_it_fits(asked)
            stream(Finished(measured))
            return measured


def _owned(run: Run, processes: Processes) -> AbstractContextManager[None]:
    """The run folder is rank 0's."""
    return run.locked() if processes.leads else nullcontext()


def _stream(
    recipe: Recipe, run: Run, on_event: OnEvent, processes: Processes
) -> AbstractContextManager[OnEvent]:
    """What happens is told by rank 0 alone."""
    return stream_of(recipe, run, on_event) if processes.leads else nullcontext(ignore)


def _until_it_fits(asked: Asked) -> Measured:
    """Train, where memory runs out again with smaller micro-batches."""
    while True:
        try:
            with asked.processes.as_one():
                return _fit(asked)
        except OutOfMemory as error:
            asked.processes.rejoin()
            smaller = asked.processes.from_first(
                partial(smaller_micro_batch, asked.recipe, asked.run, error, asked.on_event)
            )
        asked = replace(asked, micro_batch=smaller)
        free_memory()  # once the error, and what it refers to, is gone


def _fit(asked: Asked) -> Measured:
    run = asked.run
    session = open_session(asked)
    loop = session.loop
    with loop.stop.listening(asked.on_event):
        _run(session)
    state = loop.state
    if loop.stop.granted and state.step < loop.course.max_steps and not state.ended:
        raise Interrupted(f"stopped at step {state.step}; everything is saved in {run.root}")
    loop.checkpoints.make_whole(state.best_step or state.step)
    return asked.processes.from_first(lambda: finish(asked.recipe, run, session))


def _run(session: Session) -> None:
    try:
        session.loop.run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(str(error)) from None
    except OSError as error:
        raise UserError(
            f"training cannot continue: {error}\nsaved checkpoints are intact; fix this and run the same command "
            "again"
        ) from error
