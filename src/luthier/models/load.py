"""Load a model and its tokenizer from a resolved folder."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.quantization_config import Mxfp4Config

from luthier.errors import UserError
from luthier.events import Note, OnEvent, during, ignore
from luthier.models.claims import check_config, check_size, check_tokenizer
from luthier.models.rope import RopeScaling, scaled
from luthier.recipe import MethodGroup

log = logging.getLogger(__name__)


def load_config(
    folder: Path, trust_remote_code: bool = False, rope: RopeScaling | None = None
) -> PreTrainedConfig:
    """The model's config, its rotary positions scaled by ``rope``.

    Raises:
        UserError: it is missing or unreadable, claims what no model has, needs code that ships with
            the model, or cannot be scaled so.
    """
    check_config(folder)
    with _told(folder):
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    return scaled(config, rope)


def max_positions(config: PreTrainedConfig) -> int | None:
    """Longest row that a model can read, in tokens; None where its config does not say."""
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found


# Which of Transformers' kinds of quantised weights an adapter can be trained on here: bitsandbytes', and
# gpt-oss's, which are expanded as they are loaded.
_TRAINED_ON = {"bitsandbytes", "mxfp4"}


def refuse_quantised(
    source: str, config: PreTrainedConfig, method: MethodGroup, fp8_base: bool = False
) -> None:
    """Raise UserError where the weights of ``source`` are quantised in a way that nothing is trained on.

    With ``fp8_base`` also where they lie in 4 or 8 bits, which are not put into others.
    """
    stored = _stored(config)
    if not stored:
        return
    kind = _kind(stored)
    if kind not in _TRAINED_ON:
        raise UserError(
            f"the weights of {source} are quantised already ({kind}), which is for inference; train on "
            "the model that they were made of, with method.name=qlora if it is to take as little memory"
        )
    if fp8_base and kind == "bitsandbytes":
        raise UserError(
            f"the weights of {source} are quantised already ({kind}), and stay so; set kernels.fp8_base=false"
        )
    right = "qlora" if stored.get("load_in_4bit") else "lora"
    if method.name == "full":
        raise UserError(
            f"the weights of {source} are quantised already ({kind}), and such weights do not train; "
            f"set method.name={right}, or take the model that they were made of"
        )
    if method.name == "qlora" and right != "qlora":
        raise UserError(
            f"the weights of {source} are quantised already ({kind}), and are not made 4-bit ones: "
            "mxfp4 is expanded to 16 bits as it is loaded, and 8 bits stay; set method.name=lora"
        )


def _stored(config: PreTrainedConfig) -> dict[str, Any]:
    """What a config says of weights that are quantised already; nothing where they are not."""
    stored: Any = getattr(config, "quantization_config", None)
    if stored is None or isinstance(stored, dict):
        return stored or {}
    found: dict[str, Any] = stored.to_dict()
    return found


def _kind(stored: dict[str, Any]) -> str:
    kind = stored.get("quant_method")
    return str(getattr(kind, "value", kind))


def quantised_as(
    config: PreTrainedConfig, method: MethodGroup, compute_dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """How bitsandbytes keeps the weights of a loaded model: as they are stored, else as QLoRA does.

    None where it does not: they are in 16 or 32 bits, or are expanded to those as they are loaded.
    """
    stored = _stored(config)
    if _kind(stored) == "bitsandbytes":
        found: BitsAndBytesConfig = BitsAndBytesConfig.from_dict(stored)
        return found
    return quantization(method, compute_dtype)


def load_model(
    folder: Path,
    dtype: torch.dtype,
    *,
    quantization: BitsAndBytesConfig | None = None,
    device: torch.device | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    scores: bool = False,
    rope: RopeScaling | None = None,
    on_event: OnEvent = ignore,
) -> PreTrainedModel:
    """The causal language model in ``folder``, weights in ``dtype``, on ``device``.

    With ``scores`` it is a sequence classifier with one label, whose layer for it is random where the
    folder has none. Only safetensors files are read, unless ``allow_pickle``: a pickled checkpoint can run code when
    it is opened. Where it is allowed PyTorch reads it with ``weights_only``, which refuses all but
    tensors and plain values. ``rope`` scales the rotary positions.

    Raises:
        UserError: the folder holds no weights that can be read this way, or they do not suit the
            quantisation on this device.
    """
    config = load_config(folder, trust_remote_code, rope)
    check_size(folder, config)
    kind: Any = AutoModelForCausalLM
    stored = _stored(config)
    # Where nothing is changed the library reads the config itself; None as quantisation would be a change.
    more: dict[str, Any] = {"config": config} if rope is not None else {}
    if quantization is not None and stored.get("load_in_4bit"):
        if kept := _settings_kept(stored, quantization):
            on_event(Note(f"the weights are in 4 bits already, and stay as they are: {kept}"))
    elif quantization is not None:
        more["quantization_config"] = quantization
    elif _kind(stored) == "mxfp4":
        more["quantization_config"] = Mxfp4Config(dequantize=True)
    if scores:
        kind = AutoModelForSequenceClassification
        if rope is None:
            more["num_labels"] = 1
        else:
            config.num_labels = 1
        if quantization is not None:
            quantization.llm_int8_skip_modules = ["score"]
    with _told(folder), during("loading the model", on_event):
        model: PreTrainedModel = kind.from_pretrained(
            folder,
            dtype=dtype,
            device_map=str(device) if device is not None else None,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
            local_files_only=True,
            **more,
        )
    if quantization is not None or stored.get("load_in_4bit"):
        _guard_4bit_layers(model)
    return model


def _settings_kept(stored: dict[str, Any], wanted: BitsAndBytesConfig) -> str:
    """In which settings weights that lie in 4 bits differ from what is wanted; "" for none."""
    asked = wanted.to_dict()
    names = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
    other = [n for n in names if stored.get(n) != asked[n]]
    return ", ".join(f"method.{n} is {stored.get(n)}, not {asked[n]}" for n in other)


def _guard_4bit_layers(model: PreTrainedModel) -> None:
    """Keep clear of two faults of bitsandbytes (0.50) on CPUs, both silent.

    It expands weights wrongly where a row is not a multiple of the block size. And at the first
    evaluation it repacks weights: their scales are rounded for good, and products with them carry no gradient,
    so that training continues without the gradient through the base.
    """
    from bitsandbytes.nn import Linear4bit

    for name, module in model.named_modules():
        if not isinstance(module, Linear4bit) or module.weight.device.type != "cpu":
            continue
        refuse_cut_blocks(name, module.in_features, module.weight.quant_state.blocksize)
        module.support_avx512bf16_for_cpu = False


def refuse_cut_blocks(name: str, in_features: int, blocksize: int) -> None:
    """Raise where bitsandbytes would expand the 4-bit weights of a layer wrongly on a CPU."""
    if in_features % blocksize:
        raise UserError(
            f"qlora cannot run this model on a CPU: the {in_features} inputs of {name} "
            f"are not a multiple of {blocksize}, which its 4-bit library needs there; "
            "use method.name lora, or a GPU"
        )


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``; it must be a fast one, which knows where its tokens come from.

    Raises:
        UserError: there is none, it would do harm, or it cannot tell the offsets that the loss mask
            needs.
    """
    check_tokenizer(folder)
    with _told(folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer in {folder} has no fast version (tokenizer.json), which the exact loss "
            "mask needs; convert it with transformers' `convert_slow_tokenizer`"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer in {folder} has no end-of-text token, so the model could never stop"
        )
    if tokenizer.pad_token_id is None:
        # Padding is only used in generation, on the left and masked: any token serves.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 of the chat template, by which a run is held to the one it trained with."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def quantization(method: MethodGroup, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """The 4-bit storage of QLoRA (Dettmers et al. 2023), computing in ``compute_dtype``.

    None for the other methods.
    """
    if method.name != "qlora":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=method.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=method.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
    )


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Whatever a library raises over the files of a model is an error of those files.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except Exception as error:
        raise UserError(_load_failure(folder, error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a library in Rust
            raise
        raise UserError(_load_failure(folder, error)) from error


def _load_failure(folder: Path, error: BaseException) -> str:
    text = str(error)
    if not isinstance(error, OSError | ValueError | RuntimeError):  # their texts stand alone
        text = f"{type(error).__name__}: {text}"
    if "trust_remote_code" in text:
        return (
            f"{folder} contains Python code that the model needs; read that code, and if you trust "
            "it set model.trust_remote_code: true"
        )
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        return (
            f"{folder} has pickled weights (.bin), which can run code when opened; "
            "convert them to safetensors, or set model.allow_pickle: true to read them as long as they "
            f"contain only tensors ({text})"
        )
    return f"cannot load the model in {folder}: {text}"
