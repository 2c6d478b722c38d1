"""The settings of Axolotl."""

from collections.abc import Mapping
from typing import Any

from luthier.errors import UserError
from luthier.recipe.convert import shared
from luthier.recipe.convert.conversion import Conversion
from luthier.recipe.convert.sources import axolotl_source, converted
from luthier.recipe.convert.usual import Default, Usual

USUAL: Usual = {
    "train.lr_scheduler_type": Default("lr_scheduler", "cosine"),
    "train.num_train_epochs": Default("num_epochs", 1.0),
    "train.per_device_train_batch_size": Default("micro_batch_size", 1),
    "train.weight_decay": Default("weight_decay", 0.0),
    "train.optim": Default("optimizer", "adamw_torch_fused"),
    "train.max_grad_norm": Default("max_grad_norm", 1.0),
    "data.max_length": Default("sequence_len", 512),
    "data.on_too_long": Default("excess_length_strategy", "skip", "drop"),
    "data.validation_fraction": Default("val_set_size", 0.0),
}
USUAL_ADAPTER: Usual = {"method.lora_dropout": Default("lora_dropout", 0.0)}
_WARMUP = 0.03  # of the steps, and 100 at most

_TOO_LONG = {"drop": "skip", "truncate": "truncate", "raise": "error"}


def convert(c: Conversion, processes: int) -> Usual:
    """Every setting that is more than a renamed key; what it does where nothing is said."""
    _method(c)
    shared.batch(c, "micro_batch_size", processes)
    shared.schedule(c, "lr_scheduler", warmup_ratio=_WARMUP)
    shared.optimizer(c, "optimizer")
    shared.number_format(c)
    shared.checkpointing(c, usual=False)
    shared.rhythm(c, c.number("num_epochs") or 1.0)
    shared.reports(c)
    shared.names(c)
    _data(c)
    return USUAL if c.tree["method"]["name"] == "full" else {**USUAL, **USUAL_ADAPTER}


def _method(c: Conversion) -> None:
    for name in ("rl", "reward_model", "process_reward_model"):
        if c.get(name):
            raise c.refuse(f"{name}: {c.get(name)}")
    kind = c.get("adapter")
    if kind not in (None, "lora", "qlora"):
        raise c.refuse(f"adapter {kind}")
    four_bit = "load_in_4bit" if kind and c.get("load_in_4bit") else None
    name = {None: "full", "lora": "lora", "qlora": "qlora"}[kind]
    shared.method(c, name, four_bit, "adapter")
    shared.adapter(c, "lora_target_modules")
    if name != "full" and not c.has("method.target_modules"):
        c.lose(
            "lora_target_modules",
            "PEFT chooses the layers by the model there; the recipe has all linear layers",
            value="not set",
        )


def _data(c: Conversion) -> None:
    for name, key, ending in (
        ("datasets", "data.train", "data"),
        ("test_datasets", "data.validation", "validation"),
    ):
        entries = c.get(name)
        if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
            continue
        found = [axolotl_source(c, entry) for entry in entries]
        sources = [source for source in found if source is not None]
        if len(sources) < len(entries):
            if key == "data.validation":
                c.lose(name, "write its rows to one file, and name that as data.validation")
                continue
            texts = {entry.get("type") == "completion" for entry in entries}
            if len(texts) > 1:
                raise UserError(
                    f"{c.file}: '{name}' has plain text (type completion) and conversations, which do "
                    "not go into one file; give each kind a file of its own, and convert both"
                )
            sources = [
                converted(c, [str(c.file)], ending, "text" if texts == {True} else "messages")
            ]
        elif key == "data.validation" and len(sources) > 1:
            c.lose(name, "data.validation is one source; join them with `luthier data convert`")
            continue
        if key == "data.train":
            _template(c, entries)
        _of_entries(c, name, entries)
        c.put(name, {key: sources[0] if len(sources) == 1 else sources})
    if c.get("train_on_inputs"):
        c.put("train_on_inputs", {"data.train_on": "all"})
    elif "train_on_inputs" in c.said:
        c.drop("train_on_inputs", "answers alone count in the loss here, too")
    if c.get("sample_packing") is not None:
        c.put("sample_packing", {"data.packing": bool(c.get("sample_packing"))})
    if (too_long := _TOO_LONG.get(str(c.get("excess_length_strategy")))) is not None:
        c.put("excess_length_strategy", {"data.on_too_long": too_long})
    share = c.number("val_set_size")
    if share is not None and share >= 1:
        c.lose("val_set_size", "data.validation_fraction is a share; the recipe holds out a tenth")
        c.default("val_set_size", share, {"data.validation_fraction": 0.1})
    if c.get("trust_remote_code"):
        c.lose("trust_remote_code", shared.NO_TRUST)


def _of_entries(c: Conversion, name: str, entries: list[Mapping[str, Any]]) -> None:
    """What an entry says besides where its rows are and how they look."""
    for number, entry in enumerate(entries, start=1):
        for key in ("train_on_eos", "chat_template", "roles_to_train", "shards", "name"):
            value = entry.get(key)
            if value and not (key == "roles_to_train" and value == ["assistant"]):
                where = f"{name}.{number}.{key}"
                c.lose(where, "every answer is learned with its end, by one template", value=value)


def _template(c: Conversion, entries: list[Mapping[str, Any]]) -> None:
    said = c.get("chat_template")
    if said == "tokenizer_default":
        c.put("chat_template", {"data.template": "model"})
    elif said == "alpaca" or (said is None and all(e.get("type") == "alpaca" for e in entries)):
        if said is None:
            c.default("datasets.type", "alpaca", {"data.template": "alpaca"})
        else:
            c.put("chat_template", {"data.template": "alpaca"})
    elif said is not None:
        c.lose(
            "chat_template",
            "the model's own chat template is used (data.template), not a copy by name",
        )
