"""The events of a run that nothing trains."""

from collections.abc import Iterator

from luthier.events import Checkpoint, Evaluation, Event, Finished, Started, Step
from luthier.records import Measured, MetricsLine
from luthier.run import Run

STEPS = 4


def line(step: int, **figures: float) -> MetricsLine:
    return MetricsLine(
        step=step, epoch=step / STEPS, memory_bytes=1000 + step, seconds=float(step), **figures
    )


def play(run: Run, step: int, last: int) -> Iterator[Event]:
    """A session after ``step``, up to step ``last`` of four; a checkpoint at step 2."""
    yield Started(step, STEPS)
    for now in range(step + 1, last + 1):
        yield Step(line(now, loss=1 / now, learning_rate=0.125))
        if now % 2 == 0:
            yield Evaluation(line(now, eval_loss=2 / now, eval_probe_accuracy=0.5))
        if now == 2:
            run.checkpoint_path(2).mkdir(parents=True)
            yield Checkpoint(2, run.checkpoint_path(2), best=True)
    if last == STEPS:
        yield Finished(measured())


def measured() -> Measured:
    return Measured(
        steps=STEPS, best_step=4, best_eval_loss=0.5, best_eval_perplexity=1.65, stopped_early=False,
        seconds=4.0, tokens=400, tokens_per_second=100.0, peak_memory_bytes=1004,
        trainable_parameters=10, total_parameters=100, device="cpu", dtype="float32",
        weights="adapter",
    )  # fmt: skip
