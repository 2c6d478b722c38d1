"""GGUF files as a source of weights: dequantised into an ordinary Transformers folder, tensor by tensor."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from luthier.errors import UserError
from luthier.extras import need
from luthier.files import write_json

_SHARD = 2**30  # bytes of a file, and about as many that are in memory at once
# Transformers 5.23 takes the length of a key for the rotary scaling, and finds no experts.
_UNREADABLE = ("gpt-oss", "gpt_oss")


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF ``file`` to ``folder`` in float32.

    No more than a gigabyte of it is in memory at once, and one tensor.

    Raises:
        UserError: the file is not a GGUF file that Transformers can read, or the extra is not installed.
    """
    need("gguf", extra="export", what="a GGUF file as a model")
    from transformers import AutoConfig, AutoTokenizer

    from luthier.models.gguf_header import check_header

    check_header(file)
    try:
        if (architecture := _architecture(file)) in _UNREADABLE:
            raise UserError(
                f"{file} is a {architecture} model, which Transformers cannot read from a GGUF file (neither "
                "its experts nor its rotary scaling); take the model from a folder in Transformers' format or "
                "from the hub: model.source openai/gpt-oss-20b"
            )
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        _write_by_tensor(file, config, folder)
    except UserError:
        raise
    except Exception as error:  # of what a strange file holds, the libraries raise anything
        raise UserError(f"cannot read {file} as a GGUF model: {error}") from error
    tokenizer.save_pretrained(folder)


def _architecture(file: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("general.architecture")
    return str(field.contents()) if field is not None else ""


def _write_by_tensor(file: Path, config: Any, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    expected = set(model.state_dict())
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    places: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    size = total = 0

    def write() -> None:
        name = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in _tensors(file, model):
        if name not in expected:
            continue
        shard[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
        if size >= _SHARD:
            write()
            size = 0
    if shard:
        write()
    if missing := sorted(expected - places.keys() - tied):
        raise ValueError(
            f"it lacks {', '.join(missing[:3])} ({len(missing)} of the model's weights)"
        )
    written = set(places.values())
    if len(written) == 1:
        (folder / written.pop()).rename(folder / "model.safetensors")
    else:
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": places},
        )
    _save_config(model, folder)


def _tensors(file: Path, model: Any) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of ``file`` in float32, as ``model`` has it, by the model's name.

    As Transformers' ``load_gguf_checkpoint`` does for all of them at once.
    """
    from gguf import GGUFReader, dequantize
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
        load_gguf_checkpoint,
    )

    parsed = load_gguf_checkpoint(str(file))
    parsed["tensors"] = {}
    kind = TENSOR_PROCESSORS.get(_architecture(file), TensorProcessor)
    processor = kind(config=parsed["config"])
    names = get_gguf_hf_weights_map(model, processor)
    tensors = GGUFReader(file).tensors
    last = {_of_model(names, stored.name): place for place, stored in enumerate(tensors)}
    for place, stored in enumerate(tensors):
        found = processor.process(
            weights=dequantize(stored.data, stored.tensor_type),
            name=stored.name,
            tensor_key_mapping=names,
            parsed_parameters=parsed,
        )
        # Some are put in here instead: gate and up of experts are halves of one tensor.
        for name in [n for n in parsed["tensors"] if last.get(n, place) <= place]:
            yield name, parsed["tensors"].pop(name)
        if found.name in names:
            yield names[found.name], torch.from_numpy(np.array(found.weights, dtype=np.float32))


def _of_model(names: dict[str, str], stored: str) -> str | None:
    """The model's name of a tensor; that of a stack of experts is no module's, and has no suffix."""
    return names.get(stored) or names.get(stored.removesuffix(".weight"))


def _save_config(model: Any, folder: Path) -> None:
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
