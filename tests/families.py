"""Tiny models and tokenizers of many families, made on the spot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    set_seed,
)

CHATML = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """\
{{ bos_token }}{% for m in messages %}\
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}\
{% endfor %}{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

GEMMA = """\
{{ bos_token }}{% for m in messages %}\
{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim \
+ '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# Mistral's (and Llama 2's) form: no token ends the prompt, the answer begins with a space.
MISTRAL = """\
{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}\
{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""

PHI3 = """\
{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

# Qwen3 writes an empty thought into the last answer and leaves thoughts out of those before it.
QWEN3 = """\
{% for m in messages %}{% set thought = '<think>\\n\\n</think>\\n\\n' if m.role == 'assistant' and \
loop.last else '' %}{{ '<|im_start|>' + m.role + '\\n' + thought + m.content + '<|im_end|>' + '\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Qwen 2.5's and Hermes' form of tool calls, in short: tools in the system turn, each call as JSON
# between tags, the tools' answers in a user turn.
HERMES = """\
{% if tools %}{{ '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}\
{{ messages[0].content + '\\n\\n' }}{% endif %}{{ '<tools>' }}{% for tool in tools %}\
{{ '\\n' + tool | tojson }}{% endfor %}{{ '\\n</tools><|im_end|>\\n' }}{% endif %}\
{% for m in messages %}{% if m.role == 'system' and tools %}{% elif m.role == 'tool' %}\
{% if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}\
{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}\
{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}\
{% elif m.tool_calls %}{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\\n' + m.content }}{% endif %}\
{% for call in m.tool_calls %}{{ '\\n<tool_call>\\n{"name": "' + call.function.name \
+ '", "arguments": ' + call.function.arguments | tojson + '}\\n</tool_call>' }}{% endfor %}\
{{ '<|im_end|>\\n' }}{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Mistral's: no line of its own, and a tool's answer only after a call.
MISTRAL_TOOLS = """\
{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}\
{{ ('[TOOLS] ' + tools | tojson if tools and loop.last else '') + '[INST] ' + m.content + ' [/INST]' }}\
{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}\
{{ c.function | tojson + (']' if loop.last else ', ') }}{% endfor %}{{ eos_token }}\
{% elif m.role == 'tool' %}{% if not (loop.previtem.tool_calls or loop.previtem.role == 'tool') %}\
{{ raise_exception('an answer to no call') }}{% endif %}{{ '[TOOL_RESULTS] ' + m.content }}\
{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""


@dataclass(frozen=True)
class Family:
    """How a family writes conversations: its template, its tokens, what ends an answer."""

    template: str
    tokens: tuple[str, ...]
    eos: str
    bos: str | None
    answer_start: str
    answer_end: str
    metaspace: bool = False
    system: bool = True


CHAT_FAMILIES = {
    "chatml": Family(CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>", None, "", "<|im_end|>"),
    "llama3": Family(
        LLAMA3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        "<|end_of_text|>",
        "<|begin_of_text|>",
        "",
        "<|eot_id|>",
    ),
    "gemma": Family(
        GEMMA,
        ("<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<bos>",
        "",
        "<end_of_turn>",
        metaspace=True,
        system=False,
    ),
    "mistral": Family(MISTRAL, (), "</s>", "<s>", " ", "</s>", metaspace=True, system=False),
    "mistral-bytes": Family(MISTRAL, (), "</s>", "<s>", " ", "</s>", system=False),
    "phi3": Family(
        PHI3,
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        "<|endoftext|>",
        None,
        "",
        "<|end|>",
    ),
}

_CORPUS = [
    "List files over 1 MB in the current folder and sort them by size.",
    "SELECT name, COUNT(*) FROM boats WHERE length > 10 GROUP BY harbour;",
    "find . -type f -name '*.txt' | xargs grep -l 'pattern' | sort -u",
    "### Instruction: ### Input: ### Response: The capital of France is Paris.",
    "user assistant system model, question and answer; yes or no? 0123456789 \n\n",
]


def make_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A small tokenizer with the family's tokens and template: byte-level, or SentencePiece's kind."""
    bos = [family.bos] if family.bos else []
    special = list(dict.fromkeys(["<unk>", *family.tokens, family.eos, *bos]))
    if family.metaspace:
        raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        raw.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        raw.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet: list[str] = []
    else:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(_CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=family.eos, bos_token=family.bos, unk_token="<unk>"
    )
    tokenizer.chat_template = family.template
    return tokenizer


_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def _configs(vocabulary: int) -> dict[str, PreTrainedConfig]:
    shape = {**_SHAPE, "vocab_size": vocabulary, "pad_token_id": 0}
    return {
        "llama": LlamaConfig(**shape, tie_word_embeddings=True),
        "mistral": MistralConfig(**shape, sliding_window=None),
        "mistral-window": MistralConfig(**shape, sliding_window=6),
        "qwen2": Qwen2Config(**shape),
        "qwen3": Qwen3Config(**shape, head_dim=16),
        "gemma2": Gemma2Config(**shape, head_dim=16, sliding_window=8),
        "gemma3": Gemma3TextConfig(**shape, head_dim=16, sliding_window=8),
        "phi3": Phi3Config(**shape),
        "gpt2": GPT2Config(
            vocab_size=vocabulary, n_embd=64, n_layer=2, n_head=4, n_positions=512, pad_token_id=0
        ),
        "mixtral": MixtralConfig(**shape, num_local_experts=4, num_experts_per_tok=2),
        "qwen2_moe": Qwen2MoeConfig(
            **shape,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=96,
            shared_expert_intermediate_size=160,
        ),
        "qwen3_moe": Qwen3MoeConfig(
            **shape,
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=96,
            norm_topk_prob=True,
        ),
    }


# Mixtral stands for models with experts; merging and exporting try the others too.
MODEL_FAMILIES = tuple(name for name in _configs(8) if not name.endswith("_moe"))


def config_of(name: str, vocabulary: int = 640) -> PreTrainedConfig:
    """The configuration of ``make_model``."""
    return _configs(vocabulary)[name]


def make_model(name: str, vocabulary: int = 640, attention: str | None = None) -> PreTrainedModel:
    """A random float32 model of the architecture ``name``, always the same."""
    set_seed(7)
    config = config_of(name, vocabulary)
    if config.bos_token_id is not None and config.bos_token_id >= vocabulary:
        config.bos_token_id = config.eos_token_id = 0
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval()


WINDOW = 12  # tokens, fewer than the longest rows have
_SMALL = {
    "vocab_size": 640, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def small_config(kind: str) -> Any:
    """A tiny configuration of any architecture of Transformers, with each kind of layer that it has."""
    config = AutoConfig.for_model(kind, **_SMALL)
    if getattr(config, "sliding_window", None):
        config.sliding_window = WINDOW
    if getattr(config, "layer_types", None):  # one of each kind that it has
        kinds = list(dict.fromkeys(AutoConfig.for_model(kind).layer_types))
        config.layer_types = (kinds * 2)[:2]
    return config


def save_tiny(folder: Path, model: str = "llama", chat: str | None = "chatml") -> Path:
    """A model folder in Transformers format; ``chat`` None leaves the chat template out."""
    tokenizer = make_tokenizer(CHAT_FAMILIES[chat or "chatml"])
    if chat is None:
        tokenizer.chat_template = None
    made = make_model(model, len(tokenizer))
    made.config.eos_token_id = tokenizer.eos_token_id
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_narrow(folder: Path) -> Path:
    """Config and tokenizer of SmolLM2-135M's widths with three of its thirty blocks; no weights."""
    LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    make_tokenizer(CHAT_FAMILIES["chatml"]).save_pretrained(folder)
    return folder
