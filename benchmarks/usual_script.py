"""The peers: LoRA as most tutorials write it, on Transformers' Trainer and PEFT, or on TRL.

`usual` pads every row to 512 tokens and takes the loss on all of them but the padding; `trl` is
SFTTrainer with packing and the loss on answers only. Saves the adapter, prints one JSON line. Run by
bench_training.py.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
COMMON: dict[str, Any] = {
    "num_train_epochs": 1, "learning_rate": 3e-4, "save_strategy": "no", "report_to": [],
    "disable_tqdm": True, "logging_strategy": "no", "use_cpu": not torch.cuda.is_available(),
    "per_device_train_batch_size": 4, "seed": 0,
}  # fmt: skip


def chats(data: Path) -> list[list[dict[str, str]]]:
    """Each row as a question and an answer."""
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    return [
        [
            {
                "role": "user",
                "content": "\n\n".join(filter(None, [row["instruction"], row.get("input", "")])),
            },
            {"role": "assistant", "content": row["output"]},
        ]
        for row in rows
    ]


def usual(folder: Path, data: Path, dtype: str) -> Trainer:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    items = []
    for messages in chats(data):
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        item = dict(tokenizer(text, truncation=True, max_length=512, padding="max_length"))
        item["labels"] = [
            token if seen else -100
            for token, seen in zip(item["input_ids"], item["attention_mask"], strict=True)
        ]
        items.append(item)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model = get_peft_model(model, LoraConfig(**LORA, task_type="CAUSAL_LM"))
    arguments = TrainingArguments(output_dir="unused", bf16=dtype == "bfloat16", **COMMON)
    return Trainer(model, arguments, train_dataset=items)


def trl(folder: Path, data: Path, dtype: str) -> Trainer:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": m[:1], "completion": m[1:]} for m in chats(data)]
    # Packed rows of 1,024 tokens hold four examples or so: one of them is the others' batch of four.
    settings = COMMON | {"per_device_train_batch_size": 1}
    arguments = SFTConfig(
        output_dir="unused",
        bf16=dtype == "bfloat16",
        packing=True,
        max_length=1024,
        completion_only_loss=True,
        gradient_checkpointing=False,  # its best setting for speed
        model_init_kwargs={"dtype": dtype},
        **settings,
    )
    trainer: Trainer = SFTTrainer(
        str(folder),
        arguments,
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    )
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["usual", "trl"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    make = usual if chosen.peer == "usual" else trl
    trainer = make(chosen.folder, chosen.data, chosen.dtype)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trainer.model.save_pretrained(chosen.out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "steps": trainer.state.global_step}))


if __name__ == "__main__":
    main()
