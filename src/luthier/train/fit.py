"""A recipe in, a run folder out: the whole of `luthier train`."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from peft import PeftModel
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerState,
    set_seed,
)

from luthier.data.batches import RowDataset
from luthier.data.prepare import Prepared, load_stored, prepare, store
from luthier.data.split import sample
from luthier.errors import Interrupted, UserError
from luthier.kernels import compiling
from luthier.kernels.fast import install_checked
from luthier.kernels.head import HeadLoss
from luthier.kernels.loss import rows_stay_apart
from luthier.kernels.memory import keep_freed_memory
from luthier.models.adapters import trainable_parameters
from luthier.models.load import load_config
from luthier.recipe import Recipe
from luthier.run import Run, save_recipe
from luthier.train.arguments import training_arguments
from luthier.train.callbacks import Display, Recorder, StopRequest
from luthier.train.checkpoints import usable_checkpoints
from luthier.train.finish import Measured, finish, read_measured, stopped_early
from luthier.train.forecast import forecast, write_plan
from luthier.train.guards import (
    base_loss,
    check_embedding,
    check_first_loss,
    check_rows,
    few_short,
)
from luthier.train.memory import (
    OutOfMemory,
    free_memory,
    is_out_of_memory,
    smaller_micro_batch,
    with_micro_batch,
)
from luthier.train.probe import ForgettingWatch, Probe
from luthier.train.provenance import changed_versions, resolved_recipe
from luthier.train.runlog import logging_to_run, writers_errors_told_once
from luthier.train.setup import (
    Setup,
    build_model,
    choose_setup,
    load_prepared_tokenizer,
    resolve_model,
)
from luthier.train.skips import Skips
from luthier.train.trainer import LuthierTrainer
from luthier.train.watch import Watch


def fit(recipe: Recipe, run: Run, display: Display, probe: Probe | None = None) -> Measured:
    """Train by ``recipe`` into ``run``, from its last checkpoint if there is one.

    ``probe`` is asked before the first step and at every evaluation.

    Raises:
        UserError: the recipe, the data or the machine does not allow it.
        Interrupted: the user asked to stop, and a checkpoint of that step was written.
    """
    with run.locked():
        if run.finished:
            return read_measured(run)
        with logging_to_run() as log_to:
            micro_batch: int | None = None
            while True:
                try:
                    return _fit(recipe, run, display, probe, log_to, micro_batch)
                except OutOfMemory as error:
                    micro_batch = smaller_micro_batch(recipe, run, error, display)
                free_memory()  # once the error, and what it refers to, is gone


def _fit(
    recipe: Recipe,
    run: Run,
    display: Display,
    probe: Probe | None,
    log_to: Callable[[Path], None],
    micro_batch: int | None,
) -> Measured:
    # All that can fail for what the user wrote comes before the first file is written.
    checkpoints = usable_checkpoints(run, display)
    provenance = (run.recipe().provenance or {}) if checkpoints else {}
    setup = choose_setup(recipe)
    if checkpoints:  # measured once a run: a busy machine must not change the answer
        setup = replace(setup, dtype=getattr(torch, provenance["dtype"]))
        micro_batch = provenance.get("micro_batch")
    resolved = resolve_model(recipe)
    tokenizer, template = load_prepared_tokenizer(recipe, resolved)
    if checkpoints:
        data = load_stored(recipe.data, tokenizer, run)
        changed = changed_versions(provenance, tokenizer)
        if changed:
            display.note(
                "resuming with other versions, so perhaps not bit for bit: " + ", ".join(changed)
            )
    else:
        data = prepare(recipe, tokenizer)
    if not any(row.conversation.messages for row in data.train):
        template = "none"  # plain text: nothing is rendered, neither now nor at inference
    _describe_data(data, template, display)
    check_rows(data.train, data.validation, tokenizer, display)
    for substitute in setup.substitutes:
        display.note(substitute)
    plan = None if checkpoints else forecast(recipe, resolved, data, setup, display)
    if setup.device.type == "cpu":
        keep_freed_memory()
    set_seed(recipe.train.seed)
    model = build_model(recipe, resolved, setup)
    trainable, total = trainable_parameters(model)
    display.note(
        f"{recipe.method.name}: {trainable:,} of {total:,} parameters train "
        f"({trainable / total:.2%}), {setup.dtype_name} on {setup.device_name}"
    )
    compiled = compiling.pays(recipe.train.compile, _micro_batches(recipe, data), setup.device)
    if compiled:
        display.note(
            "compiling the element-wise work: some ten seconds, the first time on a machine"
        )
    check_embedding(model, data.train, len(tokenizer))
    few = few_short(data.train)
    own_loss = base_loss(model, few) if few else None
    fast = install_checked(model, recipe.kernels, compiled)
    for missing in fast.missing:
        display.note(f"no fast path for {missing}")
    packed = rows_stay_apart(model)
    if not packed:
        display.note("this model cannot keep packed rows apart: each row runs by itself, slower")
    if not checkpoints:
        resolved_now = resolved_recipe(recipe, resolved, setup, tokenizer, template, data)
        if micro_batch is not None and resolved_now.provenance is not None:
            resolved_now.provenance["micro_batch"] = micro_batch
        save_recipe(run, resolved_now)
        store(data, run)
        write_plan(run, plan)
    log_to(run.log_path)
    bound = partial(probe, model, tokenizer) if probe is not None else None
    config = load_config(resolved.folder, recipe.model.trust_remote_code)
    trainer, stop = _make_trainer(
        with_micro_batch(recipe, micro_batch),
        run,
        setup,
        model,
        data,
        packed,
        fast.head,
        config.get_text_config().vocab_size,
        bound,
        display,
    )
    trainer.args.eval_on_start = bound is not None and bool(data.validation) and not checkpoints
    if own_loss is not None:
        check_first_loss(trainer, few, own_loss)
    with stop.listening(display), writers_errors_told_once():
        try:
            _train(trainer, checkpoints)
        finally:
            display.end()
    ended = trainer.state.global_step >= trainer.state.max_steps or stopped_early(trainer.state)
    if stop.requested and not ended:
        raise Interrupted(f"stopped at step {trainer.state.global_step}, all saved in {run.root}")
    return finish(recipe, run, setup, trainer.state, tokenizer, (trainable, total))


def _micro_batches(recipe: Recipe, data: Prepared) -> int:
    """How many go through the model, at most."""
    train = recipe.train
    if train.max_steps > 0:
        return train.max_steps * train.gradient_accumulation_steps
    return round(len(data.train) * train.num_train_epochs / train.per_device_train_batch_size)


def _make_trainer(
    recipe: Recipe,
    run: Run,
    setup: Setup,
    model: PreTrainedModel | PeftModel,
    data: Prepared,
    packed: bool,
    head: HeadLoss | None,
    embedding_rows: int,
    probe: Callable[[], dict[str, float]] | None,
    display: Display,
) -> tuple[LuthierTrainer, StopRequest]:
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.tensorboard_path)
    stop, skips = StopRequest(), Skips()
    callbacks: list[TrainerCallback] = [
        Recorder(run, display, stop),
        Watch(model, display, skips, not recipe.train.optimizer_in_backward),
    ]
    if recipe.train.early_stopping_patience is not None and data.validation:
        callbacks.append(EarlyStoppingCallback(recipe.train.early_stopping_patience))
    if recipe.train.stop_on_forgetting is not None and data.validation:
        assert probe is not None
        callbacks.append(ForgettingWatch(recipe.train.stop_on_forgetting))
    trainer = LuthierTrainer(
        model,
        training_arguments(recipe, run, setup, validates=bool(data.validation)),
        RowDataset(data.train, recipe.data.max_length, recipe.data.packing),
        sample(data.validation, recipe.train.eval_rows or len(data.validation), recipe.train.seed),
        run,
        packed=packed,
        head=head,
        recipe=recipe.train,
        embedding_rows=embedding_rows,
        callbacks=callbacks,
        skips=skips,
        probe=probe,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, stop


def _train(trainer: LuthierTrainer, checkpoints: dict[int, Path]) -> None:
    last = list(checkpoints.values())[-1] if checkpoints else None
    if last is not None:
        state = TrainerState.load_from_json(str(last / "trainer_state.json"))
        if state.global_step >= state.max_steps or stopped_early(state):
            trainer.state = state  # training was done; only the end of the run was cut off
            return
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(str(error)) from None
    except OSError as error:  # TensorBoard's file, say
        raise UserError(
            f"cannot go on: {error}\nwhat was saved is whole: see to it and run the same command again"
        ) from error
    except UnpicklingError as error:  # `weights_only` of torch.load
        raise UserError(
            f"a file of the checkpoint {last} holds more than tensors and numbers, so it is not what "
            "luthier wrote: it could run code and is not opened"
        ) from error


def _describe_data(data: Prepared, template: str, display: Display) -> None:
    report = data.report
    for source in report["sources"]:
        display.note(f"{source['file']}: {source['rows']:,} rows, format {source['format']}")
    rows, tokens = report["rows"], report["tokens"]
    display.note(
        f"{rows['train']:,} rows to train on, {rows['validation']:,} held out; "
        f"{tokens['train']['supervised']:,} of {tokens['train']['total']:,} training tokens are "
        f"supervised; longest row {tokens['train']['longest']}; template {template}"
    )
    replay = report["replay"]
    if replay is not None:
        short = "" if replay["added"] == replay["wanted"] else f", {replay['wanted']:,} wanted"
        display.note(f"{replay['added']:,} of them are general examples (data.replay){short}")
    names = {
        "bad": "cannot be used",
        "too_long": "are over data.max_length",
        "also_in_validation": "are in the validation file too, so not trained on",
    }
    for key, meaning in names.items():
        if report["left_out"][key]:
            display.note(
                f"{len(report['left_out'][key])} rows {meaning}: see data/data-report.json"
            )
