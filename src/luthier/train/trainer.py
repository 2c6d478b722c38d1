"""The training step, the same for full, LoRA and QLoRA, on Transformers' Trainer."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from luthier.data.batches import RowDataset, collate
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.files import remove_folder, staged_folder, write_json
from luthier.kernels.head import HeadLoss
from luthier.kernels.loss import loss_sum, mean_loss
from luthier.recipe import TrainGroup
from luthier.run import Run
from luthier.train.checkpoints import check_saved, write_manifest
from luthier.train.optimizers import BF16AdamW, step_in_backward
from luthier.train.probe import ForgettingWatch
from luthier.train.skips import Skips, batch_rows


class LuthierTrainer(Trainer):
    """Trainer with padding-free batches, a token-exact loss and checkpoints that are never partial."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        arguments: TrainingArguments,
        train: RowDataset,
        validation: list[TokenRow],
        run: Run,
        *,
        packed: bool,
        head: HeadLoss | None,
        recipe: TrainGroup,
        embedding_rows: int,
        callbacks: list[TrainerCallback],
        skips: Skips,
        probe: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        ours: Any = {"lr": arguments.learning_rate, "weight_decay": arguments.weight_decay}
        super().__init__(
            model,
            arguments,
            data_collator=collate,
            train_dataset=train,
            # The loop only asks whether there is one; `evaluate` below reads the rows themselves.
            eval_dataset=RowDataset(validation, 0, packing=False) if validation else None,
            callbacks=callbacks,
            optimizer_cls_and_kwargs=(BF16AdamW, ours) if recipe.optim == "adamw_bf16" else None,
        )
        self.loss_is_scaled_for_ga = True  # `compute_loss` divides by all tokens of the step
        self.model_accepts_loss_kwargs = True  # makes the loop count supervised tokens
        self.validation = validation
        self.run_folder = run
        self.packed = packed
        self.head = head
        self.recipe = recipe
        self.probe = probe
        self.embedding_rows = embedding_rows  # of the model as its folder holds it
        self.skips = skips
        self._owed = (False, False)  # a checkpoint, an evaluation

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The recipe's optimiser, stepping in the backward where that is asked for."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.recipe.optimizer_in_backward:
            if self.args.world_size > 1:
                raise UserError("train.optimizer_in_backward is for one process, not several")
            step_in_backward(optimizer)
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Cross-entropy of this micro-batch over the supervised tokens of the whole step.

        loss = sum_t -log p(x_t | x_<t) / N, with N the supervised tokens of all micro-batches and
        processes of the step. Summed over micro-batches it is the mean over the effective batch,
        which a mean of means is not when rows differ in length.
        """
        assert num_items_in_batch is not None and not return_outputs
        if not inputs["predicts"].numel():
            raise UserError(
                f"no token of a batch counts in the loss (step {self.state.global_step + 1}): all its "
                "labels are masked; look at rows with `luthier data show`"
            )
        with save_on_cpu(pin_memory=True) if self._offloads else nullcontext():
            total = loss_sum(model, inputs, packed=self.packed, head=self.head)
        loss = total / num_items_in_batch
        if self.recipe.optimizer_in_backward and not loss.isfinite():
            # No later moment comes before the weights change.
            raise UserError(
                f"training diverged at step {self.state.global_step + 1}: the loss is {loss.item()}; "
                f"lower train.learning_rate (now {self.args.learning_rate:g}) or look at the data"
            )
        # Gradients are averaged over processes, while N was summed over them.
        return loss * self.accelerator.num_processes

    @property
    def _offloads(self) -> bool:
        return self.recipe.activation_offload and self.args.device.type == "cuda"

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[Any], Tensor | int | None]:
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.skips.begin(batches, self._tr_loss)
        return batches, count

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm; where it or the loss is no number, the step that follows changes nothing."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # With float16 the loss scale makes gradients overflow now and then; its scaler skips those.
        # Processes must agree, and of the two only the norm is the same in all.
        numbers = [] if self.args.fp16 else [float(norm)]
        if self.accelerator.num_processes == 1:
            numbers.append(float(self._tr_loss))
        if not all(map(math.isfinite, numbers)):
            if not self.args.fp16:
                model.zero_grad(set_to_none=True)
            self._skip(float(norm))
        return norm

    def _skip(self, norm: float) -> None:
        loss = float(self._tr_loss)
        self._tr_loss.copy_(self.skips.take_back())
        if not self.skips.too_many(self.state.max_steps):
            return
        step, path = self.state.global_step + 1, self.run_folder.bad_batch_path
        assert isinstance(self.train_dataset, RowDataset)
        rows = batch_rows(self.skips.batches, self.train_dataset)
        write_json(path, {"step": step, "loss": repr(loss), "grad_norm": repr(norm), "rows": rows})
        raise UserError(
            f"training diverged at step {step}: loss {loss}, gradient norm {norm}, and "
            f"{self.skips.total - 1} steps before were left out for the same; the rows of this one are "
            f"in {path}. Look at them, or lower train.learning_rate (now {self.args.learning_rate:g})"
        )

    def _maybe_log_save_evaluate(self, *arguments: Any, **named: Any) -> None:
        # What is due at a step that was left out waits for one that counts: a checkpoint between
        # the steps that end a run would keep their gap when it goes on.
        control = self.control
        due = (control.should_save or self._owed[0], control.should_evaluate or self._owed[1])
        wait = self.skips.left_out and not control.should_training_stop
        self._owed = due if wait else (False, False)
        control.should_save, control.should_evaluate = (False, False) if wait else due
        # A resumed run must not need the loss of steps before its checkpoint.
        control.should_log |= not wait and any(due)
        super()._maybe_log_save_evaluate(*arguments, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self.skips.correct(logs)
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss and perplexity over every supervised token of the validation rows, and the probe.

        Before the first step the probe alone: what the others are compared with.
        """
        probed = self._probed()
        if self.state.global_step == 0:
            self.log(dict(probed))
            return probed
        with self.compute_loss_context_manager():
            assert self.model is not None
            loss, _tokens = mean_loss(
                self.model,
                self.validation,
                self.args.per_device_eval_batch_size,
                packed=self.packed,
                head=self.head,
            )
        metrics = {"eval_loss": loss, "eval_perplexity": perplexity(loss), **probed}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _probed(self) -> dict[str, float]:
        if self.probe is None:
            return {}
        with self.compute_loss_context_manager():
            found = self.probe()
        watch = self._watch
        if watch is not None:
            watch.take(found["probe_accuracy"])
        return {f"eval_{name}": value for name, value in found.items()}

    @property
    def _watch(self) -> ForgettingWatch | None:
        # Looked up each time: resuming puts another in its place.
        watching = (c for c in self.callback_handler.callbacks if isinstance(c, ForgettingWatch))
        return next(watching, None)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        watch = self._watch
        if watch is not None and watch.forgot:
            # Never the best, whatever its loss; saved, as it is the last.
            self.control.should_training_stop = self.control.should_save = True
            return False
        best = super()._determine_best_metric(metrics, trial)
        # The best weights are kept whether or not a checkpoint was due.
        self.control.should_save |= best
        return best

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside and rename it, so that it is complete or absent."""
        target = self.run_folder.checkpoint_path(self.state.global_step)
        self.store_flos()
        # TrainerControl is left out: that this process was asked to stop is not the run's state.
        self.state.stateful_callbacks = {  # type: ignore[assignment]
            type(callback).__name__: callback.state()
            for callback in self.callback_handler.callbacks
            if isinstance(callback, ExportableState)
        }
        try:
            with staged_folder(target) as folder:
                self.save_model(str(folder), _internal_call=True)
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                self._save_rng_state(str(folder))
                self.state.save_to_json(str(folder / "trainer_state.json"))
                check_saved(model, folder, self.embedding_rows)
                write_manifest(folder)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save's is a RuntimeError
            raise UserError(
                f"cannot write the checkpoint {target}: {error}\n"
                "the checkpoints before it are whole: free some space and run the same command again"
            ) from error
        self._rotate()

    def _rotate(self) -> None:
        """Keep the newest ``save_total_limit`` checkpoints, and the best one."""
        found = self.run_folder.checkpoints()
        spare = list(found)[: -self.recipe.save_total_limit]
        for step in spare:
            if step != self.state.best_global_step:
                remove_folder(found[step])


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf
