"""Checkpoints: complete or absent, verified by hash, with all weights in them.

``checkpoints/step-N/`` holds the weights (in PEFT's or Transformers' format), optimizer.pt,
scheduler.pt, scaler.pt (float16), rng_state.pth (of rank 0, and rng_state_1.pth … of further ones),
state.json, and the hashes of them all. Of a model in parts (``sharded.py``) there are the parts of all
processes instead of the weights and optimizer.pt, until the run ends.
"""

import json
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy
import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from luthier.errors import UserError
from luthier.events import Checkpoint, Note, OnEvent
from luthier.files import remove_folder, sha256, staged_folder, write_json
from luthier.models.adapters import inner, save_adapter
from luthier.models.residual import Start, parted, take_out
from luthier.run import Run
from luthier.train.processes import Processes
from luthier.train.sharded import (
    are_shards,
    is_sharded,
    load_shards,
    move_shards,
    save_shards,
    whole_weights,
)
from luthier.train.state import State, load_state

_MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Keep size and SHA-256 of every file of ``folder`` in it, for ``damage``."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.iterdir())
        if file.name != _MANIFEST
    }
    write_json(folder / _MANIFEST, files)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, None where they are intact."""
    try:
        files: dict[str, Any] = json.loads((folder / _MANIFEST).read_text("utf-8"))
        for name, wanted in files.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            size = file.stat().st_size
            if size != wanted["bytes"]:
                return f"{name} has {size:,} bytes instead of {wanted['bytes']:,}"
            if sha256(file) != wanted["sha256"]:
                return f"{name} has changed since it was written (its SHA-256 differs)"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{_MANIFEST} cannot be read ({error})"
    return None


def usable_checkpoint(run: Run, on_event: OnEvent) -> Path | None:
    """The checkpoint that a run can resume from, after setting damaged ones aside; None: a new run.

    It is the newest whose bytes are intact, and those of the best weights before it. What is newer is
    renamed (``damaged-step-N``), not deleted, with a warning.

    Raises:
        UserError: a damaged checkpoint cannot be renamed, or luthier 0.1 wrote them.
    """
    found = run.checkpoints()
    for step in sorted(found, reverse=True):
        why = damage(found[step]) or _lost_best(run, found[step])
        if why is None:
            return found[step]
        _set_aside(found.pop(step))
        then = f"step {max(found)} is tried next" if found else "the run starts from the beginning"
        on_event(
            Note(
                f"the checkpoint of step {step} cannot be used: {why}; it is kept as "
                f"damaged-step-{step}, and {then}",
                warning=True,
            )
        )
    return None


def _lost_best(run: Run, checkpoint: Path) -> str | None:
    """What is wrong with the checkpoint of the best weights until ``checkpoint``, which is intact."""
    best = load_state(checkpoint).best_step
    if best is None or run.checkpoint_path(best) == checkpoint:
        return None
    fault = damage(run.checkpoint_path(best))
    return f"of the best weights before it, step {best}: {fault}" if fault else None


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
    completely, so there is nothing to look for.

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
            f"the checkpoint would not contain weights that the tuned model needs: {_listed(lost)}; add their "
            "layers to the adapter, or start from a model that was saved after resizing"
        )


def _listed(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@dataclass
class Checkpoints:
    """Writes the checkpoints of a run and reads the one that it resumes from.

    Attributes:
        embedding_rows: of the model as its own folder holds it.
        resumed_from: None in a new run.
        start: what the adapter began with where that was taken out of the base.
    """

    run: Run
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler | None
    keep: int
    embedding_rows: int
    resumed_from: Path | None
    on_event: OnEvent
    start: Start | None = None
    processes: Processes = field(default_factory=Processes)

    def save(self, state: State, best: bool) -> None:
        """Write a checkpoint aside and rename it, then delete those that are no longer kept.

        Raises:
            UserError: it cannot be written, or would lack weights that trained.
        """
        random_states = self.processes.gathered(_random_state())
        shards = self._save_shards() if is_sharded(self.model) else None
        self.processes.from_first(lambda: self._write(state, best, random_states, shards))

    def _save_shards(self) -> Path:
        """The folder beside the checkpoints into which each process wrote its part."""
        folder = self.run.checkpoints_path / ".shards.tmp"
        self.processes.from_first(lambda: folder.mkdir(parents=True, exist_ok=True))
        try:
            save_shards(self.model, self.optimizer, folder)
        except (OSError, CheckpointException) as error:
            raise UserError(f"cannot write {folder}: {error}") from error
        return folder

    def make_whole(self, step: int) -> None:
        """Write the weights of the checkpoint of ``step`` into it as one file, if they are in parts.

        Raises:
            UserError: it does not fit the model, or cannot be written.
        """
        folder = self.run.checkpoint_path(step)
        if not self.processes.from_first(lambda: are_shards(folder)):
            return
        load_shards(self.model, None, folder)
        weights = whole_weights(self.model)

        def write() -> None:
            try:
                self._write_weights(folder, weights)
                write_manifest(folder)
            except (OSError, SafetensorError) as error:
                raise UserError(f"cannot write into {folder}: {error}") from error

        self.processes.from_first(write)

    def _write_weights(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """In PEFT's or Transformers' format; ``weights`` are those of a model in parts."""
        if isinstance(self.model, PeftModel):
            save_adapter(self.model, folder, self.start, weights)
        else:
            model: Any = self.model
            model.save_pretrained(str(folder), state_dict=weights)
        check_saved(self.model, folder, self.embedding_rows)

    def _write(
        self,
        state: State,
        best: bool,
        random_states: list[dict[str, Any]],
        shards: Path | None,
    ) -> None:
        target = self.run.checkpoint_path(state.step)
        try:
            with staged_folder(target) as folder:
                if shards is None:
                    self._write_weights(folder)
                    torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
                else:
                    move_shards(shards, folder)
                    if isinstance(self.model, PeftModel):
                        self.model.peft_config["default"].save_pretrained(str(folder))
                torch.save(self.scheduler.state_dict(), folder / "scheduler.pt")
                if self.scaler is not None:
                    torch.save(self.scaler.state_dict(), folder / "scaler.pt")
                for rank, random_state in enumerate(random_states):
                    torch.save(random_state, folder / _random_name(rank))
                state.save(folder)
                write_manifest(folder)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save's is a RuntimeError
            raise UserError(
                f"cannot write the checkpoint {target}: {error}\n"
                "earlier checkpoints are intact: free some space and run the same command again"
            ) from error
        self._rotate(state.best_step)
        report = self.run.data_report()
        if state.place is not None and report is not None:
            write_json(self.run.data_report_path, report.after(state.place.read).to_dict())
        self.on_event(Checkpoint(state.step, target, best))

    def _rotate(self, best_step: int | None) -> None:
        """Keep the newest ``keep`` checkpoints, and the best one."""
        found = self.run.checkpoints()
        for step in list(found)[: -self.keep]:
            if step != best_step:
                remove_folder(found[step])

    def load(self) -> None:
        """Put the resumed checkpoint's adapter, optimiser and schedule into those of this process.

        Full models were loaded from it in the first place, but for those in parts.

        Raises:
            UserError: it is whole, and the model is in parts.
        """
        folder = self.resumed_from
        if folder is None:
            return
        if are_shards(folder):
            load_shards(self.model, self.optimizer, folder)
        elif is_sharded(self.model):
            raise UserError(
                f"one process wrote {folder}, so several cannot go on from there with train.parallel "
                "fsdp2 or zero2: use ddp, or choose another run.name to start over"
            )
        else:
            self._load_whole(folder)
        self.scheduler.load_state_dict(_load(folder / "scheduler.pt"))
        if self.scaler is not None:
            self.scaler.load_state_dict(_load(folder / "scaler.pt"))

    def _load_whole(self, folder: Path) -> None:
        if isinstance(self.model, PeftModel):
            weights = load_peft_weights(str(folder), device="cpu")
            if self.start is not None:
                weights, self.start = parted(weights)
                take_out(self.model, self.start)
            set_peft_model_state_dict(self.model, weights)
        self.optimizer.load_state_dict(_load(folder / "optimizer.pt"))

    def restore_random_state(self) -> None:
        """Restore the random state of the resumed checkpoint; once."""
        if self.resumed_from is None:
            return
        path = self.resumed_from / _random_name(self.processes.rank)
        self.resumed_from = None
        if not path.is_file():  # more processes than before: this one draws by its seed
            return
        state = _load(path)
        random.setstate(state["python"])
        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, keys.numpy().astype(numpy.uint32), *rest))
        torch.set_rng_state(state["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


def _random_name(rank: int) -> str:
    return f"rng_state{f'_{rank}' if rank else ''}.pth"


def _random_state() -> dict[str, Any]:
    name, keys, *rest = numpy.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(numpy.asarray(keys, dtype=numpy.int64)), *rest),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _load(path: Path) -> Any:
    """The tensors and plain values of a file of a checkpoint.

    Raises:
        UserError: it holds more than those.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # of `weights_only`
        raise UserError(
            f"{path} holds more than tensors and numbers, so luthier did not write it: it could "
            "run code and is not opened; delete that checkpoint"
        ) from error
