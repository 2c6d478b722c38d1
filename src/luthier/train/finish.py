"""The end of a run: the best weights put where other libraries find them, and what was measured."""

import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from luthier.errors import UserError
from luthier.files import staged_folder, write_json
from luthier.perplexity import perplexity
from luthier.recipe import Recipe
from luthier.records import Measured
from luthier.run import Run
from luthier.runtime import peak_memory
from luthier.train.checkpoints import damage
from luthier.train.session import Session


def finish(recipe: Recipe, run: Run, session: Session) -> Measured:
    """Keep the best weights, then write ``measured.json``, the mark of a finished run.

    Raises:
        UserError: the weights cannot be written.
    """
    state, setup = session.loop.state, session.setup
    best_step = state.best_step or state.step
    weights = run.weights_path(recipe)
    _keep_weights(run.checkpoint_path(best_step), weights, session.tokenizer)
    peak = max(state.peak_memory, peak_memory())
    speed = round(state.tokens / max(state.step_seconds, 1e-9), 1)
    best, of_answers = state.best_loss, recipe.objective.is_likelihood
    measured = Measured(
        steps=state.step,
        best_step=best_step,
        best_eval_loss=best,
        best_eval_perplexity=perplexity(best) if best is not None and of_answers else None,
        stopped_early=state.step < session.loop.course.max_steps,
        seconds=round(state.seconds, 3),
        tokens=state.tokens,
        tokens_per_second=speed,
        peak_memory_bytes=peak,
        trainable_parameters=session.sizes[0],
        total_parameters=session.sizes[1],
        device=setup.device_name,
        dtype=setup.dtype_name,
        weights=weights.name,
        plan_errors=_plan_errors(run, peak, speed),
        forgot=state.forgot,
    )
    write_json(run.measured_path, measured.to_dict())
    return measured


def _keep_weights(checkpoint: Path, target: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put a checkpoint's weights and the tokenizer, chat template included, into ``target``."""
    fault = damage(checkpoint)
    if fault is not None:
        raise UserError(
            f"the checkpoint of the best weights, {checkpoint}, has been damaged: {fault}; run the "
            "same command again: it resumes from an intact one"
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
            f"cannot write {target}: {error}; the checkpoints are intact: free some space and run "
            "the same command again"
        ) from error


def _plan_errors(run: Run, peak_bytes: int, tokens_per_second: float) -> dict[str, float] | None:
    """Planned over measured, less one, for each planned figure; None where there is no plan."""
    plan = run.plan()
    if plan is None:
        return None
    errors = {"peak_memory": round(plan.memory.peak / peak_bytes - 1, 4)}
    speed = plan.tokens_per_second
    if speed is not None and speed[0] == speed[1]:  # measured rates, not a range
        errors["tokens_per_second"] = round(speed[0] / tokens_per_second - 1, 4)
    return errors
