"""Settings that all of the tools have, under names of their own."""

import json
from collections.abc import Mapping
from typing import Any

from luthier.recipe.convert.conversion import Conversion
from luthier.recipe.groups.train import REPORTS
from luthier.recipe.schedules import SCHEDULES, check_schedule

NEVER = 1_000_000  # steps: later than any run ends, where both happen anyway
NO_TRUST = (
    "code that comes with a model runs only where you allow it: set model.trust_remote_code if you "
    "have read it"
)
_OF_ADAPTERS = (
    *("r", "lora_r", "lora_rank", "lora_alpha", "lora_dropout", "target_modules"),
    *("lora_target", "lora_target_modules", "lora_target_linear", "use_rslora", "use_dora"),
    *("peft_use_rslora", "peft_use_dora"),
)

_OPTIMIZERS = {
    **{
        name: name
        for name in (
            *("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"),
            *("paged_adamw_32bit", "adafactor", "sgd"),
        )
    },
    "adamw_hf": "adamw_torch",
    "adamw_apex_fused": "adamw_torch_fused",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_torch_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
}


def batch(c: Conversion, name: str, processes: int) -> None:
    """Rows per micro-batch, and micro-batches per step, as many as went into a step there."""
    rows, steps = c.number(name), c.number("gradient_accumulation_steps")
    if rows is None and name in c.said:
        c.lose(name, "rows per micro-batch are a number; train.auto_batch finds what fits")
    elif rows is not None:
        c.put(name, {"train.per_device_train_batch_size": rows})
    if steps is None and name != "micro_batch_size" and processes == 1:
        return
    total = c.number("batch_size")  # Axolotl's, of which the steps follow
    if total is not None:
        steps = max(1, int(total // ((rows or 1) * processes)))
        c.put("batch_size", {"train.gradient_accumulation_steps": steps * processes})
    key = {"train.gradient_accumulation_steps": int(steps or 1) * processes}
    note = f"times {processes} processes, which are one here" if processes > 1 else ""
    if "gradient_accumulation_steps" in c.said:
        c.put("gradient_accumulation_steps", key, note)
    else:
        c.default("gradient_accumulation_steps", 1, key, note)


def schedule(c: Conversion, name: str, warmup_ratio: float) -> None:
    """The learning rate over the steps.

    Args:
        warmup_ratio: of the tool, where nothing is said.
    """
    chosen = c.get(name)
    arguments = c.get("lr_scheduler_kwargs") or {}
    if isinstance(arguments, str):
        arguments = _from_json(arguments)
    lowest = c.number("cosine_min_lr_ratio")
    if lowest is not None and chosen in (None, "cosine") and 0 <= lowest <= 1:
        keys = {"train.lr_scheduler_kwargs": {"min_lr_rate": lowest}}
        c.put("cosine_min_lr_ratio", {"train.lr_scheduler_type": "cosine_with_min_lr", **keys})
        if name in c.said:
            c.drop(name, "cosine_min_lr_ratio says the lowest rate of the cosine")
    elif chosen is not None:
        wrong = _wrong_schedule(str(chosen), arguments)
        if wrong is not None:
            c.lose(name, f"{wrong}; the recipe has the default of {c.tool}")
            c.lose_if_set(["lr_scheduler_kwargs"], f"it is of {chosen}")
        else:
            if arguments:
                c.put("lr_scheduler_kwargs", {"train.lr_scheduler_kwargs": arguments})
            c.put(name, {"train.lr_scheduler_type": chosen})
    _warmup(c, warmup_ratio, constant=chosen == "constant")


def _wrong_schedule(name: str, arguments: Any) -> str | None:
    if name not in SCHEDULES:
        return f"'{name}' is not a schedule of a fixed number of steps"
    if not isinstance(arguments, Mapping):
        return "its arguments are no mapping"
    try:
        check_schedule(name, arguments, rate=1.0)
    except ValueError as error:
        return str(error)
    return None


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _warmup(c: Conversion, usual: float, constant: bool) -> None:
    steps, ratio = c.number("warmup_steps"), c.number("warmup_ratio")
    if constant:
        for name in ("warmup_steps", "warmup_ratio"):
            if name in c.said:
                c.drop(name, "the schedule constant has no warm-up, there either")
        return
    if steps:
        if steps < 1:  # Transformers 5
            c.put("warmup_steps", {"train.warmup_ratio": steps})
        else:
            c.put("warmup_steps", {"train.warmup_steps": int(steps)})
        if "warmup_ratio" in c.said:
            c.drop("warmup_ratio", "warmup_steps goes before it")
        return
    if ratio:
        c.put("warmup_ratio", {"train.warmup_ratio": ratio})
        if "warmup_steps" in c.said:
            c.drop("warmup_steps", "it is 0, so that warmup_ratio decides")
        return
    for name in ("warmup_steps", "warmup_ratio"):
        if c.said.get(name) is not None:
            c.put(name, {"train.warmup_steps": 0})
    if usual:
        c.default("warmup_ratio", usual, {"train.warmup_ratio": usual})
    else:
        c.default("warmup_steps", 0, {"train.warmup_steps": 0})


def optimizer(c: Conversion, name: str) -> None:
    """The optimiser, where ours has the same update rule."""
    chosen = c.get(name)
    if chosen is None:
        return
    if (ours := _OPTIMIZERS.get(str(chosen))) is not None:
        c.put(name, {"train.optim": ours})
    else:
        c.lose(name, "Luthier does not have this optimiser; the recipe has AdamW instead")


def number_format(c: Conversion) -> None:
    """``bf16``, ``fp16`` and the type of the weights as one number format."""
    named = str(c.get("torch_dtype", "dtype") or "").removeprefix("torch.")
    for name, dtype in (
        ("bf16", "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("pure_bf16", "bfloat16"),
        ("fp16", "float16"),
        ("float16", "float16"),
        ("float32", "float32"),
    ):
        value = c.said.get(name)
        if value in ("auto", "full") or value is True:
            c.put(name, {"model.dtype": "auto" if value == "auto" else dtype})
    if c.said.get("bf16") is False and c.said.get("fp16") is False and not c.has("model.dtype"):
        c.put("bf16", {"model.dtype": "float32"})
    for name in ("torch_dtype", "dtype"):
        if c.get(name) is None:
            continue
        if c.has("model.dtype"):
            c.drop(name, "the number format of the arithmetic decides")
        elif named in ("auto", "float32", "bfloat16", "float16"):
            c.put(name, {"model.dtype": named})
        else:
            c.lose(name, "number formats are float32, bfloat16 and float16")


def checkpointing(c: Conversion, usual: bool) -> None:
    """Activations computed again; ``usual``: what the tool does where nothing is said."""
    for name in (
        "gradient_checkpointing",
        "activation_checkpointing",
        "use_gradient_checkpointing",
    ):
        if (value := c.get(name)) is not None:
            c.put(name, {"train.gradient_checkpointing": value not in (False, "False", "none")})
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if name in c.said:
            c.drop(name, "activations are computed again in the way that PyTorch recommends")
    c.default("gradient_checkpointing", usual, {"train.gradient_checkpointing": usual})


def rhythm(c: Conversion, epochs: float) -> None:
    """When to evaluate and to save; ``epochs``: those of the run."""
    _every(c, "train.eval_steps", ("eval_strategy", "evaluation_strategy"), "eval_steps",
           "evals_per_epoch", epochs)  # fmt: skip
    _every(c, "train.save_steps", ("save_strategy",), "save_steps", "saves_per_epoch", epochs)
    logged = c.number("logging_steps")
    if logged is not None and logged < 1:
        c.lose("logging_steps", "train.logging_steps is a number of steps, not a share")
    if "save_total_limit" in c.said and (c.number("save_total_limit") or 0) < 1:
        c.drop("save_total_limit", "train.save_total_limit keeps two checkpoints and the best one")


def _every(
    c: Conversion,
    key: str,
    strategies: tuple[str, ...],
    steps_name: str,
    per_epoch_name: str,
    epochs: float,
) -> None:
    by_steps = (c.number("max_steps") or -1) > 0
    for name in strategies:
        strategy = c.said.get(name)
        if name not in c.said or strategy is None:
            continue
        if strategy is False or strategy == "no":
            c.put(name, {key: NEVER}, "at the end alone")
        elif strategy == "epoch" and not by_steps:
            c.put(name, {key: _share(1, epochs)}, "once per epoch, as a share of all steps")
        elif strategy == "steps":
            c.drop(name, f"{key} is a number of steps, or a share of them")
        else:
            c.lose(name, f"{key} is a number of steps, or a share of them")
    often = c.number(per_epoch_name)
    if often and by_steps:
        c.lose(per_epoch_name, f"max_steps decides how long the run is, so {key} needs a number")
    elif often:
        note = f"{often:g} per epoch, as a share of all steps"
        c.put(per_epoch_name, {key: _share(often, epochs)}, note)
    steps = c.number(steps_name)
    if steps and c.has(key):
        c.drop(steps_name, "it does not count beside the other setting")
    elif steps:
        c.put(steps_name, {key: steps})


def _share(times: float, epochs: float) -> float:
    share = round(1 / (times * epochs), 6)
    return share if share < 1 else NEVER


def reports(c: Conversion) -> None:
    """Where figures go."""
    wanted: list[str] = []
    said = c.get("report_to")
    for name in c.listed("report_to") if said is not None else ():
        if name in REPORTS:
            wanted.append(name)
        elif name != "none":
            c.lose("report_to", "it is not one of " + ", ".join(REPORTS), value=name)
    if said is not None:
        c.put("report_to", {"train.report_to": wanted})
    for name, tracker in (
        ("wandb_project", "wandb"),
        ("use_wandb", "wandb"),
        ("use_tensorboard", "tensorboard"),
        ("use_mlflow", "mlflow"),
        ("mlflow_tracking_uri", "mlflow"),
    ):
        if c.get(name):
            wanted = list(dict.fromkeys([*wanted, tracker]))
            note = "the project is WANDB_PROJECT of the environment" if "project" in name else ""
            note = "the place is MLFLOW_TRACKING_URI of the environment" if "uri" in name else note
            c.put(name, {"train.report_to": wanted}, note)


def names(c: Conversion) -> None:
    """Where the run goes, and what it is called."""
    for name in ("run_name", "wandb_name"):
        called = c.get(name)
        if isinstance(called, str) and (set(called) & set("/\\") or called in (".", "..", "")):
            c.lose(name, "run.name is the name of a folder, without slashes")


def adapter(c: Conversion, targets: str) -> None:
    """Rank and layers of a LoRA adapter; ``targets``: the setting that names the layers."""
    if c.get(targets) is not None:
        modules: str | list[str] = c.listed(targets)
        if any(name.replace("_", "-") in ("all", "all-linear") for name in modules):
            modules = "all-linear"
        c.put(targets, {"method.target_modules": modules})
    if c.get("lora_target_linear"):
        c.put("lora_target_linear", {"method.target_modules": "all-linear"})


def method(c: Conversion, name: str, four_bit: str | None, tells: str) -> None:
    """The method: ``full`` or ``lora``, which 4-bit weights make qlora.

    Args:
        four_bit: the setting that asks for them, if it does.
        tells: the setting that names the method; where it is not in the file, the tool's default.
    """
    if four_bit is not None:
        c.put(four_bit, {"method.name": "qlora"}, "an adapter beside weights in 4 bits")
        name = "qlora"
    if name == "full":
        for setting in _OF_ADAPTERS:
            if c.said.get(setting) is not None:
                c.drop(setting, "there is no adapter")
    if tells in c.said:
        c.put(tells, {"method.name": name})
    else:
        c.default(tells, name, {"method.name": name})
