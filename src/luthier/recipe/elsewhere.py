"""What others call the keys of a recipe: names of Transformers, TRL, LLaMA-Factory, Axolotl, Unsloth.

One table for three uses: messages about unknown keys, `luthier recipe convert`, and a table of
docs/recipe.md. Names that are ours, too (``learning_rate``), are not in it. Sources: Transformers'
``TrainingArguments``, PEFT's ``LoraConfig``, TRL's ``SFTConfig``, ``ModelConfig`` and
``ScriptArguments``, LLaMA-Factory's ``hparams``, Axolotl's ``schemas``, Unsloth's
``FastLanguageModel``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

TRANSFORMERS, PEFT, TRL = "Transformers", "PEFT", "TRL"
MEGATRON = "Megatron-LM"
FACTORY, AXOLOTL, UNSLOTH = "LLaMA-Factory", "Axolotl", "Unsloth"
TOOLS = (TRANSFORMERS, PEFT, TRL, FACTORY, AXOLOTL, UNSLOTH)

_ANYWHERE = ""  # what people write without a tool in mind

# By key of ours: what each tool calls it.
_RENAMED: dict[str, dict[str, str]] = {
    "model.source": {
        TRANSFORMERS: "model_name_or_path pretrained_model_name_or_path",
        TRL: "model_name_or_path",
        FACTORY: "model_name_or_path",
        AXOLOTL: "base_model",
        UNSLOTH: "model_name",
        _ANYWHERE: "base model_id model_path",
    },
    "model.revision": {
        TRL: "model_revision",
        FACTORY: "model_revision",
        AXOLOTL: "revision_of_model",
    },
    "model.dtype": {TRANSFORMERS: "torch_dtype", TRL: "torch_dtype", AXOLOTL: "torch_dtype"},
    "method.name": {FACTORY: "finetuning_type", AXOLOTL: "adapter", _ANYWHERE: "peft_type"},
    "method.lora_r": {PEFT: "r", FACTORY: "lora_rank", UNSLOTH: "r", _ANYWHERE: "rank"},
    "method.lora_alpha": {_ANYWHERE: "alpha"},
    "method.lora_dropout": {_ANYWHERE: "dropout"},
    "method.target_modules": {
        TRL: "lora_target_modules",
        FACTORY: "lora_target",
        AXOLOTL: "lora_target_modules",
    },
    "method.modules_to_save": {
        TRL: "lora_modules_to_save",
        FACTORY: "additional_target",
        AXOLOTL: "lora_modules_to_save",
    },
    "method.layers_to_transform": {AXOLOTL: "peft_layers_to_transform"},
    "method.init_lora_weights": {AXOLOTL: "peft_init_lora_weights"},
    "method.train_modules": {AXOLOTL: "unfrozen_parameters"},
    "data.template_kwargs": {TRL: "chat_template_kwargs", AXOLOTL: "chat_template_kwargs"},
    "method.use_rslora": {AXOLOTL: "peft_use_rslora"},
    "method.use_dora": {AXOLOTL: "peft_use_dora"},
    "method.bnb_4bit_quant_type": {FACTORY: "quantization_type"},
    "method.bnb_4bit_use_double_quant": {
        TRL: "use_bnb_nested_quant",
        FACTORY: "double_quantization",
    },
    "data.train": {
        TRANSFORMERS: "train_dataset",
        TRL: "dataset_name",
        FACTORY: "dataset",
        AXOLOTL: "datasets",
        _ANYWHERE: "train_file train_files data_path dataset_path train_data",
    },
    "data.validation": {
        FACTORY: "eval_dataset",
        TRL: "eval_dataset",
        AXOLOTL: "test_datasets",
        _ANYWHERE: "validation_file eval_file val_file eval_data",
    },
    "data.validation_fraction": {
        FACTORY: "val_size",
        AXOLOTL: "val_set_size",
        _ANYWHERE: "validation_split validation_split_percentage",
    },
    "data.streaming": {TRL: "dataset_streaming"},
    "data.template": {
        TRL: "chat_template_path",
        AXOLOTL: "chat_template",
        UNSLOTH: "chat_template",
    },
    "data.max_length": {
        TRANSFORMERS: "model_max_length",
        TRL: "max_seq_length",
        FACTORY: "cutoff_len",
        AXOLOTL: "sequence_len",
        UNSLOTH: "max_seq_length",
        _ANYWHERE: "max_seq_len seq_length seq_len block_size context_length max_len max_tokens",
    },
    "data.max_rows": {FACTORY: "max_samples", TRANSFORMERS: "max_train_samples"},
    "data.packing": {FACTORY: "neat_packing", AXOLOTL: "sample_packing"},
    "data.on_too_long": {TRL: "truncation_mode", AXOLOTL: "excess_length_strategy"},
    "train.num_train_epochs": {AXOLOTL: "num_epochs", _ANYWHERE: "epochs n_epochs"},
    "train.per_device_train_batch_size": {
        AXOLOTL: "micro_batch_size",
        _ANYWHERE: "batch_size train_batch_size per_device_batch_size",
    },
    "train.gradient_accumulation_steps": {
        _ANYWHERE: "gradient_accumulation grad_accum grad_accumulation_steps accumulation_steps",
    },
    "train.auto_batch": {TRANSFORMERS: "auto_find_batch_size"},
    "train.per_device_eval_batch_size": {AXOLOTL: "eval_batch_size"},
    "train.learning_rate": {_ANYWHERE: "lr"},
    "train.lr_scheduler_type": {AXOLOTL: "lr_scheduler", _ANYWHERE: "scheduler lr_schedule"},
    "train.warmup_steps": {_ANYWHERE: "num_warmup_steps warmup"},
    "train.optim": {AXOLOTL: "optimizer", _ANYWHERE: "optimiser"},
    "train.max_grad_norm": {_ANYWHERE: "gradient_clipping grad_clip max_norm clip_grad_norm"},
    "train.gradient_checkpointing": {
        TRANSFORMERS: "activation_checkpointing",
        UNSLOTH: "use_gradient_checkpointing",
    },
    "train.activation_offload": {TRL: "activation_offloading", AXOLOTL: "activation_offloading"},
    "train.compile": {TRANSFORMERS: "torch_compile", AXOLOTL: "torch_compile"},
    "train.seed": {
        TRANSFORMERS: "data_seed",
        UNSLOTH: "random_state",
        _ANYWHERE: "random_seed manual_seed",
    },
    "train.eval_steps": {
        TRANSFORMERS: "eval_strategy evaluation_strategy",
        AXOLOTL: "evals_per_epoch",
    },
    "train.save_steps": {TRANSFORMERS: "save_strategy", AXOLOTL: "saves_per_epoch"},
    "objective.name": {FACTORY: "stage", AXOLOTL: "rl"},
    "evaluate.max_new_tokens": {AXOLOTL: "eval_max_new_tokens"},
    "run.dir": {
        TRANSFORMERS: "output_dir",
        TRL: "output_dir",
        FACTORY: "output_dir",
        AXOLOTL: "output_dir",
        _ANYWHERE: "out_dir save_dir",
    },
    "run.name": {TRANSFORMERS: "run_name", AXOLOTL: "wandb_name", _ANYWHERE: "wandb_run_name"},
}

# What is said with a key and a value of ours.
_SAID: dict[str, dict[str, str]] = {
    "model.dtype: bfloat16": {
        TRANSFORMERS: "bf16",
        FACTORY: "bf16 pure_bf16",
        AXOLOTL: "bf16 bfloat16",
    },
    "model.dtype: float16": {TRANSFORMERS: "fp16", FACTORY: "fp16", AXOLOTL: "fp16 float16"},
    "model.dtype: float32": {AXOLOTL: "float32", _ANYWHERE: "fp32"},
    "method.name: qlora": {
        TRANSFORMERS: "load_in_4bit",
        TRL: "load_in_4bit",
        FACTORY: "quantization_bit",
        AXOLOTL: "load_in_4bit",
        UNSLOTH: "load_in_4bit",
    },
    "method.name: lora": {TRL: "use_peft", _ANYWHERE: "use_lora"},
    "method.name: full": {UNSLOTH: "full_finetuning"},
    "method.target_modules: all-linear": {AXOLOTL: "lora_target_linear"},
    "method.init_lora_weights: pissa": {FACTORY: "pissa_init"},
    "data.template_kwargs: {enable_thinking: …}": {FACTORY: "enable_thinking"},
    "data.train_on: completions": {
        TRL: "completion_only_loss assistant_only_loss",
        UNSLOTH: "train_on_responses_only",
    },
    "data.train_on: all": {FACTORY: "train_on_prompt", AXOLOTL: "train_on_inputs"},
    "train.gradient_checkpointing: false": {FACTORY: "disable_gradient_checkpointing"},
    "train.report_to: wandb": {AXOLOTL: "wandb_project", _ANYWHERE: "use_wandb"},
    "train.report_to: tensorboard": {AXOLOTL: "use_tensorboard"},
    "train.report_to: mlflow": {AXOLOTL: "use_mlflow mlflow_tracking_uri"},
    "train.lr_scheduler_type: cosine_with_min_lr": {AXOLOTL: "cosine_min_lr_ratio"},
}

# What has no key, by the reason. These change nothing that is learned.
_NEEDLESS: dict[str, dict[str, str]] = {
    "the same command goes on with an unfinished run by itself": {
        TRANSFORMERS: "resume_from_checkpoint overwrite_output_dir do_train do_eval do_predict "
        "save_only_model",
        AXOLOTL: "auto_resume_from_checkpoints strict",
    },
    "fast paths that give the same result are on by themselves (kernels.*)": {
        TRANSFORMERS: "use_liger_kernel liger_kernel_config attn_implementation "
        "use_flash_attention_2 tf32 use_cache",
        TRL: "use_liger",
        FACTORY: "flash_attn enable_liger_kernel use_unsloth use_unsloth_gc use_reentrant_gc",
        AXOLOTL: "flash_attention xformers_attention sdp_attention flex_attention eager_attention "
        "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp lora_mlp_kernel "
        "lora_qkv_kernel lora_o_kernel unsloth_cross_entropy_loss unsloth_lora_mlp "
        "unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm unsloth_rope",
    },
    "reading and preparing data needs no settings": {
        TRANSFORMERS: "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor "
        "dataloader_persistent_workers remove_unused_columns length_column_name cache_dir use_fast_tokenizer "
        "low_cpu_mem_usage device_map max_memory",
        TRL: "dataset_num_proc dataset_batch_size dataset_kwargs shuffle_dataset",
        FACTORY: "preprocessing_num_workers preprocessing_batch_size overwrite_cache "
        "tokenized_path buffer_size",
        AXOLOTL: "dataset_prepared_path dataset_processes shuffle_merged_datasets "
        "dataset_keep_in_memory skip_prepare_dataset model_type tokenizer_type "
        "trust_remote_code_dataset gpu_memory_limit lora_on_cpu sample_packing_group_size "
        "sample_packing_bin_size sample_packing_eff_est total_num_tokens eval_table_size "
        "is_llama_derived_model is_mistral_derived_model is_qwen_derived_model",
    },
    "rows are never padded more than they must be, and validation needs no packing": {
        TRL: "padding_free pad_to_multiple_of eval_packing packing_strategy",
        AXOLOTL: "pad_to_sequence_len eval_sample_packing",
    },
    "what is logged, and how, needs no settings": {
        TRANSFORMERS: "logging_strategy logging_first_step logging_dir logging_nan_inf_filter "
        "disable_tqdm log_level log_level_replica log_on_each_node skip_memory_metrics "
        "include_num_input_tokens_seen include_tokens_per_second project prediction_loss_only "
        "eval_on_start full_determinism use_cpu",
        FACTORY: "plot_loss print_param_status",
        AXOLOTL: "wandb_entity wandb_watch wandb_run_id wandb_log_model debug profiler_steps",
    },
    "training uploads nothing": {
        TRANSFORMERS: "push_to_hub hub_model_id hub_strategy hub_token hub_private_repo "
        "hub_always_push hub_revision",
        AXOLOTL: "hf_use_auth_token push_dataset_to_hub",
    },
    "who starts the processes says how many there are (docs/processes.md)": {
        TRANSFORMERS: "local_rank ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb "
        "ddp_backend ddp_broadcast_buffers average_tokens_across_devices accelerator_config",
        AXOLOTL: "ddp world_size",
    },
    "PEFT's own settings of a task, which follow from the model": {
        PEFT: "task_type inference_mode fan_in_fan_out peft_version base_model_name_or_path",
        AXOLOTL: "lora_fan_in_fan_out",
    },
}

# What has no key and changes what is learned, or how; by the reason.
_LACKING: dict[str, dict[str, str]] = {
    "train.parallel: fsdp2 cuts a model over processes, zero2 what its training adds (docs/processes.md)": {
        TRANSFORMERS: "fsdp fsdp_config",
        AXOLOTL: "fsdp_version",
    },
    "DeepSpeed is not used: train.parallel: zero2 and fsdp2 do by PyTorch what its stages 2 and 3 do "
    "(docs/processes.md)": {
        TRANSFORMERS: "deepspeed",
    },
    "processes share the rows of a step; none has a part of a row, or of a product: PyTorch's context "
    "parallel keeps no packed rows apart (docs/processes.md)": {
        TRANSFORMERS: "parallelism_config",
        AXOLOTL: "sequence_parallel_degree context_parallel_size tensor_parallel_size",
        MEGATRON: "sequence_parallel",
    },
    "where there are validation rows, the weights with the lowest validation loss are kept": {
        TRANSFORMERS: "load_best_model_at_end metric_for_best_model greater_is_better",
    },
    "AdamW's betas are 0.9 and 0.999, its epsilon 1e-8": {
        TRANSFORMERS: "adam_beta1 adam_beta2 adam_epsilon optim_args optim_target_modules",
    },
    "the loss is the mean over the tokens that count": {
        TRANSFORMERS: "label_smoothing_factor",
        TRL: "loss_type",
    },
    "training starts at the model, not at an adapter; merge the adapter first (`luthier merge`)": {
        FACTORY: "adapter_name_or_path",
        AXOLOTL: "lora_model_dir",
    },
    "the base has 16 bits (method.name lora) or 4 (qlora)": {
        TRANSFORMERS: "load_in_8bit",
        TRL: "load_in_8bit",
        AXOLOTL: "load_in_8bit gptq",
    },
    "the tokenizer is used as it comes with the model": {
        TRL: "eos_token pad_token",
        FACTORY: "resize_vocab add_special_tokens split_special_tokens",
        AXOLOTL: "special_tokens tokens added_tokens_overrides resize_token_embeddings_to_32x "
        "tokenizer_config",
    },
    "every answer of a row is learned": {FACTORY: "mask_history", AXOLOTL: "roles_to_train"},
    "`luthier data mix` mixes data sets by weight": {
        FACTORY: "mix_strategy interleave_probs",
    },
    "its fields are read by their usual names; `luthier data convert` rewrites the rows": {
        TRL: "dataset_text_field",
    },
    "a dataset on the hub is named owner/name[:split], without a configuration": {
        TRL: "dataset_config",
    },
    "the data is read in one order, drawn by train.seed": {
        AXOLOTL: "curriculum_sampling sample_packing_sequentially dataset_exact_deduplication",
        TRANSFORMERS: "dataloader_drop_last group_by_length train_sampling_strategy",
    },
    "Luthier does not have it": {
        PEFT: "layers_pattern loftq_config trainable_token_indices exclude_modules layer_replication",
        FACTORY: "use_galore use_badam use_apollo freeze_trainable_layers freeze_trainable_modules "
        "shift_attn",
        AXOLOTL: "loss_watchdog_threshold loss_watchdog_patience relora plugins embedding_lr "
        "chat_template_jinja default_system_message",
    },
}

# Settings by which a configuration is known.
_MARKS = {
    AXOLOTL: "base_model micro_batch_size sequence_len datasets sample_packing val_set_size",
    FACTORY: "finetuning_type stage cutoff_len lora_rank lora_target dataset_dir val_size",
    TRL: "per_device_train_batch_size dataset_name max_seq_length target_modules learning_rate "
    "num_train_epochs lora_alpha output_dir",
}


@dataclass(frozen=True)
class Counterpart:
    """What a name of another tool is in a recipe.

    Attributes:
        tools: that have the name; none: people write it without a tool in mind.
        key: ours, None where there is none.
        said: ``key: value`` where the name says a value, too.
        why: there is no key.
        needless: without a key, and nothing that is learned depends on it.
    """

    name: str
    tools: tuple[str, ...]
    key: str | None = None
    said: str | None = None
    why: str | None = None
    needless: bool = False

    @property
    def hint(self) -> str:
        """The end of a message about an unknown key."""
        tools = f" ({', '.join(self.tools)})" if self.tools else ""
        if self.why is not None:
            return f"; {self.name}{tools} has no counterpart: {self.why}"
        return f"; {self.name}{tools} is '{self.said or self.key}' here"


def counterpart(name: str) -> Counterpart | None:
    """What ``name`` is here, None where no tool that we know has it (or we have it, too)."""
    return _by_name().get(name)


def tool_of(settings: Mapping[Any, Any]) -> str | None:
    """Whose configuration this is, None where it is nobody's that we know."""
    found = {tool: sum(m in settings for m in marks.split()) for tool, marks in _MARKS.items()}
    tool = max(found, key=lambda name: found[name])
    return tool if found[tool] else None


def foreign_names() -> Iterator[str]:
    """Every name of others that is known."""
    return iter(_by_name())


def names_of(key: str) -> dict[str, list[str]]:
    """By tool, what it calls our key; what says a value, too, with that value."""
    found: dict[str, list[str]] = {}
    for each in _by_name().values():
        if each.key == key:
            for tool in each.tools:
                found.setdefault(tool, []).append(each.name)
    return found


def without_key() -> dict[str, list[str]]:
    """By reason, the names that have no key of ours."""
    found: dict[str, list[str]] = {}
    for each in _by_name().values():
        if each.why is not None:
            found.setdefault(each.why, []).append(each.name)
    return found


@cache
def _by_name() -> Mapping[str, Counterpart]:
    found: dict[str, Counterpart] = {}
    for key, named in _RENAMED.items():
        for name, tools in _turned(named).items():
            found[name] = Counterpart(name, tools, key=key)
    for said, named in _SAID.items():
        for name, tools in _turned(named).items():
            found[name] = Counterpart(name, tools, key=said.partition(":")[0], said=said)
    for reasons, needless in ((_NEEDLESS, True), (_LACKING, False)):
        for why, named in reasons.items():
            for name, tools in _turned(named).items():
                found[name] = Counterpart(name, tools, why=why, needless=needless)
    return found


def _turned(named: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Tools by name, from names by tool."""
    found: dict[str, tuple[str, ...]] = {}
    for tool, names in named.items():
        for name in names.split():
            found[name] = (*found.get(name, ()), *([tool] if tool else ()))
    return found
