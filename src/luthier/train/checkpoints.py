"""What makes a checkpoint whole: all that trained is in it, and its bytes are those that were written."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import safe_open
from torch import nn

from luthier.errors import UserError
from luthier.files import sha256, write_json
from luthier.models.adapters import inner
from luthier.run import Run
from luthier.train.callbacks import Display

_MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Keep size and SHA-256 of every file of ``folder`` in it, for ``damage``."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.iterdir())
    }
    write_json(folder / _MANIFEST, files)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, None where they are as they were written."""
    try:
        files: dict[str, Any] = json.loads((folder / _MANIFEST).read_text("utf-8"))
        for name, wanted in files.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is gone"
            size = file.stat().st_size
            if size != wanted["bytes"]:
                return f"{name} has {size:,} bytes, not {wanted['bytes']:,}"
            if sha256(file) != wanted["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{_MANIFEST} cannot be used ({error})"
    return None


def usable_checkpoints(run: Run, display: Display) -> dict[int, Path]:
    """The checkpoints that a run can go on from, after setting aside what it cannot.

    The newest is used whose bytes are whole, and those of the best weights so far. What is newer is
    renamed (``damaged-step-N``), not deleted, and said.
    """
    found = run.checkpoints()
    for step in sorted(found, reverse=True):
        why = damage(found[step]) or _lost_best(run, found[step])
        if why is None:
            break
        _set_aside(found.pop(step))
        display.note(
            f"the checkpoint of step {step} cannot be used: {why}; it is kept as damaged-step-{step}, "
            + (f"and step {max(found)} is tried" if found else "and the run begins anew")
        )
    return found


def _lost_best(run: Run, checkpoint: Path) -> str | None:
    """What is wrong with the checkpoint of the best weights until ``checkpoint``, which is whole."""
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    best = state["best_global_step"]
    if best is None or run.checkpoint_path(best) == checkpoint:
        return None
    fault = damage(run.checkpoint_path(best))
    return f"of the best weights before it, step {best}, {fault}" if fault else None


def _set_aside(folder: Path) -> None:
    target = folder.parent / f"damaged-{folder.name}"
    try:
        if target.exists():
            shutil.rmtree(target)
        os.replace(folder, target)
    except OSError as error:
        raise UserError(f"{folder} is damaged and cannot be renamed: {error}") from error


def _as_saved(name: str) -> str:
    """What PEFT calls a trained parameter in its file."""
    name = name.replace(".default", "").replace(".modules_to_save", "")
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name  # DoRA's


def check_saved(model: nn.Module, folder: Path, original_rows: int) -> None:
    """Whether the adapter in ``folder`` holds all that trained, and an embedding that was resized.

    ``original_rows`` is the size of the embedding in the model's own folder. A full model is saved
    whole, so there is nothing to look for.

    Raises:
        UserError: weights that the tuned model needs are not in the file.
    """
    if not isinstance(model, PeftModel):
        return
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        saved = set(file.keys())
    trained = {
        _as_saved(name) for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    lost = sorted(trained - saved)
    rows = int(inner(model).get_input_embeddings().weight.shape[0])
    if rows != original_rows and not any("embed" in name or "wte" in name for name in saved):
        lost.append(f"the embedding, resized from {original_rows} to {rows} rows")
    if lost:
        raise UserError(
            f"the checkpoint would lack weights that the tuned model needs: {_listed(lost)}; add their "
            "layers to the adapter, or begin from a model that was saved after resizing"
        )


def _listed(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
