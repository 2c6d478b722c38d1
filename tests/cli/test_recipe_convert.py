"""Configurations of LLaMA-Factory, Axolotl and TRL, in their documentation's form, as recipes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import Cli, read_metrics, write_rows
from jsonschema import Draft7Validator

from luthier.data.convert import convert_data
from luthier.errors import UserError
from luthier.recipe import Recipe, load_recipe
from luthier.recipe.convert import Converted, convert_recipe
from luthier.recipe.json_schema import json_schema
from luthier.run import Run

CONFIGS = Path(__file__).parents[1] / "configs"
LEAST = "finetuning_type: lora\nmodel_name_or_path: m\ndataset: d\n"
MODEL = ("model.source=m", "data.train=t.jsonl")


def converted(text: str, folder: Path, *sets: str, name: str = "c.yaml") -> Converted:
    (folder / name).write_text(text, "utf-8")
    return convert_recipe(folder / name, None, sets, folder / "recipe.yaml")


def of(name: str, *sets: str) -> Converted:
    return convert_recipe(CONFIGS / name, None, sets, Path("recipe.yaml"))


def values(recipe: Recipe, wanted: dict[str, Any]) -> dict[str, Any]:
    tree = recipe.model_dump()
    return {key: tree[key.partition(".")[0]][key.partition(".")[2]] for key in wanted}


LLAMA_FACTORY = {
    "model.source": "meta-llama/Meta-Llama-3-8B-Instruct",
    "model.dtype": "bfloat16",
    "model.trust_remote_code": False,
    "method.name": "lora",
    "method.lora_r": 8,
    "method.lora_alpha": 16,
    "method.lora_dropout": 0.0,
    "method.target_modules": "all-linear",
    "data.train": "recipe-data.jsonl",
    "data.validation_fraction": 0.1,
    "data.max_length": 2048,
    "data.max_rows": 2000,
    "data.on_too_long": "truncate",
    "train.per_device_train_batch_size": 1,
    "train.gradient_accumulation_steps": 8,
    "train.per_device_eval_batch_size": 1,
    "train.num_train_epochs": 3.0,
    "train.learning_rate": 1e-4,
    "train.lr_scheduler_type": "cosine",
    "train.warmup_ratio": 0.1,
    "train.eval_steps": 500,
    "train.gradient_checkpointing": True,
    "train.report_to": [],
    "run.dir": "saves/llama3-8b/lora/sft",
}
LLAMA_FACTORY_COMMAND = {
    "model.source": "Qwen/Qwen2.5-7B-Instruct",
    "model.dtype": "float16",
    "method.name": "qlora",
    "method.lora_r": 8,
    "method.target_modules": ["q_proj", "v_proj"],
    "train.gradient_accumulation_steps": 8,  # of two processes
    "train.lr_scheduler_type": "cosine_with_min_lr",
    "train.lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "train.warmup_steps": 20,
    "train.warmup_ratio": None,
    "train.save_steps": 0.5,
    "data.validation_fraction": 0.0,
    "run.dir": "saves/qwen/qlora",
}
AXOLOTL = {
    "model.source": "NousResearch/Meta-Llama-3-8B",
    "model.dtype": "auto",
    "method.name": "qlora",
    "method.lora_r": 32,
    "method.lora_alpha": 16,
    "method.target_modules": "all-linear",
    "data.train": "tatsu-lab/alpaca",
    "data.template": "alpaca",
    "data.validation_fraction": 0.05,
    "data.max_length": 4096,
    "data.packing": True,
    "data.on_too_long": "skip",
    "train.per_device_train_batch_size": 2,
    "train.gradient_accumulation_steps": 4,
    "train.num_train_epochs": 4,
    "train.warmup_steps": 10,
    "train.eval_steps": 0.0625,
    "train.save_steps": 0.25,
    "train.optim": "paged_adamw_32bit",
    "train.report_to": ["wandb"],
}
AXOLOTL_FULL = {
    "method.name": "full",
    "model.dtype": "bfloat16",
    "data.train": "recipe-data.jsonl",
    "data.train_on": "all",
    "data.validation_fraction": 0.0,
    "train.per_device_train_batch_size": 8,
    "train.gradient_accumulation_steps": 4,  # 32 rows a step
    "train.learning_rate": 1e-5,
    "train.weight_decay": 0.0,
    "train.optim": "adamw_8bit",
    "train.lr_scheduler_type": "cosine_with_min_lr",
    "train.lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "train.warmup_ratio": 0.03,
    "train.early_stopping_patience": None,
    "train.gradient_checkpointing": False,
}
TRL_COMMAND = {
    "model.source": "Qwen/Qwen2.5-0.5B",
    "method.name": "qlora",
    "method.lora_r": 32,
    "method.lora_alpha": 16,
    "method.lora_dropout": 0.05,
    "method.target_modules": ["q_proj", "v_proj"],
    "method.bnb_4bit_use_double_quant": False,
    "data.train": "trl-lib/Capybara:train",
    "data.validation": "trl-lib/Capybara:test",
    "data.packing": True,
    "data.max_length": 1024,
    "train.per_device_train_batch_size": 2,
    "train.gradient_accumulation_steps": 32,  # of four processes
    "train.lr_scheduler_type": "linear",
    "train.warmup_steps": 0,
    "train.eval_steps": 100,
    "train.learning_rate": 2e-4,
}
TRL_JSON = {
    "method.name": "lora",
    "method.lora_r": 64,
    "method.lora_alpha": 16,
    "method.lora_dropout": 0.1,
    "method.target_modules": "all-linear",
    "data.max_length": 512,
    "data.train_on": "completions",
    "data.packing": False,
    "train.lr_scheduler_type": "warmup_stable_decay",
    "train.lr_scheduler_kwargs": {"num_decay_steps": 2},
    "train.warmup_ratio": 0.03,
    "train.save_steps": 0.5,
    "train.optim": "paged_adamw_8bit",
    "train.seed": 7,
    "train.report_to": ["wandb"],
    "run.dir": "out",
}

FILES: list[tuple[str, str, dict[str, Any], list[str], dict[str, Any]]] = [
    ("llama_factory_lora.yaml", "llama-factory", LLAMA_FACTORY, [],
     {"template": "llama3", "trust_remote_code": True}),
    ("llama_factory_qlora.sh", "llama-factory", LLAMA_FACTORY_COMMAND, [], {"template": "qwen"}),
    ("axolotl_qlora.yml", "axolotl", AXOLOTL, [],
     {"special_tokens": {"pad_token": "<|end_of_text|>"}}),
    ("axolotl_full.yml", "axolotl", AXOLOTL_FULL, [],
     {"early_stopping_patience": 3, "loss_watchdog_threshold": 5.0,
      "deepspeed": "deepspeed_configs/zero2.json"}),
    ("trl_sft.sh", "trl", TRL_COMMAND, [],
     {"eos_token": "<|im_end|>", "assistant_only_loss": "not set"}),
    ("trl_arguments.json", "trl", TRL_JSON, list(MODEL), {"adam_beta2": 0.95}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "tool", "wanted", "sets", "lost"), FILES, ids=lambda v: str(v)[:24]
)
def test_what_becomes_of_each_setting(
    file: str, tool: str, wanted: dict[str, Any], sets: list[str], lost: dict[str, Any]
) -> None:
    done = of(file, *sets)
    assert done.tool == tool
    assert values(done.recipe, wanted) == wanted
    assert {e.name: e.value for e in done.of("no counterpart")} == lost
    assert all(entry.note for entry in done.of("no counterpart", "not needed"))


@pytest.mark.parametrize("file", [file for file, *_ in FILES])
def test_every_setting_is_accounted_for(file: str) -> None:
    told = {entry.name for entry in of(file, *MODEL).entries}
    text = (CONFIGS / file).read_text("utf-8")
    if file.endswith(".sh"):
        named = {w[2:].partition("=")[0] for w in text.split() if w.startswith("--")}
        told |= {name.removeprefix("--") for name in told}
    else:
        tree = yaml.safe_load(text)
        named = {k for v in tree.values() for k in v} if "sft_config" in tree else set(tree)
    assert named <= told


def test_the_command_writes_a_recipe_with_comments_and_lists_all(cli: Cli, tmp_path: Path) -> None:
    file = CONFIGS / "llama_factory_lora.yaml"
    done = cli("recipe", "convert", file, cwd=tmp_path, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for text in (
        "model.source: meta-llama/Meta-Llama-3-8B-Instruct",
        "trust_remote_code",
        "reading and preparing data needs no settings",
        "luthier data convert data/dataset_info.json:identity data/dataset_info.json:support_chats "
        "--to messages --out recipe-data.jsonl",
        "luthier train recipe.yaml",
    ):
        assert text in done.stdout, text
    text = (tmp_path / "recipe.yaml").read_text("utf-8")
    top = " ".join(text.replace("#", " ").split())
    assert "of LLaMA-Factory. What is not written here has its default" in top
    assert "- template: llama3 – the model's own chat template is used" in top
    Draft7Validator(json_schema()).validate(yaml.safe_load(text))
    assert values(load_recipe(tmp_path / "recipe.yaml"), LLAMA_FACTORY) == LLAMA_FACTORY
    again = cli("recipe", "convert", file, cwd=tmp_path)
    assert (again.returncode, "recipe.yaml exists" in again.stderr) == (2, True)


def test_a_script_reads_it_as_json_without_secrets(cli: Cli, tmp_path: Path) -> None:
    sets = [part for text in MODEL for part in ("--set", text)]
    done = cli("recipe", "convert", CONFIGS / "trl_arguments.json", *sets, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["from"] == "trl"
    found = {entry["name"]: entry for entry in told["settings"]}
    assert found["r"]["keys"] == {"method.lora_r": 64}
    assert found["adam_beta2"]["outcome"] == "no counterpart"
    assert found["adam_beta1"]["outcome"] == "not needed"
    assert found["lora_alpha"]["outcome"] == "taken"
    assert found["hub_token"]["value"] == "[secret]"
    assert "must not be shown" not in done.stdout + (tmp_path / "recipe.yaml").read_text("utf-8")


SMALL = (
    "model.dtype=float32", "data.max_length=128", "train.max_steps=4", "train.learning_rate=1e-2",
    "evaluate.probe=false", "train.report_to=none", "run.dir=runs", "run.name=run",
)  # fmt: skip


@pytest.mark.parametrize("file", [file for file, *_ in FILES])
def test_the_recipe_trains(
    file: str,
    tiny_model: Path,
    rows: list[dict[str, str]],
    tmp_path: Path,
    train: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the data that its commands convert, as it was there."""
    monkeypatch.chdir(tmp_path)
    questions = [{"question": r["instruction"], "answer": r["output"]} for r in rows]
    chats = [
        {"turns": [{"speaker": "user", "said": r["instruction"]},
                   {"speaker": "assistant", "said": r["output"]}]} for r in rows
    ]  # fmt: skip
    (tmp_path / "data").mkdir()
    for name, data in (("identity", rows), ("support", questions)):
        write_rows(tmp_path / "data" / f"{name}.jsonl", data)
    write_rows(tmp_path / "support.jsonl", chats)
    write_rows(tmp_path / "notes.jsonl", questions)
    columns = {"prompt": "question", "response": "answer"}
    support = {"file_name": "support.jsonl", "columns": columns}
    info = {"identity": {"file_name": "identity.jsonl"}, "support_chats": support}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info), "utf-8")

    sets = [f"model.source={tiny_model}", *SMALL]
    if file in (
        "axolotl_qlora.yml",
        "trl_sft.sh",
        "trl_arguments.json",
    ):  # data on the hub, or none
        sets += ["data.train=data/identity.jsonl", "data.validation=null"]
    if "arguments" in file:
        sets += ["train.warmup_ratio=0"]  # of four steps
    elif "warmup_steps" in (CONFIGS / file).read_text("utf-8"):
        sets += ["train.warmup_steps=1"]
    done = of(file, *sets)
    for command in done.commands:
        words = command.split()
        to, out = words.index("--to"), words.index("--out")
        assert words[:3] == ["luthier", "data", "convert"]
        convert_data(words[3:to], words[to + 1], Path(words[out + 1]))
    if file == "llama_factory_qlora.sh":
        assert done.recipe.data.train == "data/identity.jsonl"  # usual rows: nothing to convert
        assert done.commands == []
    steps = [line for line in read_metrics(train(done.recipe)) if "loss" in line]
    assert [line["step"] for line in steps][-1] == 4
    assert all(math.isfinite(line["loss"]) for line in steps)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stage: dpo\nmodel_name_or_path: m\n", "stage dpo is not supervised fine-tuning"),
        ("stage: sft\nfinetuning_type: freeze\n", "finetuning_type freeze is not"),
        ("base_model: m\nrl: kto\n", "rl: kto is not"),
        ("per_device_train_batch_size: 2\nbeta: 0.1\n", "training with 'beta' is not"),
        ("colour: red\n", "say which it is with --from"),
        ("[1, 2]", "neither settings by name nor a command"),
        ("finetuning_type: lora\nwarmup_steps: many\n", "'warmup_steps' is 'many' and must be a"),
        (f"{LEAST}learning_rate: fast\n", "'train.learning_rate' is 'fast'"),
        ("finetuning_type: lora\nlora_target: 5\n", "'lora_target' is 5 and must be a list"),
        ("finetuning_type: lora\nwarmup_steps: .inf\n", "'warmup_steps' is inf and must be a"),
        (f"{LEAST}report_to: 5\n", "'report_to' is 5 and must be a list of names"),
        (f"{LEAST}optim: [x]\nlora_rank: 0\n", "'method.lora_r' is 0"),
        ("finetuning_type: lora\n", "names no model; add --set model.source="),
        ("base_model: m\n", "names no training data; add --set data.train="),
        ("base_model: m\ndatasets: [{path: a, type: completion, field: x}, {path: b, field_x: y}]\n",
         "plain text (type completion) and conversations"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        converted(text, tmp_path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("accelerate launch dpo.py --learning_rate 1e-5", "not supervised fine-tuning"),
        ("llamafactory-cli train a/b.yaml", "`luthier recipe convert a/b.yaml`"),
        ("python sft.py --model_name_or_path $NOWHERE", "does not say what $NOWHERE is"),
        ("python sft.py --learning_rate '1", "not a shell command"),
    ],
)
def test_commands_that_cannot_be_read(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        converted(text, tmp_path, name="run.sh")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "wanted", "lost"),
    [
        ("lr_scheduler_type: reduce_lr_on_plateau\n", {"train.lr_scheduler_type": "linear"},
         ["lr_scheduler_type"]),
        ("lr_scheduler_type: constant\nwarmup_ratio: 0.1\n",
         {"train.lr_scheduler_type": "constant", "train.warmup_steps": None}, []),
        ("warmup_steps: 0.05\n", {"train.warmup_ratio": 0.05}, []),  # of Transformers 5
        ("warmup_steps: 5\nwarmup_ratio: 0.1\n", {"train.warmup_steps": 5}, []),
        ("warmup_steps: 0\nwarmup_ratio: 0.1\n", {"train.warmup_ratio": 0.1}, []),
        ("optim: lion_8bit\n", {"train.optim": "adamw_torch_fused"}, ["optim"]),
        ("optim: adamw_bnb_8bit\n", {"train.optim": "adamw_8bit"}, []),
        ("quantization_bit: 8\n", {"method.name": "lora"}, ["quantization_bit"]),
        ("lora_target: all-linear\n", {"method.target_modules": "all-linear"}, []),
        ("lora_target: 'q_proj, v_proj'\n", {"method.target_modules": ["q_proj", "v_proj"]}, []),
        ("val_size: 500\n", {"data.validation_fraction": 0.1}, ["val_size"]),
        ("packing: true\n", {"data.packing": True}, []),
        ("seed: 1\ndata_seed: 2\n", {"train.seed": 1}, ["data_seed"]),
        ("run_name: a/b\n", {"run.name": None}, ["run_name"]),
        ("bf16: false\nfp16: false\n", {"model.dtype": "float32"}, []),
        ("eval_strategy: no\nval_size: 0.1\n", {"train.eval_steps": 1_000_000}, []),
        ("report_to: [wandb, swanlab]\n", {"train.report_to": ["wandb"]}, ["report_to"]),
        ("frobnicate: 3\n", {}, ["frobnicate"]),
        ("train_on_prompt: true\nmask_history: true\n", {"data.train_on": "all"},
         ["mask_history"]),
        ("disable_gradient_checkpointing: true\n", {"train.gradient_checkpointing": False}, []),
    ],
)  # fmt: skip
def test_single_settings(
    text: str, wanted: dict[str, Any], lost: list[str], tmp_path: Path
) -> None:
    done = converted(LEAST + text, tmp_path)
    assert values(done.recipe, wanted) == wanted
    assert [entry.name for entry in done.of("no counterpart")] == lost


def test_axolotl_without_an_adapter_trains_all_weights(tmp_path: Path) -> None:
    text = "base_model: m\ndatasets: [{path: d.jsonl, type: chat_template}]\nlora_r: 8\n"
    done = converted(text + "learning_rate: 1e-5\n", tmp_path)
    wanted = {"method.name": "full", "train.num_train_epochs": 1.0, "data.max_length": 512}
    assert values(done.recipe, wanted) == wanted
    assert done.recipe.data.train == "d.jsonl"
    assert "lora_r" in [entry.name for entry in done.of("not needed")]


def test_trl_without_use_peft_trains_all_weights(tmp_path: Path) -> None:
    command = "python sft.py --model_name_or_path m --dataset_name d.jsonl --lora_r 8\n"
    done = converted(command, tmp_path, name="run.sh")
    assert done.recipe.method.name == "full"
    assert done.recipe.train.learning_rate == 2e-5
    assert done.recipe.data.train == "d.jsonl"


@pytest.mark.parametrize(
    ("source", "held_out"),
    [
        ("d.jsonl", {"data.validation": None, "data.validation_fraction": 0.1}),
        ("owner/name", {"data.validation": "owner/name:test"}),
    ],
)
def test_trl_evaluates_on_what_its_file_says(
    source: str, held_out: dict[str, Any], tmp_path: Path
) -> None:
    command = (
        f"python sft.py --model_name_or_path m --dataset_name {source} --eval_strategy steps\n"
    )
    done = converted(command, tmp_path, name="run.sh")
    assert values(done.recipe, held_out) == held_out
    assert not [e for e in done.entries if e.name == "eval_strategy" and e.value != "steps"]


def test_unsloths_script(tmp_path: Path) -> None:
    command = (
        "python unsloth-cli.py --model_name unsloth/llama-3-8b --max_seq_length 8192 --dtype None "
        "--load_in_4bit --r 64 --lora_alpha 32 --use_gradient_checkpointing unsloth "
        "--random_state 3407 --dataset yahma/alpaca-cleaned --max_steps 40\n"
    )
    done = converted(command, tmp_path, name="run.sh")
    wanted = {
        "model.source": "unsloth/llama-3-8b",
        "method.name": "qlora",
        "method.lora_r": 64,
        "data.max_length": 8192,
        "data.train": "yahma/alpaca-cleaned:train",
        "train.optim": "adamw_8bit",
        "train.warmup_steps": 5,
        "train.max_steps": 40,
        "train.per_device_train_batch_size": 2,
        "train.gradient_checkpointing": True,
    }
    assert values(done.recipe, wanted) == wanted


def test_a_foreign_configuration_given_as_a_recipe_is_named() -> None:
    file = CONFIGS / "axolotl_qlora.yml"
    with pytest.raises(UserError, match=r"is a configuration of Axolotl, not a recipe; `luthier"):
        load_recipe(file)
