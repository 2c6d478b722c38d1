"""Look through the header of a GGUF file before a library believes what it says.

The format: github.com/ggml-org/ggml, docs/gguf.md. Its counts and lengths are 64 bits each; a reader
that trusts them asks for memory without end or reads past the file.
"""

import mmap
import struct
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from luthier.errors import UserError

# Value types by number: bytes of a fixed one; 8 is a string, 9 an array.
_FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_DEEPEST = 4  # arrays of arrays
_DIMENSIONS = 4


class _Bad(Exception):
    """What is wrong with the header."""


class _Reader:
    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.position = 0

    def number(self, form: str) -> int:
        size = struct.calcsize(form)
        self.need(size)
        (value,) = struct.unpack_from(form, self.data, self.position)
        self.position += size
        return int(value)

    def need(self, size: int) -> None:
        if size > len(self.data) - self.position:
            raise _Bad(f"the file ends within its header, at byte {self.position:,}")

    def skip(self, size: int) -> None:
        self.need(size)
        self.position += size

    def string(self) -> bytes:
        length = self.number("<Q")
        self.need(length)
        text = bytes(self.data[self.position : self.position + length])
        self.position += length
        return text


def check_header(file: Path) -> None:
    """Raise unless the header of ``file`` is one, and everything it speaks of is in the file.

    Raises:
        UserError: it is not a GGUF file of version 2 or 3, or it is damaged or made to harm.
    """
    try:
        with file.open("rb") as handle:
            if handle.read(4) != b"GGUF":
                raise UserError(f"{file} is not a GGUF file")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _check(_Reader(data))
    except _Bad as error:
        raise UserError(f"{file} is a damaged GGUF file: {error}; fetch it again") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error}") from error


def _check(reader: _Reader) -> None:
    reader.skip(4)
    version = reader.number("<I")
    if version not in (2, 3):
        raise _Bad(f"version {version} is not supported (2 and 3 are)")
    tensors, values = reader.number("<Q"), reader.number("<Q")
    size = len(reader.data)
    # A tensor takes 32 bytes of header at least, a value 13.
    if tensors * 32 > size or values * 13 > size:
        raise _Bad(
            f"its header claims {tensors:,} tensors and {values:,} values, more than the file can hold"
        )
    names: set[bytes] = set()
    alignment = 32
    for _ in range(values):
        name = _name(reader, names)
        kind = reader.number("<I")
        if name == b"general.alignment" and kind == 4:
            alignment = reader.number("<I")
            if alignment == 0 or alignment % 8 or alignment > 2**20:
                raise _Bad(f"general.alignment is {alignment}, which is not valid")
            continue
        _skip_value(reader, kind, 0)
    ends = [_tensor_end(reader, names) for _ in range(tensors)]
    start = -(-reader.position // alignment) * alignment
    for name_, end in ends:
        if start + end > size:
            raise _Bad(
                f"the tensor {name_.decode('utf-8', 'replace')[:80]!r} extends past the end of the file"
            )


def _name(reader: _Reader, names: set[bytes]) -> bytes:
    name = reader.string()
    if name in names:
        raise _Bad(f"{name.decode('utf-8', 'replace')[:80]!r} appears twice")
    names.add(name)
    return name


def _skip_value(reader: _Reader, kind: int, depth: int) -> None:
    if kind in _FIXED:
        reader.skip(_FIXED[kind])
    elif kind == _STRING:
        reader.string()
    elif kind == _ARRAY and depth < _DEEPEST:
        inner, count = reader.number("<I"), reader.number("<Q")
        if inner in _FIXED:
            reader.skip(_FIXED[inner] * count)
        else:
            reader.need(8 * count)  # what an empty string or array takes, at least
            for _ in range(count):
                _skip_value(reader, inner, depth + 1)
    else:
        raise _Bad(f"a value has the unknown type {kind}")


def _tensor_end(reader: _Reader, names: set[bytes]) -> tuple[bytes, int]:
    """Name of a tensor, and where it ends after the beginning of the data."""
    name = _name(reader, names)
    dimensions = reader.number("<I")
    if not 1 <= dimensions <= _DIMENSIONS:
        raise _Bad(f"a tensor has {dimensions} dimensions")
    count = 1
    for _ in range(dimensions):
        count *= reader.number("<Q")
    kind, offset = reader.number("<I"), reader.number("<Q")
    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise _Bad(f"a tensor has the unknown type {kind}") from None
    if count == 0 or count % block:
        raise _Bad(
            f"a tensor has {count:,} numbers, which is not a multiple of its block size {block}"
        )
    return name, offset + count // block * size
