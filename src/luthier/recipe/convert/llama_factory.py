"""The settings of LLaMA-Factory."""

from luthier.recipe.convert import shared
from luthier.recipe.convert.conversion import Conversion
from luthier.recipe.convert.sources import beside, converted, factory_source
from luthier.recipe.convert.usual import Default, Usual

# Its own, and those of Transformers' TrainingArguments.
USUAL: Usual = {
    "train.learning_rate": Default("learning_rate", 5e-5),
    "train.lr_scheduler_type": Default("lr_scheduler_type", "linear"),
    "train.num_train_epochs": Default("num_train_epochs", 3.0),
    "train.per_device_train_batch_size": Default("per_device_train_batch_size", 8),
    "train.weight_decay": Default("weight_decay", 0.0),
    "train.optim": Default("optim", "adamw_torch_fused"),
    "train.max_grad_norm": Default("max_grad_norm", 1.0),
    "data.max_length": Default("cutoff_len", 2048),
    "data.on_too_long": Default("cutoff_len", "truncate", "cuts longer rows"),
    "data.validation_fraction": Default("val_size", 0.0),
}
USUAL_ADAPTER: Usual = {
    "method.lora_r": Default("lora_rank", 8),
    "method.lora_dropout": Default("lora_dropout", 0.0),
    "method.target_modules": Default("lora_target", "all-linear", "all"),
}


def convert(c: Conversion, processes: int) -> Usual:
    """Every setting that is more than a renamed key; what it does where nothing is said."""
    to = "text" if c.get("stage") == "pt" else "messages"
    _method(c)
    shared.batch(c, "per_device_train_batch_size", processes)
    shared.schedule(c, "lr_scheduler_type", warmup_ratio=0.0)
    shared.optimizer(c, "optim")
    shared.number_format(c)
    if c.get("disable_gradient_checkpointing"):
        c.put("disable_gradient_checkpointing", {"train.gradient_checkpointing": False})
    shared.checkpointing(c, usual=True)
    shared.rhythm(c, c.number("num_train_epochs") or 3.0)
    shared.reports(c)
    shared.names(c)
    _data(c, to)
    if c.tree["method"]["name"] == "full":
        return USUAL
    rank = c.number("lora_rank") or USUAL_ADAPTER["method.lora_r"].value
    return {**USUAL, **USUAL_ADAPTER, "method.lora_alpha": Default("lora_alpha", 2 * rank)}


def _method(c: Conversion) -> None:
    stage, kind = c.get("stage") or "sft", c.get("finetuning_type") or "lora"
    if stage not in ("sft", "pt"):
        raise c.refuse(f"stage {stage}")
    if kind not in ("lora", "full"):
        raise c.refuse(f"finetuning_type {kind}")
    if "stage" in c.said:
        c.put("stage", {"objective.name": "sft"}, "rows of plain text" if stage == "pt" else "")
    bits = c.number("quantization_bit")
    shared.method(c, kind, "quantization_bit" if bits == 4 else None, "finetuning_type")
    if "quantization_bit" in c.said and bits is not None:
        c.lose("quantization_bit", "the base has 16 bits (method.name lora) or 4 (qlora)")
    shared.adapter(c, "lora_target")


def _data(c: Conversion, to: str) -> None:
    folder = beside(c, str(c.get("dataset_dir") or "data"))
    if "dataset_dir" in c.said:
        c.drop("dataset_dir", "the sources of the recipe are paths")
    for name, key, ending in (
        ("dataset", "data.train", "data"),
        ("eval_dataset", "data.validation", "validation"),
    ):
        if c.get(name) is None:
            continue
        wanted = c.listed(name)
        direct = [factory_source(folder, each) for each in wanted]
        sources = [source for source in direct if source is not None]
        if len(sources) < len(wanted) or (key == "data.validation" and len(wanted) > 1):
            named = [f"{folder}/dataset_info.json:{each}" for each in wanted]
            sources = [converted(c, named, ending, to)]
        c.put(name, {key: sources[0] if len(sources) == 1 else sources})
        if name == "dataset" and (most := c.number("max_samples")) is not None:
            note = f"of {len(wanted)} data sets together" if len(wanted) > 1 else ""
            c.put("max_samples", {"data.max_rows": int(most) * len(wanted)}, note)
    share = c.number("val_size")
    if share is not None and share >= 1 and c.get("streaming"):
        c.put("val_size", {"data.validation_rows": int(share)})
    elif share is not None and share >= 1:
        c.lose("val_size", "data.validation_fraction is a share; the recipe holds out a tenth")
        c.default("val_size", share, {"data.validation_fraction": 0.1})
    if c.get("train_on_prompt"):
        c.put("train_on_prompt", {"data.train_on": "all"})
    for name in ("packing", "neat_packing"):
        if c.get(name) is not None:
            c.put(name, {"data.packing": bool(c.get(name))}, "rows never see one another")
    template = c.get("template")
    if template == "alpaca":
        c.put("template", {"data.template": "alpaca"})
    elif template is not None:
        c.lose(
            "template", "the model's own chat template is used (data.template), not a copy by name"
        )
    if c.get("trust_remote_code"):
        c.lose("trust_remote_code", shared.NO_TRUST)
