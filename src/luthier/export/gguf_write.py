"""Write a run as a GGUF file, one tensor at a time, and read it back."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFReader,
    GGUFWriter,
    LlamaFileType,
)
from gguf.quants import dequantize, quantize

from luthier.errors import UserError
from luthier.events import OnEvent, ignore, tracked
from luthier.export.gguf_arch import Architecture, architecture
from luthier.export.gguf_tokens import write_tokenizer
from luthier.export.options import GgufType
from luthier.export.tuned import TunedWeights

# Parameter → the tensors of the file that hold it, with their types.
Plan = dict[str, dict[str, GGMLQuantizationType]]

# The types that the gguf library writes as ggml does (its ternary and MXFP4 types are for models
# trained in them). K-quants are llama.cpp's: `llama-quantize model-f16.gguf out.gguf q4_k_m`.
_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q5_1": LlamaFileType.MOSTLY_Q5_1,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
# Largest error of a weight, as a share of the largest weight of its block (of 32, or of its own for
# the 16-bit types): half a step, and the rounding of the block's scale to 16 bits. Q4_0's and
# Q5_0's steps reach one end of the range only, so that a weight at the other is off by a full step.
_BOUNDS = {
    GGMLQuantizationType.F32: 0.0,
    GGMLQuantizationType.F16: 2**-11,
    GGMLQuantizationType.BF16: 2**-8,
    GGMLQuantizationType.Q8_0: 0.5 / 127 + 2**-10,
    GGMLQuantizationType.Q5_1: 1 / 31 + 2**-9,
    GGMLQuantizationType.Q5_0: 1 / 16 + 2**-10,
    GGMLQuantizationType.Q4_1: 1 / 15 + 2**-9,
    GGMLQuantizationType.Q4_0: 1 / 8 + 2**-10,
}
_SUBNORMAL = 2**-24  # below it a 16-bit number has no digits left


@dataclass(frozen=True)
class Written:
    """A GGUF file that was written and read back.

    Attributes:
        tensors: how many it holds.
        rounded: how many of them are stored as asked; the rest are vectors, ends of the model in a
            finer type, or have rows that are not a multiple of the block size.
        rms_error: root mean square of the rounding, over that of the weights.
        notes: where llama.cpp computes something else, as sentences.
    """

    file: Path
    type: GgufType
    bytes: int
    tensors: int
    rounded: int
    rms_error: float
    notes: list[str]


def write_gguf(
    model: TunedWeights,
    file: Path,
    kind: GgufType,
    name: str,
    on_event: OnEvent = ignore,
) -> Written:
    """Write ``model`` to ``file``; the caller stages it (see ``files.py``).

    Raises:
        UserError: llama.cpp does not know the architecture or the tokenizer, or what is read back
            is further from the weights than the type allows.
    """
    made = architecture(model.config)
    writer = GGUFWriter(None, made.name)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(int(_FILE_TYPES[kind]))
    writer.add_quantization_version(GGML_QUANT_VERSION)
    made.write_metadata(writer)
    notes = [*made.notes, *write_tokenizer(writer, model.tokenizer, model.config.vocab_size)]
    plan: Plan = {}
    for parameter in model.parameters:
        blank = torch.empty(model.shape(parameter), device="meta")
        plan[parameter] = {}
        for tensor, value in made.lay_out(parameter, blank).items():
            shape = tuple(value.shape)
            stored = _stored_type(tensor, shape, kind)
            plan[parameter][tensor] = stored
            writer.add_tensor_info(
                tensor, shape, np.dtype(np.float32), _stored_bytes(shape, stored), raw_dtype=stored
            )
    for tensor, value in made.extra.items():
        f32 = GGMLQuantizationType.F32
        writer.add_tensor_info(tensor, value.shape, np.dtype(np.float32), value.numel() * 4, f32)
    try:
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for parameter, types in tracked(
            plan.items(), f"writing {kind}", on_event, len(plan), "tensors"
        ):
            for tensor, value in made.lay_out(parameter, model(parameter)).items():
                writer.write_tensor_data(quantize(value.numpy(), types[tensor]))
        for value in made.extra.values():
            writer.write_tensor_data(value.numpy())
        writer.close()
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from error
    rms_error = _read_back(model, made, plan, file, on_event)
    stored_types = [stored for types in plan.values() for stored in types.values()]
    rounded = sum(stored.name.lower() == kind for stored in stored_types)
    total = len(stored_types) + len(made.extra)
    return Written(file, kind, file.stat().st_size, total, rounded, rms_error, notes)


def _stored_type(tensor: str, shape: tuple[int, ...], kind: GgufType) -> GGMLQuantizationType:
    """The type of one tensor in a file of ``kind``.

    Vectors stay in float32, as llama.cpp computes with them. Both ends of the model get eight bits
    in a file of fewer: they are the most sensitive (llama-quantize gives them six). What chooses
    experts stays in float32, as llama.cpp's own converter has it.
    """
    if len(shape) < 2 or "ffn_gate_inp" in tensor:
        return GGMLQuantizationType.F32
    stored = GGMLQuantizationType[kind.upper()]
    if kind[:2] in ("q4", "q5") and tensor in ("token_embd.weight", "output.weight"):
        stored = GGMLQuantizationType.Q8_0
    block, _ = GGML_QUANT_SIZES[stored]
    return GGMLQuantizationType.F16 if shape[-1] % block else stored


def _stored_bytes(shape: tuple[int, ...], stored: GGMLQuantizationType) -> int:
    block, size = GGML_QUANT_SIZES[stored]
    return int(np.prod(shape)) // block * size


def _read_back(
    model: TunedWeights,
    made: Architecture,
    plan: Plan,
    file: Path,
    on_event: OnEvent,
) -> float:
    """Compare every tensor of ``file`` with its source; the relative RMS error.

    Raises:
        UserError: one is missing, or further away than its type's rounding.
    """
    found = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    wrong = set(found) ^ {*(tensor for types in plan.values() for tensor in types), *made.extra}
    if wrong:
        raise UserError(f"{file} has other tensors than those written: {', '.join(sorted(wrong))}")
    squares, weights = 0.0, 0.0
    for parameter, types in tracked(
        plan.items(), f"reading {file.name} back", on_event, len(plan), "tensors"
    ):
        for tensor, value in made.lay_out(parameter, model(parameter)).items():
            source, stored = value.numpy(), types[tensor]
            values = dequantize(found[tensor].data, stored).reshape(source.shape)
            block = GGML_QUANT_SIZES[stored][0] if stored.name.startswith("Q") else 1
            gap = np.abs(values - source).reshape(-1, block)
            largest = np.abs(source).reshape(-1, block).max(axis=1, keepdims=True)
            if not (gap <= largest * _BOUNDS[stored] + _SUBNORMAL).all():
                raise UserError(
                    f"{tensor} of {file} is further from {parameter} than {stored.name} rounds; "
                    "the disk or the weights are damaged"
                )
            squares += float((gap.astype(np.float64) ** 2).sum())
            weights += float((source.astype(np.float64) ** 2).sum())
    return float(np.sqrt(squares / weights))
