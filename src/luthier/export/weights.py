"""Weights in safetensors files, read one tensor at a time and written one shard at a time."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from luthier.errors import UserError
from luthier.events import OnEvent, ignore, tracked
from luthier.files import write_json

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Weights:
    """The tensors of a Transformers folder by name; only one tensor at a time is in memory.

    ``file`` names the one file of the folder to read, for an adapter.

    Attributes:
        shapes: name → shape.
        dtypes: name → dtype.

    Raises:
        UserError: the folder has no safetensors file, or one of them is damaged.
    """

    def __init__(self, folder: Path, file: str | None = None) -> None:
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for path in [folder / file] if file is not None else _weight_files(folder):
            for name, entry in _header(path).items():
                if entry["dtype"] not in _DTYPES:
                    raise UserError(
                        f"{path}: {name} is stored as {entry['dtype']}, which is not a numeric type"
                    )
                self._files[name] = path
                self.shapes[name] = tuple(entry["shape"])
                self.dtypes[name] = _DTYPES[entry["dtype"]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(str(self._files[name]), framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
        return tensor


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [folder / name for name in sorted(names)]
    else:
        whole = folder / "model.safetensors"
        files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(
            f"{folder} has no weights; missing: {', '.join(missing) or '*.safetensors'}"
        )
    return files


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """The table at the head of a safetensors file: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            table = json.loads(handle.read(length))
        with safe_open(str(file), framework="pt"):  # checks that every tensor is really there
            pass
    except (OSError, ValueError, struct.error, SafetensorError) as error:
        raise UserError(f"{file} is not an intact safetensors file: {error}") from error
    return {name: entry for name, entry in table.items() if name != "__metadata__"}


def write_shards(
    folder: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    make: Callable[[str], Tensor],
    max_shard_bytes: int,
    on_event: OnEvent = ignore,
) -> int:
    """Write model.safetensors, or its shards with their index, as Transformers names them.

    At most one shard (or one tensor, if that is larger) is in memory.

    Args:
        tensors: name → shape and dtype of all that will be written.
        make: gives the tensor of a name, with that shape and dtype.

    Returns:
        the number of bytes of weights.

    Raises:
        UserError: the disk is full.
    """
    plan = {
        name: torch.empty(shape, dtype=dtype, device="meta")
        for name, (shape, dtype) in tensors.items()
    }
    split = split_torch_state_dict_into_shards(
        plan, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_bytes
    )
    places = [(file, name) for file, names in split.filename_to_tensors.items() for name in names]
    made = tracked(places, "writing weights", on_event, len(places), "tensors")
    for filename, group in groupby(made, key=itemgetter(0)):
        shard: dict[str, Tensor] = {}
        for _, name in group:
            tensor = make(name).contiguous()
            assert tensor.shape == plan[name].shape and tensor.dtype == plan[name].dtype, name
            shard[name] = tensor
        try:
            save_file(shard, str(folder / filename), metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot write {folder / filename}: {error}") from error
    size = sum(tensor.numel() * tensor.element_size() for tensor in plan.values())
    if split.is_sharded:
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": size}, "weight_map": split.tensor_to_filename},
        )
    return size
