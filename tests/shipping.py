"""Runs without a training, and a real llama.cpp where one is installed."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CHAT_FAMILIES, make_model, make_tokenizer
from transformers import PreTrainedTokenizerFast

from luthier.files import write_json
from luthier.models.load import template_hash
from luthier.recipe import parse_recipe
from luthier.records import Measured, Provenance
from luthier.run import Run, save_recipe

# Text that tokenizers stumble over: spaces, digits, other alphabets, line ends, signs.
TEXTS = [
    "List files over 1 MB",
    "  two  spaces, and\ttabs \n\n new lines\r\n",
    "12345 67 8.9, don't we'll I'M",
    "Grüße, Привет, 你好, 🙂 café",
    "SELECT name FROM boats WHERE length > 10;",
    "",
]


MEASURED = Measured(
    steps=1,
    best_step=1,
    best_eval_loss=None,
    best_eval_perplexity=None,
    stopped_early=False,
    seconds=1.0,
    tokens=100,
    tokens_per_second=100.0,
    peak_memory_bytes=1,
    trainable_parameters=1,
    total_parameters=1,
    device="cpu",
    dtype="float32",
    weights="model",
)


def full_run(
    root: Path, family: str, chat: str = "chatml", vocabulary: int | None = None, **config: Any
) -> Run:
    """A finished full run whose model is a random one of ``family``."""
    run = Run(root)
    tokenizer = make_tokenizer(CHAT_FAMILIES[chat])
    # Some rows of the embedding have no token, as in most real models.
    model = make_model(family, vocabulary or len(tokenizer) + 6)
    for name, value in config.items():
        setattr(model.config, name, value)
    if config:  # what is computed at the start depends on it
        model = type(model)._from_config(model.config, dtype=torch.float32).eval()
    with torch.no_grad():  # random models say the same of everything; make differences show
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", ".bias")):
                parameter += 0.3 * torch.randn_like(parameter)
            elif parameter.ndim >= 2:
                parameter *= 3
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(run.model_path)
    tokenizer.save_pretrained(run.model_path)
    return finish_run(run, tokenizer)


def finish_run(run: Run, tokenizer: PreTrainedTokenizerFast) -> Run:
    """Write what a finished run has beside its weights."""
    rows = [{"messages": chat(n), "origin": ["x.jsonl", n + 1], "extra": {}} for n in range(12)]
    run.train_path.parent.mkdir(parents=True, exist_ok=True)
    for path in (run.train_path, run.validation_path):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = parse_recipe(
        "",
        ["model.source=tiny", "data.train=x.jsonl", "method.name=full", "data.max_length=128"],
    )
    made_of = Provenance(
        versions={},
        device="cpu",
        dtype="float32",
        model="folder tiny",
        template="model",
        template_sha256=template_hash(tokenizer),
        data_sha256={},
    )
    save_recipe(run, recipe)
    write_json(run.provenance_path, made_of.to_dict())
    write_json(run.measured_path, MEASURED.to_dict())
    return run


def chat(n: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"Count to {n}, please, and stop"},
        {"role": "assistant", "content": " ".join(map(str, range(n + 1)))},
    ]


def llama_cpp_python() -> str | None:
    """A Python with `xllamacpp`: $LUTHIER_LLAMA_CPP, else the one that make llama-cpp makes."""
    root = Path(__file__).parents[1]
    python = os.environ.get("LUTHIER_LLAMA_CPP") or str(root / ".venv-llama-cpp/bin/python")
    return python if shutil.which(python) else None


needs_llama_cpp = pytest.mark.skipif(
    llama_cpp_python() is None, reason="no llama.cpp here: `make llama-cpp` installs one"
)


def ask_llama_cpp(model: Path, **asked: Any) -> dict[str, Any]:
    """What a real llama.cpp makes of a GGUF file; see llama_cpp_runner.py."""
    python = llama_cpp_python()
    assert python is not None
    done = subprocess.run(
        [python, str(Path(__file__).parent / "llama_cpp_runner.py")],
        input=json.dumps({"model": str(model), "new": 0, **asked}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.rpartition("ANSWER ")[2])
    return answer
