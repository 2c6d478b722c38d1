"""Whether a recipe gives the same bytes twice on this machine."""

import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import Any

from luthier.files import sha256
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.train.launch import train_apart

STEPS = 10

# The metrics of a step without clock and memory readings.
_TIMELESS = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "tokens", "skipped")
_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def verify_determinism(recipe: Recipe) -> list[str]:
    """Train the first ``STEPS`` steps twice, each time in a process of its own, and compare.

    Weights, optimiser, random state and every logged number are compared, to the byte.

    Returns:
        What differs, in words; nothing where the runs are equal.

    Raises:
        UserError: the recipe cannot be trained at all.
    """
    with tempfile.TemporaryDirectory(prefix="luthier-") as scratch:
        runs = [_train(recipe, Path(scratch), name) for name in ("first", "second")]
        return differences(*runs)


def differences(one: Run, other: Run) -> list[str]:
    """What differs between two finished runs of the same recipe, in words."""
    found = []
    before, after = one.provenance(), other.provenance()
    for key in ("dtype", "device", "data_sha256", "template_sha256"):
        left, right = getattr(before, key), getattr(after, key)
        if left != right:
            found.append(f"{key}: {left} and {right}")
    nothing: dict[str, Any] = {}
    for first, second in zip_longest(_lines(one), _lines(other), fillvalue=nothing):
        if first != second:
            keys = [k for k in _TIMELESS if first.get(k) != second.get(k)]
            found.append(
                f"step {(first or second)['step']}: "
                + ", ".join(f"{k} {first.get(k)} and {second.get(k)}" for k in keys)
            )
            break  # all steps after it differ too
    step = max(one.checkpoints())
    if step not in other.checkpoints():
        return [*found, f"the second run has no checkpoint of step {step}"]
    folders = [run.checkpoint_path(step) for run in (one, other)]
    names = sorted(p.name for p in folders[0].iterdir() if p.suffix == ".safetensors")
    for name in (*names, *_STATE):
        files = [folder / name for folder in folders]
        if any(file.is_file() for file in files):
            digests = {sha256(file) if file.is_file() else "absent" for file in files}
            if len(digests) > 1:
                found.append(f"{name} after {step} steps")
    return found


def _lines(run: Run) -> list[dict[str, Any]]:
    lines = [line.to_dict() for line in run.metrics()]
    return [{key: line[key] for key in _TIMELESS if key in line} for line in lines]


def _train(recipe: Recipe, scratch: Path, name: str) -> Run:
    short = recipe.with_absolute_paths()
    steps = recipe.train.max_steps
    short.train.max_steps = STEPS if steps < 0 else min(steps, STEPS)
    short.train.report_to = []
    short.run.dir, short.run.name = str(scratch), name
    run = Run(scratch / name)
    train_apart(short, run)
    return run
