"""A GGUF header is held against its file before a library believes it."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from luthier.errors import UserError
from luthier.models.gguf_header import check_header

HEAD = b"GGUF" + struct.pack("<I", 3)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    path = tmp_path / "good.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_array("tokens", ["a", "b"])
    writer.add_uint32("n", 1)
    writer.add_tensor("t", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def check(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    check_header(path)


def test_a_good_file_passes(tmp_path: Path, good: bytes) -> None:
    check(tmp_path, good)


def test_every_shorter_file_is_refused(tmp_path: Path, good: bytes) -> None:
    for end in range(0, len(good) - 32, 7):  # the last 31 bytes may be padding
        with pytest.raises(UserError, match=r"not a GGUF file|damaged GGUF file"):
            check(tmp_path, good[:end])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\3\4" + bytes(60), "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 9) + bytes(60), "version 9 is not supported"),
        (HEAD + struct.pack("<QQ", 2**60, 0), "claims .* tensors"),
        (HEAD + struct.pack("<QQ", 0, 2**60), "claims .* tensors and .* values"),
        (HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**62) + bytes(40), "ends within"),
        # An array of 2^61 numbers, and one of as many arrays.
        (HEAD + struct.pack("<QQ", 0, 1) + text(b"a") + struct.pack("<IIQ", 9, 4, 2**61), "ends within"),
        (HEAD + struct.pack("<QQ", 0, 1) + text(b"a") + struct.pack("<IIQ", 9, 9, 2**61), "ends within"),
        (HEAD + struct.pack("<QQ", 0, 1) + text(b"a") + struct.pack("<I", 77) + bytes(20), "unknown type 77"),
        (HEAD + struct.pack("<QQ", 0, 2) + (text(b"a") + struct.pack("<II", 4, 1)) * 2, "appears twice"),
        (
            HEAD + struct.pack("<QQ", 1, 0) + text(b"t") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)
            + bytes(64),
            "past the end of the file",
        ),
        (
            HEAD + struct.pack("<QQ", 1, 0) + text(b"t") + struct.pack("<IQIQ", 1, 32, 999, 0) + bytes(64),
            "unknown type 999",
        ),
        (HEAD + struct.pack("<QQ", 1, 0) + text(b"t") + struct.pack("<I", 2**31) + bytes(64), "dimensions"),
    ],
)  # fmt: skip
def test_what_a_header_must_not_say(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(tmp_path, content)
