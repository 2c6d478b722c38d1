"""The end of a run: the best weights put where other libraries find them, and what it took."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerState

from luthier.errors import UserError
from luthier.files import staged_folder, write_json
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.train.callbacks import peak_memory
from luthier.train.checkpoints import damage
from luthier.train.forecast import plan_errors
from luthier.train.probe import ForgettingWatch
from luthier.train.setup import Setup
from luthier.train.trainer import perplexity


@dataclass(frozen=True)
class Measured:
    """What a finished run really took, and how it ended: ``measured.json``.

    Attributes:
        best_step: step whose weights were kept: the lowest validation loss, or the last step
            where there is no validation set.
        best_eval_loss: nats a supervised token; None without a validation set.
        forgot: stopped because the probe fell (``train.stop_on_forgetting``).
        tokens: all tokens that went through the model in training, prompts included.
        plan_errors: planned over measured, less one, for what plan.json foretold.
    """

    steps: int
    best_step: int
    best_eval_loss: float | None
    best_eval_perplexity: float | None
    stopped_early: bool
    seconds: float
    tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    device: str
    dtype: str
    weights: str
    plan_errors: dict[str, float] | None = None
    forgot: bool = False


def read_measured(run: Run) -> Measured:
    """What a finished run took."""
    return Measured(**json.loads(run.measured_path.read_text(encoding="utf-8")))


def stopped_early(state: TrainerState) -> bool:
    """Whether early stopping, of either kind, has ended the run that ``state`` describes."""
    if forgot(state):
        return True
    stored: Any = state.stateful_callbacks  # a dict by callback name once a run has saved
    stopping = stored.get("EarlyStoppingCallback") if isinstance(stored, dict) else None
    if stopping is None:
        return False
    counter: int = stopping["attributes"]["early_stopping_patience_counter"]
    return counter >= stopping["args"]["early_stopping_patience"]


def forgot(state: TrainerState) -> bool:
    """Whether the run that ``state`` describes was stopped because it forgot."""
    stored: Any = state.stateful_callbacks
    watch = stored.get(ForgettingWatch.__name__) if isinstance(stored, dict) else None
    return watch is not None and bool(watch["attributes"]["forgot"])


def finish(
    recipe: Recipe,
    run: Run,
    setup: Setup,
    state: TrainerState,
    tokenizer: PreTrainedTokenizerBase,
    sizes: tuple[int, int],
) -> Measured:
    """Keep the best weights, then write ``measured.json``, the mark of a finished run.

    ``sizes`` are the numbers of trainable and of all parameters.

    Raises:
        UserError: the weights cannot be written.
    """
    best_step = state.best_global_step or state.global_step
    weights = run.weights_path(recipe)
    _keep_weights(run.checkpoint_path(best_step), weights, tokenizer)
    lines = [json.loads(text) for text in run.metrics_path.read_text("utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    tokens = [
        after["tokens"] - before
        for after, before in zip(steps, [0, *(s["tokens"] for s in steps)], strict=False)
    ]
    training_seconds = sum(
        count / line["tokens_per_second"] for count, line in zip(tokens, steps, strict=True)
    )
    best = state.best_metric
    peak = max(peak_memory(), *(line["memory_bytes"] for line in lines))
    speed = round(state.num_input_tokens_seen / training_seconds, 1)
    measured = Measured(
        steps=state.global_step,
        best_step=best_step,
        best_eval_loss=best,
        best_eval_perplexity=perplexity(best) if best is not None else None,
        stopped_early=state.global_step < state.max_steps,
        seconds=lines[-1]["seconds"],
        tokens=state.num_input_tokens_seen,
        tokens_per_second=speed,
        peak_memory_bytes=peak,
        trainable_parameters=sizes[0],
        total_parameters=sizes[1],
        device=setup.device_name,
        dtype=setup.dtype_name,
        weights=weights.name,
        plan_errors=plan_errors(run, peak, speed),
        forgot=forgot(state),
    )
    write_json(run.measured_path, asdict(measured))
    return measured


def _keep_weights(checkpoint: Path, target: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put a checkpoint's weights and the tokenizer, chat template included, into ``target``."""
    fault = damage(checkpoint)
    if fault is not None:
        raise UserError(
            f"the checkpoint of the best weights, {checkpoint}, was damaged since: {fault}; run the "
            "same command again, which goes on from one that is whole"
        )
    try:
        with staged_folder(target) as folder:
            for file in checkpoint.iterdir():
                if file.suffix == ".safetensors" or file.name.endswith(
                    ("config.json", ".safetensors.index.json")
                ):
                    shutil.copyfile(file, folder / file.name)
            tokenizer.save_pretrained(str(folder))
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error}; the checkpoints are whole: free some space and run "
            "the same command again"
        ) from error
