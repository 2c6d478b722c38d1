"""The training loop: read it from top to bottom.

``train_step`` is the one training step of the project; ``luthier plan`` simulates and times it too.
What must be there before the first step is made in ``session.py``.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from luthier.data.batches import Batch, StepBatches
from luthier.data.stream_batches import StreamBatches
from luthier.errors import UserError
from luthier.events import Evaluation, Note, OnEvent, Started, Step
from luthier.models.adapters import inner
from luthier.objectives.objective import Objective, Parts
from luthier.records import MetricsLine
from luthier.runtime import peak_memory
from luthier.train.checkpoints import Checkpoints
from luthier.train.course import Course, Due
from luthier.train.figures import StepResult, Window
from luthier.train.offload import Side, offloaded
from luthier.train.parallel import Shared, whole
from luthier.train.processes import Processes
from luthier.train.skips import NonFinite, Skips
from luthier.train.state import State
from luthier.train.stop import StopRequest
from luthier.train.validation import Validation
from luthier.train.watch import Watch


def arithmetic(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """In ``dtype``: products in it, sums and losses in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@dataclass
class Learner:
    """A model, and all that changes its weights.

    Attributes:
        model: in training mode during a step.
        dtype: of the arithmetic; below float32 it runs under autocast.
        max_grad_norm: gradients are clipped to this norm; 0 never.
        scaler: of the loss, for float16 alone.
        steps_in_backward: the optimiser updates each weight inside the backward pass.
        side: copies what the backward needs to host memory and back; None keeps it.
        processes: that take each step together, each with its own micro-batches.
        shared: what several processes run the model and its objective through, see ``parallel.py``.
        read: the numbers of a tensor; a simulated step, whose tensors have none, brings its own.
    """

    model: nn.Module
    objective: Objective
    optimizer: Optimizer
    scheduler: LRScheduler
    device: torch.device
    dtype: torch.dtype
    max_grad_norm: float
    scaler: torch.amp.GradScaler | None = None
    steps_in_backward: bool = False
    side: Side | None = None
    processes: Processes = field(default_factory=Processes)
    shared: Shared | None = None
    read: Callable[[Tensor], list[float]] = Tensor.tolist

    def arithmetic(self) -> AbstractContextManager[None]:
        """That of its device and dtype, see ``arithmetic``."""
        return arithmetic(self.device, self.dtype)

    def loss(self, batch: Batch) -> tuple[Tensor, Parts]:
        """The objective's summed loss of ``batch`` and its parts; nothing of an idle batch."""
        run = self.shared or partial(self.objective.loss, self.model)
        loss, parts = run(batch)
        if batch.idle:
            return loss * 0, {name: part * 0 for name, part in parts.items()}
        return loss, parts

    def sharing_gradients(self, last: bool) -> AbstractContextManager[None]:
        """Processes add up their gradients once per step, in its last micro-batch."""
        return nullcontext() if self.shared is None or last else self.shared.no_sync()


def train_step(
    learner: Learner, batches: Sequence[Batch], on_gradients: Callable[[], None] | None = None
) -> StepResult:
    """One update of the weights, by the gradient of the mean loss over all of ``batches``.

    loss = sum of the objective's loss over all micro-batches and processes / N, with N the number
    of what was counted in all of them. (A mean of means is another number when rows differ in length.)

    Args:
        batches: micro-batches on any device, as many in each process.
        on_gradients: called before a finite update, while the gradients are there.

    Raises:
        NonFinite: the loss, where the weights would change before anybody could look at it.
    """
    model, processes, device = learner.model, learner.processes, learner.device
    if not (model.training and inner(model).training):  # train() walks over thousands of modules
        model.train()
    counted = [batch for batch in batches if not batch.idle]
    number_of, tokens = processes.sums(
        float(sum(map(learner.objective.count, counted))), sum(batch.tokens for batch in counted)
    )
    # A GPU fills this in its turn; to copy a number there would wait for all that it has to do.
    count = torch.full((), number_of, device=device)
    total, part_sums = torch.zeros((), device=device), dict[str, Tensor]()
    for number, batch in enumerate(batches, 1):
        with learner.sharing_gradients(last=number == len(batches)):
            with learner.arithmetic(), offloaded(learner.side) if learner.side else nullcontext():
                loss_sum, parts = learner.loss(batch.to(device))
            loss = loss_sum / count
            if learner.steps_in_backward:
                (now,) = learner.read(loss.detach()[None])
                if not math.isfinite(now):
                    raise NonFinite(now)
            # They average their gradients, while the loss was divided by the count of all of them.
            scaled = loss * processes.size
            (learner.scaler.scale(scaled) if learner.scaler else scaled).backward()
        total += loss.detach()
        for name, part in parts.items():
            part_sums[name] = part_sums.get(name, 0) + part

    if learner.scaler:
        learner.scaler.unscale_(learner.optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), learner.max_grad_norm or math.inf)
    total, *sums = processes.add_up(torch.stack([total, *part_sums.values()]))
    figures = [total, whole(norm).to(total), *(part / count for part in sums)]
    mean_loss, grad_norm, *means = learner.read(torch.stack(figures))  # the one read of the device

    # A scaler skips an overflow of its own float16 scale, and lowers it.
    finite = math.isfinite(mean_loss) and (math.isfinite(grad_norm) or learner.scaler is not None)
    if not finite and learner.scaler is None:
        learner.optimizer.zero_grad()  # without gradients an update changes nothing
    if finite and on_gradients is not None:
        on_gradients()
    learning_rate = float(learner.scheduler.get_last_lr()[0])
    update(learner)
    if learner.scaler is None or math.isfinite(grad_norm):  # it skips what is not finite
        learner.scheduler.step()
    learner.optimizer.zero_grad()
    named = dict(zip(part_sums, means, strict=True))
    return StepResult(mean_loss, grad_norm, learning_rate, int(tokens), named, skipped=not finite)


def update(learner: Learner) -> None:
    """Step the optimiser; a float16 scaler does not where it finds an overflow, and lowers its scale."""
    if learner.scaler is None:
        learner.optimizer.step()
    else:
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()


@dataclass
class Loop:
    """A run between its first step and its last."""

    learner: Learner
    data: StepBatches | StreamBatches
    course: Course
    state: State
    validation: Validation
    checkpoints: Checkpoints
    watch: Watch
    skips: Skips
    stop: StopRequest
    on_event: OnEvent
    window: Window = field(default_factory=Window)

    def run(self) -> None:
        """Take all steps that are left, or those until early stopping or a stop request.

        Raises:
            UserError: training diverged, the adapter does not learn, or a file cannot be written.
        """
        state, course = self.state, self.course
        self._started = time.perf_counter() - state.seconds
        self.on_event(Started(state.step, course.max_steps))
        self.watch.check_schedule(self.learner.scheduler, course.max_steps)
        if state.step == 0 and self.validation.probe is not None:
            self._evaluate()  # what later answers of the probe are compared with
        with closing(self.data):
            while state.step < course.max_steps and not (state.ended or self.stop.granted):
                epoch, done = divmod(state.step, self.data.steps_per_epoch)
                self._run_epoch(epoch, done)
        self.watch.check_base(state.step, sampled=False)

    def _run_epoch(self, epoch: int, steps_done: int) -> None:
        if steps_done == 0:
            self.checkpoints.restore_random_state()
        steps = self.data.epoch(epoch, steps_done)
        if steps_done > 0:  # the draw for this epoch's order is behind that state
            self.checkpoints.restore_random_state()
        for batches in self._saved_before_errors(steps):
            self._take(batches)
            steps_done += 1
            self.state.place = self.data.after(self.state.step)
            self.state.epoch = self.data.passes(epoch, steps_done)
            asked = self.learner.processes.any(self.stop.requested)
            self._log_evaluate_save(self.course.due(self.state.step, asked))
            if self.state.step >= self.course.max_steps or self.state.ended or self.stop.granted:
                return

    def _saved_before_errors(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """``steps``. Where rows that are read on the way cannot be used, the steps before are saved."""
        try:
            yield from steps
        except UserError:
            # Of several processes another may have its rows, and wait for this one elsewhere.
            if self.state.step > 0 and self.learner.processes.size == 1:
                self._log_evaluate_save(Due(log=bool(self.window.steps), save=True))
            raise

    def _take(self, batches: list[Batch]) -> None:
        state = self.state
        begun = time.perf_counter()
        # An optimiser that steps in the backward pass leaves no gradients to look at.
        look = None if self.learner.steps_in_backward else self.watch.on_gradients
        try:
            result = train_step(self.learner, batches, look)
        except NonFinite as error:
            raise self.skips.diverged(state.step + 1, error.loss, None, batches) from None
        state.step += 1
        state.tokens += result.tokens
        self.skips.take(result.skipped)
        if result.skipped and self.skips.too_many(self.course.max_steps):
            raise self.skips.diverged(state.step, result.loss, result.grad_norm, batches)
        seconds = time.perf_counter() - begun
        state.step_seconds += seconds
        self.window.add(result, seconds)

    def _log_evaluate_save(self, due: Due) -> None:
        if due.save or due.evaluate:
            self.watch.check_base(self.state.step, sampled=True)
        due = self.course.postponed(due, self.state.step, self.skips.last)
        if due.log:
            self._log()
        best = due.evaluate and self._evaluate()
        # The best weights are kept whether or not a checkpoint was due; so are the last ones.
        if due.save or best or self.state.forgot:
            self.checkpoints.save(self.state, best)
            self.stop.granted = self.learner.processes.any(self.stop.requested)

    def _log(self) -> None:
        figures = self.window.take()
        if figures.get("skipped"):
            self.on_event(
                Note(
                    f"{figures['skipped']} steps up to step {self.state.step} were skipped: their "
                    "loss or gradient was non-finite",
                    warning=True,
                )
            )
        if "loss" in figures:
            figures["tokens"] = self.state.tokens
            if self.state.place is not None:
                figures["rows_read"] = self.state.place.read.rows
        self.on_event(Step(self._line(figures)))

    def _evaluate(self) -> bool:
        """Measure; whether the weights are the best so far."""
        with self.learner.arithmetic():
            figures = self.validation.measure(self.learner.model, self.state.step)
        best = self.state.take_evaluation(
            figures, self.course.patience, self.course.most_forgetting
        )
        self.on_event(Evaluation(self._line(figures)))
        return best

    def _line(self, figures: dict[str, float]) -> MetricsLine:
        state = self.state
        state.seconds = time.perf_counter() - self._started
        state.peak_memory = max(state.peak_memory, peak_memory())
        return MetricsLine(
            step=state.step,
            epoch=round(state.epoch, 4),
            **figures,
            memory_bytes=peak_memory(),
            seconds=round(state.seconds, 3),
        )
