"""The peer: LoRA as most tutorials write it, on Transformers' Trainer and PEFT.

Every row padded to 512 tokens, the loss on all of them but the padding. Prints one JSON line.
Run by bench_training.py.
"""

import json
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments


def main(folder: str, data: str, dtype: str, batch_size: int) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [json.loads(line) for line in Path(data).read_text("utf-8").splitlines()]
    items = []
    for row in rows:
        question = "\n\n".join(filter(None, [row["instruction"], row.get("input", "")]))
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": row["output"]},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        item = dict(tokenizer(text, truncation=True, max_length=512, padding="max_length"))
        item["labels"] = [
            token if seen else -100
            for token, seen in zip(item["input_ids"], item["attention_mask"], strict=True)
        ]
        items.append(item)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model = get_peft_model(
        model,
        LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    arguments = TrainingArguments(
        output_dir="unused",
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=3e-4,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=dtype == "bfloat16",
        logging_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=items)
    started = time.perf_counter()
    trainer.train()
    print(json.dumps({"rows": len(rows), "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
