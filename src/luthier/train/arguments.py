"""The recipe's train group as Transformers' TrainingArguments."""

import torch
from transformers import TrainingArguments

from luthier.recipe import Recipe
from luthier.run import Run
from luthier.train.setup import Setup


def training_arguments(
    recipe: Recipe, run: Run, setup: Setup, validates: bool
) -> TrainingArguments:
    """What the Trainer is told. ``validates`` says whether there are validation rows."""
    train = recipe.train
    assert train.learning_rate is not None and train.weight_decay is not None
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints_path),
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_ratio,  # below 1 it is a share of all steps
        weight_decay=train.weight_decay,
        # Ours is handed to the Trainer as a class; it wants a name that it knows all the same.
        optim="adamw_torch" if setup.optim == "adamw_bf16" else setup.optim,
        max_grad_norm=train.max_grad_norm,
        activation_checkpointing=train.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        bf16=setup.dtype == torch.bfloat16,
        fp16=setup.dtype == torch.float16,
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen
        include_num_input_tokens_seen="all",
        eval_strategy="steps" if validates else "no",
        eval_steps=train.eval_steps,
        save_strategy="steps",
        save_steps=train.save_steps,
        metric_for_best_model="loss" if validates else None,
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        seed=train.seed,
        data_seed=train.seed,
        use_cpu=setup.device.type == "cpu",
        report_to=list(train.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=setup.device.type == "cuda",
    )
    # One process drives one device: splitting a padding-free batch over several (DataParallel)
    # would cut rows apart. Several GPUs are used by several processes.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
