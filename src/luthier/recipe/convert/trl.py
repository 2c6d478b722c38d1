"""The settings of TRL: SFTConfig, ModelConfig and ScriptArguments, and PEFT's LoraConfig; Unsloth's."""

from pathlib import Path

from luthier.recipe.convert import shared
from luthier.recipe.convert.conversion import Conversion
from luthier.recipe.convert.sources import beside
from luthier.recipe.convert.usual import Default, Usual

USUAL: Usual = {
    "train.learning_rate": Default("learning_rate", 2e-5),
    "train.lr_scheduler_type": Default("lr_scheduler_type", "linear"),
    "train.num_train_epochs": Default("num_train_epochs", 3.0),
    "train.per_device_train_batch_size": Default("per_device_train_batch_size", 8),
    "train.weight_decay": Default("weight_decay", 0.0),
    "train.optim": Default("optim", "adamw_torch_fused"),
    "train.max_grad_norm": Default("max_grad_norm", 1.0),
    "data.max_length": Default("max_length", 1024),
    "data.on_too_long": Default("truncation_mode", "truncate", "keep_start"),
}
USUAL_UNEVALUATED: Usual = {"data.validation_fraction": Default("eval_strategy", 0.0, "no")}
# PEFT's LoraConfig, and TRL's ModelConfig on a command line.
USUAL_LORA_CONFIG: Usual = {
    "method.lora_r": Default("r", 8),
    "method.lora_alpha": Default("lora_alpha", 8),
    "method.lora_dropout": Default("lora_dropout", 0.0),
}
USUAL_MODEL_CONFIG: Usual = {
    "method.lora_r": Default("lora_r", 16),
    "method.lora_alpha": Default("lora_alpha", 32),
    "method.lora_dropout": Default("lora_dropout", 0.05),
}

# What Unsloth's own script does where nothing is said.
UNSLOTH_SCRIPT = {
    "use_peft": True,
    "max_seq_length": 2048,
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "warmup_steps": 5,
    "max_steps": 400,
    "learning_rate": 2e-4,
    "optim": "adamw_8bit",
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "seed": 3407,
}

# Settings of preference training and of reinforcement learning.
_OTHER_TRAINING = (
    *("beta", "num_generations", "max_completion_length", "max_prompt_length"),
    *("desirable_weight", "reward_funcs", "reward_model_path", "simpo_gamma"),
)


def convert(c: Conversion, processes: int) -> Usual:
    """Every setting that is more than a renamed key; what it does where nothing is said."""
    for name in _OTHER_TRAINING:
        if c.get(name) is not None:
            raise c.refuse(f"training with '{name}'")
    plain = "r" in c.said or "target_modules" in c.said  # a LoraConfig
    _method(c, plain)
    shared.batch(c, "per_device_train_batch_size", processes)
    shared.schedule(c, "lr_scheduler_type", warmup_ratio=0.0)
    shared.optimizer(c, "optim")
    shared.number_format(c)
    shared.checkpointing(c, usual=True)
    evaluated = c.get("eval_strategy", "evaluation_strategy") not in (None, False, "no")
    shared.rhythm(c, c.number("num_train_epochs") or 3.0)
    shared.reports(c)
    shared.names(c)
    _sources(c, evaluated)
    _rows(c)
    usual = USUAL if evaluated else {**USUAL, **USUAL_UNEVALUATED}
    if c.tree["method"]["name"] == "full":
        return usual
    return {**usual, **(USUAL_LORA_CONFIG if plain else USUAL_MODEL_CONFIG)}


def _method(c: Conversion, plain: bool) -> None:
    kind = c.get("peft_type")
    if kind is not None and str(kind).rpartition(".")[2].upper() != "LORA":
        raise c.refuse(f"peft_type {kind}")
    # On a command line, ModelConfig's values do not count without use_peft.
    lora = bool(c.get("use_peft")) or (
        "use_peft" not in c.said and (plain or kind is not None or bool(c.get("load_in_4bit")))
    )
    if "base_model_name_or_path" in c.said and c.get("model_name_or_path") is None:
        c.put("base_model_name_or_path", {"model.source": c.get("base_model_name_or_path")})
    told = "peft_type" if kind is not None and "use_peft" not in c.said else "use_peft"
    four_bit = "load_in_4bit" if lora and c.get("load_in_4bit") else None
    shared.method(c, "lora" if lora else "full", four_bit, told)
    shared.adapter(c, "target_modules" if "target_modules" in c.said else "lora_target_modules")
    if lora and not c.has("method.target_modules"):
        c.lose(
            "target_modules",
            "PEFT chooses the layers by the model there (often q_proj and v_proj); the recipe has "
            "all linear layers",
            value="not set",
        )
    if four_bit is not None:
        nested = ("use_bnb_nested_quant", "bnb_4bit_use_double_quant")
        if not any(name in c.said for name in nested):
            c.default(nested[0], False, {"method.bnb_4bit_use_double_quant": False})


def _sources(c: Conversion, evaluated: bool) -> None:
    """A dataset on the hub, whose splits are part of its name, or files here."""
    name = "dataset_name" if c.get("dataset_name") is not None else "dataset"
    if c.get(name) is None:
        return
    source = beside(c, str(c.get(name)))
    if Path(source).exists() or Path(source).suffix:
        c.put(name, {"data.train": source})
        for setting in ("dataset_train_split", "dataset_test_split"):
            if setting in c.said:
                c.lose(setting, "a folder or file here is read whole")
        if evaluated and "eval_dataset" not in c.said:
            c.lose(
                "eval_dataset",
                "a folder or file here has one split; the recipe holds out a tenth of its rows, or "
                "name a file as data.validation",
                value="not set",
            )
        return
    train, test = (c.get(f"dataset_{part}_split") or part for part in ("train", "test"))
    c.put(name, {"data.train": f"{source}:{train}"})
    if "dataset_train_split" in c.said:
        c.drop("dataset_train_split", "it is part of data.train")
    validation = {"data.validation": f"{source}:{test}"}
    if "dataset_test_split" not in c.said:
        if evaluated:
            c.default("dataset_test_split", test, validation)
    elif evaluated:
        c.put("dataset_test_split", validation)
    else:
        c.drop("dataset_test_split", "nothing is evaluated there")


def _rows(c: Conversion) -> None:
    long = c.get("max_length", "max_seq_length")
    for name in ("max_length", "max_seq_length"):
        if c.get(name) is not None:
            c.put(name, {"data.max_length": c.number(name)})
        elif name in c.said and long is None:
            c.lose(name, "data.max_length is a number; the recipe has its default")
            c.default(name, None, {"data.max_length": 1024})
    if c.get("truncation_mode") == "keep_start":
        c.put("truncation_mode", {"data.on_too_long": "truncate"})
    elif c.get("truncation_mode") is not None:
        c.lose("truncation_mode", "rows that are too long keep their start (data.on_too_long)")
    if c.get("completion_only_loss") is False or (
        c.get("assistant_only_loss") is False and not c.get("completion_only_loss")
    ):
        learned = "all"
    else:
        learned = "completions"
    for name in ("completion_only_loss", "assistant_only_loss"):
        if c.get(name) is not None:
            c.put(name, {"data.train_on": learned})
    if not c.has("data.train_on"):
        c.lose(
            "assistant_only_loss",
            "TRL learns every token of messages and texts by itself, the recipe the answers alone; "
            "data.train_on: all is TRL's way",
            value="not set",
        )
    if (template := c.get("chat_template_path")) is not None:
        if str(template).endswith((".jinja", ".jinja2", ".j2")):
            c.put("chat_template_path", {"data.template": beside(c, str(template))})
        else:
            c.lose("chat_template_path", "data.template is a Jinja file, model or alpaca")
    if c.get("trust_remote_code"):
        c.lose("trust_remote_code", shared.NO_TRUST)
    if "eval_dataset" in c.said:
        c.lose("eval_dataset", "name its file as data.validation")
