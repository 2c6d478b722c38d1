"""GGUF files: every tensor, the tokenizer, and what a real llama.cpp computes with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from families import CHAT_FAMILIES, make_tokenizer
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from shipping import TEXTS, ask_llama_cpp, full_run, needs_llama_cpp
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import UserError
from luthier.export.gguf_write import Written, write_gguf
from luthier.export.options import GgufType
from luthier.export.tuned import TunedWeights
from luthier.models import gguf
from luthier.recipe import Recipe
from luthier.run import Run

PROMPTS = [list(range(start, start + 57)) for start in (3, 60, 117, 174)]
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
    ("mixtral", "mistral", {}),
    ("qwen2_moe", "chatml", {}),
    ("qwen3_moe", "chatml", {}),
]


def write(run: Run, folder: Path, kind: GgufType = "f32") -> Written:
    folder.mkdir(exist_ok=True)
    return write_gguf(TunedWeights(run), folder / f"model-{kind}.gguf", kind, "tiny")


def last_log_probabilities(run: Run) -> Tensor:
    """Of the token after each prompt, (4, vocabulary)."""
    model = AutoModelForCausalLM.from_pretrained(run.model_path, dtype=torch.float32)
    with torch.no_grad():
        logits: Tensor = model(torch.tensor(PROMPTS)).logits[:, -1]
    return logits.log_softmax(-1)


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
    answer = ask_llama_cpp(written.file, texts=TEXTS, prompts=PROMPTS, new=1, top=400)
    compared = 0
    for expected, top in zip(last_log_probabilities(run), answer["top"], strict=True):
        gap = max((abs(value - expected[int(token)]) for token, value in top.items()), default=0)
        assert gap < 2e-3 * expected.abs().max(), (gap, expected.abs().max())
        compared += len(top)
    assert compared >= 400
    assert answer["tokens"] == [tokenizer(text).input_ids for text in TEXTS]
    assert answer["template"] == tokenizer.chat_template


def test_experts_are_read_back_tensor_by_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stack in one piece, gate and up together, though it comes in two; the same bits."""
    # Transformers does not read the width of an expert from the file: it has to be the usual one.
    run = full_run(tmp_path / "run", "qwen3_moe", "chatml", moe_intermediate_size=768)
    written = write(run, tmp_path)
    (tmp_path / "back").mkdir()
    monkeypatch.setattr(gguf, "_SHARD", 2**14)
    gguf.convert_gguf(written.file, tmp_path / "back")
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (run.model_path, tmp_path / "back")
    )
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 2
    assert before.keys() == after.keys()
    for (
        name,
        tensor,
    ) in after.items():  # rows of the embedding that have no token are not in the file
        assert torch.equal(before[name][: len(tensor)], tensor), name


@pytest.mark.parametrize(("template", "adds"), [("chatml", False), ("llama3", True)])
def test_the_beginning_token_is_added_where_the_trained_prompt_has_it(
    tmp_path: Path, template: str, adds: bool
) -> None:
    """A tokenizer that begins every text with it, under a template that writes it or does not."""
    run = full_run(tmp_path / "run", "llama", "llama3")
    tokenizer = AutoTokenizer.from_pretrained(run.model_path)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = CHAT_FAMILIES[template].template
    tokenizer.save_pretrained(run.model_path)
    read = GGUFReader(write(run, tmp_path).file)
    assert bool(read.fields["tokenizer.ggml.add_bos_token"].parts[-1][0]) == adds


@pytest.mark.parametrize("kind", get_args(GgufType))
def test_each_type_is_read_back_within_its_rounding(tmp_path: Path, kind: GgufType) -> None:
    run = full_run(tmp_path / "run", "llama", vocabulary=640)
    written = write(run, tmp_path, kind)
    limits = {"f32": 0.0, "f16": 3e-4, "bf16": 3e-3, "q8_0": 0.007, "q5_1": 0.04, "q5_0": 0.05}
    assert written.rms_error <= limits.get(kind, 0.09)
    assert written.rms_error > 0 or kind == "f32"
    stored = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(written.file).tensors}
    assert stored["blk.0.ffn_down.weight"] == kind.upper()
    assert stored["output_norm.weight"] == "F32"
    ends = "Q8_0" if kind[:2] in ("q4", "q5") else kind.upper()
    assert stored["token_embd.weight"] == ends
    assert "output.weight" not in stored  # tied: llama.cpp takes the embedding


def test_rows_that_are_not_whole_blocks_stay_in_16_bits(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run", "llama", intermediate_size=120)
    written = write(run, tmp_path, "q4_0")
    stored = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(written.file).tensors}
    assert stored["blk.0.ffn_down.weight"] == "F16" and stored["blk.0.ffn_up.weight"] == "Q4_0"


def test_a_wrong_byte_on_the_disk_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading back compares values, so that it would catch any wrong layout of blocks too."""
    from luthier.export import gguf_write

    real = gguf_write.quantize

    def swapped(data: object, stored: object) -> object:
        made = real(data, stored).copy()  # type: ignore[arg-type]
        made.reshape(-1)[:2] = made.reshape(-1)[:2][::-1]
        return made

    monkeypatch.setattr(gguf_write, "quantize", swapped)
    with pytest.raises(UserError, match="further from"):
        write(full_run(tmp_path / "run", "llama"), tmp_path, "f32")


@pytest.mark.parametrize(
    ("family", "chat", "config", "message"),
    [
        ("gpt2", "chatml", {}, "gpt2 models cannot be written"),
        ("qwen2_moe", "chatml", {"norm_topk_prob": True}, "norm_topk_prob False"),
        ("qwen3_moe", "chatml", {"mlp_only_layers": [0]}, "layers without"),
        ("gemma2", "gemma", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar"),
        ("gemma2", "gemma", {"query_pre_attn_scalar": 16, "final_logit_softcapping": None}, "caps"),
        (
            "gemma3",
            "gemma",
            {"query_pre_attn_scalar": 16, "tie_word_embeddings": False},
            "tied embeddings",
        ),
        ("llama", "chatml", {"hidden_act": "gelu"}, "computes llama with silu"),
        (
            "llama",
            "chatml",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rotary scaling 'dynamic'",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, family: str, chat: str, config: dict[str, object], message: str
) -> None:
    run = full_run(tmp_path / "run", family, chat, **config)
    with pytest.raises(UserError, match=message):
        write(run, tmp_path)


def test_a_window_that_llama_cpp_does_not_have_is_said(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run", "mistral-window", "mistral")
    assert "beyond 6 tokens" in write(run, tmp_path).notes[0]


def test_a_way_of_cutting_text_without_a_name_is_refused(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    run = full_run(tmp_path / "run", "llama")
    model = TunedWeights(run)
    model.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(UserError, match="no pre-tokenizer that splits text"):
        write_gguf(model, tmp_path / "x.gguf", "f32", "tiny")


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_byte_level_tokenizers_are_named_by_their_rules(name: str) -> None:
    """Each rule by the name that llama.cpp has for it, and no other."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    from luthier.export.gguf_tokens import _pre_tokenizer

    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    if name == "smollm":
        cut = [pre_tokenizers.Digits(individual_digits=True)]
    elif name != "gpt-2":
        cut = [pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated")]
    else:
        cut = []
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt-2", "smollm"))
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cut, level])
    rules = json.loads(backend.to_str())
    rules["model"]["ignore_merges"] = name == "llama-bpe"
    assert _pre_tokenizer(rules) == name


@needs_llama_cpp
def test_the_adapter_alone_gives_what_merging_gives(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    """Base in one file and adapter in another, put together by llama.cpp."""
    from luthier.export.gguf_adapter import write_adapter_gguf

    overrides = ("method.use_rslora=true", "method.lora_r=8", "method.lora_alpha=16")
    run = train(make_recipe(*overrides))
    merged = write(run, tmp_path)
    layers = write_adapter_gguf(run, tmp_path / "adapter.gguf", "tiny")
    assert layers == 14
    for file in run.adapter_path.glob("adapter_model*"):
        zero = {name: torch.zeros_like(t) for name, t in load_file(file).items()}
        save_file(zero, file)
    base = write(run, tmp_path / "base")
    asked = {"prompts": PROMPTS, "new": 8, "top": 200}
    whole = ask_llama_cpp(merged.file, **asked)
    apart = ask_llama_cpp(base.file, lora=str(tmp_path / "adapter.gguf"), **asked)
    plain = ask_llama_cpp(base.file, **asked)
    assert gap_of(apart, whole) < 2e-3 < 0.05 < gap_of(plain, whole)
    assert apart["greedy"] == whole["greedy"]


def gap_of(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of log-probabilities, over the likely tokens that both tell."""
    gaps = [
        abs(a[token] - b[token])
        for a, b in zip(one["top"], other["top"], strict=True)
        for token in a.keys() & b.keys()
    ]
    assert len(gaps) > 50
    return max(gaps)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method.use_dora=true",), "not support DoRA"),
        (("method.name=full",), "no adapter"),
        (
            ("method.target_modules=[q_proj, embed_tokens]",),
            "not support an adapter on model.embed_tokens",
        ),
    ],
)
def test_adapters_that_llama_cpp_does_not_take(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tmp_path: Path,
    overrides: tuple[str, ...],
    message: str,
) -> None:
    from luthier.export.gguf_adapter import write_adapter_gguf

    with pytest.raises(UserError, match=message):
        write_adapter_gguf(train(make_recipe(*overrides)), tmp_path / "x.gguf", "x")
