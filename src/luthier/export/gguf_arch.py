"""What llama.cpp has to know of a model: its architecture's metadata, names and tensor layout.

After llama.cpp's own converter (convert_hf_to_gguf.py) and its loaders (src/models/*.cpp), which
say what is read and what is assumed. What llama.cpp assumes and a model does otherwise is refused.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedConfig

from luthier.errors import UserError

_ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "mixtral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "qwen2_moe": MODEL_ARCH.QWEN2MOE,
    "qwen3_moe": MODEL_ARCH.QWEN3MOE,
    "gemma": MODEL_ARCH.GEMMA,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3_text": MODEL_ARCH.GEMMA3,
    "phi3": MODEL_ARCH.PHI3,
}
_GEMMAS = (MODEL_ARCH.GEMMA, MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3)
# Layers of the models whose attention llama.cpp scales by hidden_size / heads, not by the head.
_BIG_GEMMAS = {MODEL_ARCH.GEMMA2: 46, MODEL_ARCH.GEMMA3: 62}


@dataclass
class Architecture:
    """How one model is written.

    Attributes:
        name: llama.cpp's name of the architecture.
        extra: tensors that are settings in Transformers, such as rotary factors.
        notes: where llama.cpp computes something else, as sentences.
    """

    arch: MODEL_ARCH
    name: str
    config: PreTrainedConfig
    extra: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _metadata: list[Callable[[GGUFWriter], None]] = field(default_factory=list)

    def write_metadata(self, writer: GGUFWriter) -> None:
        """Put all that the architecture needs into the head of a file."""
        for put in self._metadata:
            put(writer)

    def lay_out(self, parameter: str, value: Tensor) -> dict[str, Tensor]:
        """What llama.cpp has in place of ``parameter``, by its names: one tensor, or two of experts.

        Llama's rotary embedding turns neighbours, Transformers' the two halves of a head: rows of
        queries and keys change places. Gemma's norms are stored with the one that they add. The two
        inner layers of experts, one parameter to Transformers, are two.

        Args:
            value: of the parameter (float32), or of the B of an adapter on it: rows are outputs.

        Raises:
            UserError: llama.cpp has no such tensor.
        """
        if parameter.endswith(".experts.gate_up_proj"):  # (experts, gate and up, inputs)
            experts = parameter.removesuffix("gate_up_proj")
            gate, up = value.chunk(2, dim=1)
            return {
                self._tensor_name(f"{experts}gate_proj.weight"): gate.contiguous(),
                self._tensor_name(f"{experts}up_proj.weight"): up.contiguous(),
            }
        if parameter.endswith(".experts.down_proj"):
            return {self._tensor_name(f"{parameter}.weight"): value.contiguous()}
        heads = self._rotated_heads(parameter)
        if heads is not None:
            halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
            value = halves.transpose(1, 2).reshape(value.shape)
        if self.arch in _GEMMAS and parameter.endswith("norm.weight"):
            value = value + 1
        return {self._tensor_name(parameter): value.contiguous()}

    def _tensor_name(self, parameter: str) -> str:
        names = get_tensor_name_map(self.arch, self.config.num_hidden_layers)
        found = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(
                f"llama.cpp has no tensor for {parameter} in {self.name} models, so the model cannot be written as GGUF"
            )
        return str(found)

    def _rotated_heads(self, parameter: str) -> int | None:
        if self.arch != MODEL_ARCH.LLAMA:
            return None
        if ".q_proj." in parameter:
            return int(self.config.num_attention_heads)
        return int(self.config.num_key_value_heads) if ".k_proj." in parameter else None


def architecture(config: PreTrainedConfig) -> Architecture:
    """How a model of ``config`` is written.

    Raises:
        UserError: llama.cpp does not know it, or would compute something else.
    """
    kind = config.model_type
    if kind not in _ARCHITECTURES:
        raise UserError(
            f"{kind} models cannot be written as GGUF; supported are {', '.join(_ARCHITECTURES)}. "
            "`luthier merge` writes a folder that llama.cpp's own converter may accept"
        )
    arch = _ARCHITECTURES[kind]
    from gguf import MODEL_ARCH_NAMES

    made = Architecture(arch, MODEL_ARCH_NAMES[arch], config)
    head = _head_dim(config)
    put = made._metadata.append
    put(lambda w: w.add_vocab_size(config.vocab_size))
    put(lambda w: w.add_block_count(config.num_hidden_layers))
    put(lambda w: w.add_context_length(config.max_position_embeddings))
    put(lambda w: w.add_embedding_length(config.hidden_size))
    put(lambda w: w.add_feed_forward_length(config.intermediate_size))
    put(lambda w: w.add_head_count(config.num_attention_heads))
    put(lambda w: w.add_head_count_kv(config.num_key_value_heads))
    put(lambda w: w.add_key_length(head))
    put(lambda w: w.add_value_length(head))
    put(lambda w: w.add_layer_norm_rms_eps(config.rms_norm_eps))
    _check_activation(arch, config)
    rope = _rope(config)
    put(lambda w: w.add_rope_freq_base(float(rope["rope_theta"])))
    _add_rotary(made, rope, head)
    _add_experts(made)
    if arch in _GEMMAS:
        _add_gemma(made, head)
    elif window := _window(config):
        made.notes.append(
            f"llama.cpp has no sliding window for {made.name} models: beyond {window:,} tokens of "
            "context it attends to more tokens than the model was trained to"
        )
    return made


def _head_dim(config: PreTrainedConfig) -> int:
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


def _rope(config: PreTrainedConfig, layers: str = "full_attention") -> dict[str, Any]:
    """The rotary settings, of one kind of layers where they differ."""
    rope: dict[str, Any] = config.rope_parameters
    return dict(rope.get(layers, rope))


def _window(config: PreTrainedConfig) -> int | None:
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return None
    return int(window) if window < config.max_position_embeddings else None


def _check_activation(arch: MODEL_ARCH, config: PreTrainedConfig) -> None:
    wanted = "gelu_pytorch_tanh" if arch in _GEMMAS else "silu"
    found = getattr(config, "hidden_activation", None) or config.hidden_act
    if found != wanted:
        raise UserError(
            f"llama.cpp computes {config.model_type} with {wanted}, but this model has {found}"
        )


def _add_rotary(made: Architecture, rope: dict[str, Any], head: int) -> None:
    put, config = made._metadata.append, made.config
    turned = int(head * rope.get("partial_rotary_factor", 1.0))
    put(lambda w: w.add_rope_dimension_count(turned))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        put(lambda w: w.add_rope_scaling_type(RopeScalingType.LINEAR))
        put(lambda w: w.add_rope_scaling_factor(rope["factor"]))
    elif kind == "yarn" and not rope.get("mscale") and rope.get("attention_factor") is None:
        original = rope["original_max_position_embeddings"]
        put(lambda w: w.add_rope_scaling_type(RopeScalingType.YARN))
        put(lambda w: w.add_rope_scaling_factor(rope["factor"]))
        put(lambda w: w.add_rope_scaling_orig_ctx_len(original))
        put(lambda w: w.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32)))
        put(lambda w: w.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1)))
    elif kind == "llama3":
        made.extra["rope_freqs.weight"] = _llama3_factors(rope, turned)
    elif kind == "longrope" and made.arch == MODEL_ARCH.PHI3:
        original = config.original_max_position_embeddings or config.max_position_embeddings
        stretch = config.max_position_embeddings / original
        attention = rope.get("attention_factor")
        if attention is None:
            attention = 1.0
            if stretch > 1:
                attention = math.sqrt(1 + math.log(stretch) / math.log(original))
        put(lambda w: w.add_rope_scaling_orig_ctx_len(original))
        put(lambda w: w.add_rope_scaling_attn_factors(attention))
        for length in ("long", "short"):
            factors = torch.tensor(rope[f"{length}_factor"], dtype=torch.float32)
            made.extra[f"rope_factors_{length}.weight"] = factors
    elif kind != "default":
        raise UserError(
            f"{made.name} models with rotary scaling '{kind}' cannot be written as GGUF"
        )


def _llama3_factors(rope: dict[str, Any], turned: int) -> Tensor:
    """By what Llama 3.1 divides each frequency, (turned / 2,): ROPE_INIT_FUNCTIONS['llama3']."""
    exponents = torch.arange(0, turned, 2, dtype=torch.float64) / turned
    wavelength = 2 * math.pi * rope["rope_theta"] ** exponents
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (original / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(wavelength > original / low, factor, between)
    return torch.where(wavelength < original / high, 1.0, factors).float()


# Whether llama.cpp makes the weights of the chosen experts add up to one.
_NORMALISES = {MODEL_ARCH.QWEN2MOE: False, MODEL_ARCH.QWEN3MOE: True}


def _add_experts(made: Architecture) -> None:
    put, config, arch = made._metadata.append, made.config, made.arch
    if config.model_type == "mixtral":
        put(lambda w: w.add_expert_count(config.num_local_experts))
        put(lambda w: w.add_expert_used_count(config.num_experts_per_tok))
    if arch not in _NORMALISES:
        return
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        raise UserError(
            f"llama.cpp computes {config.model_type} models with experts in every layer, but this "
            "model has layers without"
        )
    if config.norm_topk_prob != _NORMALISES[arch]:
        raise UserError(
            f"llama.cpp computes {config.model_type} models with norm_topk_prob "
            f"{_NORMALISES[arch]}, but this model has {config.norm_topk_prob}"
        )
    put(lambda w: w.add_expert_count(config.num_experts))
    put(lambda w: w.add_expert_used_count(config.num_experts_per_tok))
    put(lambda w: w.add_expert_feed_forward_length(config.moe_intermediate_size))
    if arch == MODEL_ARCH.QWEN2MOE:
        shared = config.shared_expert_intermediate_size
        put(lambda w: w.add_expert_shared_feed_forward_length(shared))


def _add_gemma(made: Architecture, head: int) -> None:
    put, config, arch = made._metadata.append, made.config, made.arch
    if not config.tie_word_embeddings:
        raise UserError(
            "llama.cpp needs tied embeddings for Gemma, but in this model they are untied"
        )
    if arch == MODEL_ARCH.GEMMA:
        return
    big = config.num_hidden_layers == _BIG_GEMMAS[arch]
    scale = config.hidden_size // config.num_attention_heads if big else head
    if config.query_pre_attn_scalar != scale:
        raise UserError(
            f"llama.cpp scales the attention of this model by 1/sqrt({scale}), "
            f"its query_pre_attn_scalar is {config.query_pre_attn_scalar}"
        )
    period = 2 if arch == MODEL_ARCH.GEMMA2 else 6
    full = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
    if full != [i for i in range(config.num_hidden_layers) if i % period == period - 1]:
        raise UserError(
            f"llama.cpp uses full attention in every {period}th layer, but this model does not"
        )
    put(lambda w: w.add_sliding_window(config.sliding_window))
    caps = (config.attn_logit_softcapping, config.final_logit_softcapping)
    if arch == MODEL_ARCH.GEMMA2:
        if None in caps:
            raise UserError("llama.cpp caps the logits of Gemma 2, but this model does not")
        put(lambda w: w.add_attn_logit_softcapping(caps[0]))
        put(lambda w: w.add_final_logit_softcapping(caps[1]))
    else:
        if caps != (None, None) or getattr(config, "use_bidirectional_attention", False):
            raise UserError(
                "llama.cpp computes Gemma 3 with causal attention and uncapped logits, but this model differs"
            )
        local = float(_rope(config, "sliding_attention")["rope_theta"])
        put(lambda w: w.add_rope_freq_base_swa(local))
