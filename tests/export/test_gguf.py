"""GGUF files: every tensor, the tokenizer, and what a real llama.cpp computes with them."""

from pathlib import Path

import pytest
import torch
from shipping import TEXTS, ask_llama_cpp, full_run, needs_llama_cpp
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.export.gguf_write import Written, write_gguf
from luthier.export.options import GgufType
from luthier.export.tuned import TunedWeights
from luthier.run import Run

PROMPT = list(range(3, 60))
# family, chat template with its kind of tokenizer, changes of the config
MODELS: list[tuple[str, str, dict[str, object]]] = [
    ("llama", "chatml", {}),
    ("llama", "llama3", {"attention_bias": True, "mlp_bias": True}),
    (
        "llama",
        "llama3",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    (
        "llama",
        "chatml",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    (
        "qwen2",
        "chatml",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    ("mistral", "mistral", {}),
    ("qwen2", "chatml", {}),
    ("qwen3", "chatml", {"tie_word_embeddings": True}),
    ("gemma2", "gemma", {"query_pre_attn_scalar": 16}),
    ("gemma3", "gemma", {"query_pre_attn_scalar": 16}),
    ("phi3", "phi3", {}),
]


def name_of(case: object) -> str:
    return "-".join(map(str, case[:2])) if isinstance(case, tuple) else str(case)


def write(run: Run, folder: Path, kind: GgufType = "f32") -> Written:
    folder.mkdir(exist_ok=True)
    return write_gguf(TunedWeights(run), folder / f"model-{kind}.gguf", kind, "tiny")


def last_logits(run: Run, prompt: list[int] = PROMPT) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(run.model_path, dtype=torch.float32)
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([prompt])).logits[0, -1]
    return logits


@needs_llama_cpp
@pytest.mark.parametrize("case", MODELS, ids=lambda case: f"{case[0]}-{case[1]}-{len(case[2])}")
def test_llama_cpp_computes_the_same(
    tmp_path: Path, case: tuple[str, str, dict[str, object]]
) -> None:
    """An implementation with nothing in common with Transformers: logits, tokens, template, ends."""
    family, chat, config = case
    run = full_run(tmp_path / "run", family, chat, **config)
    written = write(run, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(run.model_path)
    answer = ask_llama_cpp(written.file, texts=TEXTS, prompts=[PROMPT], new=1, top=400)
    expected = last_logits(run).log_softmax(-1)
    found = {int(token): value for token, value in answer["top"][0].items()}
    assert len(found) == 400
    gap = max(abs(value - expected[token]) for token, value in found.items())
    assert gap < 2e-3 * expected.abs().max(), (gap, expected.abs().max())
    assert answer["tokens"] == [tokenizer(text).input_ids for text in TEXTS]
    assert answer["template"] == tokenizer.chat_template
