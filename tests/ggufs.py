"""GGUF files of tiny models, as llama.cpp's converter lays them out."""

from pathlib import Path

import torch
from families import make_model
from gguf import (
    MODEL_ARCH,
    ExpertGatingFuncType,
    GGMLQuantizationType,
    GGUFWriter,
    get_tensor_name_map,
    quantize,
)
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    MiniMaxM2Config,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)


def add_shape(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def add_tokens(writer: GGUFWriter) -> None:
    """64 of them."""
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|endoftext|>", *(chr(0x21 + i) for i in range(62)), '!"'])
    writer.add_token_types([3] + [1] * 63)
    writer.add_token_merges(['! "'])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)


def add_tensor(writer: GGUFWriter, name: str, tensor: Tensor, in_8_bits: bool) -> None:
    """Its matrices in 8 bits if asked for."""
    values = tensor.contiguous().numpy()
    if in_8_bits and tensor.ndim > 1:
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values)


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama(path: Path, quantised: bool = False) -> None:
    """A two-layer Llama, its matrices in 8 bits if ``quantised``."""
    model = make_model("llama", 64)
    config = model.config
    writer = GGUFWriter(path, "llama")
    add_shape(writer, config)
    add_tokens(writer)
    writer.add_rope_dimension_count(config.head_dim)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "model.layers": "blk",
    }
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        add_tensor(writer, name, tensor, quantised)
    finish(writer)


def write_minimax(path: Path, quantised: bool = False, layers: int = 2) -> PreTrainedModel:
    """A MiniMax M2 whose biases of the router say something, and the model that it is of."""
    set_seed(7)
    config = MiniMaxM2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rotary_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    writer = GGUFWriter(path, "minimax-m2")
    add_shape(writer, config)
    add_tokens(writer)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    names = get_tensor_name_map(MODEL_ARCH.MINIMAXM2, layers)
    for name, tensor in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor.normal_()
            name = name.removesuffix("_bias") + ".bias"
        parts = {name: tensor}
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            parts = dict(
                zip((f"{stem}gate_proj", f"{stem}up_proj"), tensor.chunk(2, 1), strict=True)
            )
        for part, values in parts.items():
            stored = names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert stored is not None, part
            suffix = "" if stored.endswith((".weight", ".bias")) else ".weight"
            add_tensor(writer, stored + suffix, values, quantised)
    finish(writer)
    return model
