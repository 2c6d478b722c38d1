"""The sinks of a run: those of its folder, and those that ``train.report_to`` names."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from luthier import plugins
from luthier.errors import Interrupted, UserError
from luthier.events import OnEvent, Stopped, Stream
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.sinks.files import EventsFile, MetricsFile
from luthier.sinks.log import RunLog
from luthier.sinks.mlflow import mlflow_sink
from luthier.sinks.tensorboard import TensorBoard
from luthier.sinks.trackio import trackio_sink
from luthier.sinks.wandb import wandb_sink

# A plugin is called in the same way: what it returns is called with each event, and its ``close``,
# if it has one, at the end.
MakeSink = Callable[[Recipe, Run], OnEvent]

_REPORTS: dict[str, MakeSink] = {
    "tensorboard": TensorBoard,
    "trackio": trackio_sink,
    "wandb": wandb_sink,
    "mlflow": mlflow_sink,
}


@contextmanager
def stream_of(recipe: Recipe, run: Run, on_event: OnEvent) -> Iterator[Stream]:
    """The stream of a run, to its sinks and to ``on_event``; the sinks are closed at the end.

    Raises:
        UserError: what ``train.report_to`` names is not installed, or cannot be used.
    """
    stream = Stream([on_event])
    with ExitStack() as closing:

        def add(sink: OnEvent) -> None:
            stream.sinks.append(sink)
            closing.callback(stream.close, sink)

        for sink in (RunLog(run), EventsFile(run), MetricsFile(run)):
            add(sink)  # closed last, so they keep what goes wrong in closing the others
        for name in recipe.train.report_to:
            add(_maker(name)(recipe, run))
        try:
            yield stream
        except BaseException as error:
            stream(_stopped(error))
            raise


def _maker(name: str) -> MakeSink:
    if name in _REPORTS:
        return _REPORTS[name]
    make: MakeSink = plugins.load("luthier.sinks", name)
    return make


def _stopped(error: BaseException) -> Stopped:
    if isinstance(error, UserError | Interrupted):
        return Stopped(str(error), isinstance(error, Interrupted))
    return Stopped(f"{type(error).__name__}: {error}", isinstance(error, KeyboardInterrupt))
