"""What happens around the steps: metrics.jsonl, the display, stopping on request."""

import json
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from luthier.errors import UserError
from luthier.files import write_jsonl
from luthier.run import Run


class Display(Protocol):
    """Where progress is shown while a run trains."""

    def begin(self, step: int, total: int) -> None: ...
    def logged(self, line: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...


class StopRequest:
    """Set by the first Ctrl-C (or SIGTERM); a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self, display: Display) -> Iterator[None]:
        """Take over the signals, where this thread may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(_number: int, _frame: Any) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True
            display.note("stopping after this step, then saving; Ctrl-C again stops at once")

        before = {
            number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Recorder(TrainerCallback):
    """Writes metrics.jsonl, feeds the display, and turns a stop request into a checkpoint."""

    def __init__(self, run: Run, display: Display, stop: StopRequest) -> None:
        self.run = run
        self.display = display
        self.stop = stop
        self.before = 0.0  # seconds of training in earlier sessions of this run
        self.started = time.perf_counter()
        self.step_started = self.started
        self.window_seconds = 0.0
        self.window_tokens = 0

    @property
    def seconds(self) -> float:
        """Seconds of this run so far, all its sessions together."""
        return self.before + time.perf_counter() - self.started

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.before = forget_after(self.run, state.global_step)
        self.started = time.perf_counter()
        self.window_tokens = state.num_input_tokens_seen
        self.display.begin(state.global_step, state.max_steps)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.step_started = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.window_seconds += time.perf_counter() - self.step_started
        control.should_save |= self.stop.requested
        # A resumed run must not need the loss of steps before its checkpoint.
        control.should_log |= control.should_save or control.should_evaluate

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_training_stop |= self.stop.requested

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        logs: dict[str, float] = kwargs["logs"]
        evaluated = {key: value for key, value in logs.items() if key.startswith("eval_")}
        if not {"loss", "skipped"} & logs.keys() and not evaluated:
            return  # the Trainer's closing summary; measured.json has what it says
        line: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        if "skipped" in logs:
            line["skipped"] = logs["skipped"]
            self.display.note(
                f"{logs['skipped']} steps up to {state.global_step} left out: loss or gradient was no number"
            )
        if "loss" in logs:
            line |= {
                key: logs[key] for key in ("loss", "grad_norm", "learning_rate") if key in logs
            }
            tokens = state.num_input_tokens_seen - self.window_tokens
            line["tokens_per_second"] = round(tokens / max(self.window_seconds, 1e-9), 1)
            line["tokens"] = state.num_input_tokens_seen
            self.window_tokens, self.window_seconds = state.num_input_tokens_seen, 0.0
        else:
            line |= evaluated
        line["memory_bytes"] = peak_memory()
        line["seconds"] = round(self.seconds, 3)
        try:
            with self.run.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self.run.metrics_path}: {error.strerror}; the checkpoints are whole: "
                "free some space and run the same command again"
            ) from error
        self.display.logged(line)


def forget_after(run: Run, step: int) -> float:
    """Drop the lines of metrics.jsonl after ``step``; the seconds that the last kept line tells.

    A run that was killed had gone on past its last checkpoint; those steps are taken again.
    """
    kept = []
    if run.metrics_path.is_file():
        for text in run.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                break  # the line that the kill cut off
            if line["step"] > step:
                break
            kept.append(line)
    write_jsonl(run.metrics_path, kept)
    return float(kept[-1]["seconds"]) if kept else 0.0


def peak_memory() -> int:
    """Most memory this process has held, in bytes: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
