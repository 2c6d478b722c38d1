"""Text files as UTF-8, whatever their byte order mark says they are in."""

import codecs
import io
from typing import IO

from luthier.errors import UserError

# UTF-32's mark begins with UTF-16's, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHUNK = 1 << 16


def as_utf8(file: io.BufferedReader, name: str) -> io.BufferedReader:
    """``file`` without its byte order mark, its text in UTF-8.

    Raises:
        UserError: here, it looks like UTF-16 without a mark; while reading, it is not what its mark
            says.
    """
    start = file.peek(4)[:4]
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            file.read(len(mark))
            if encoding == "utf-8":
                return file
            return io.BufferedReader(_Recoded(file, encoding, name), _CHUNK)
    if b"\0" in start:
        raise UserError(
            f"{name} is not UTF-8 text: it may be UTF-16 without a byte order mark; save it as UTF-8"
        )
    return file


class _Recoded(io.RawIOBase):
    """The bytes of ``inner``, which are text in ``encoding``, in UTF-8."""

    def __init__(self, inner: IO[bytes], encoding: str, name: str) -> None:
        self._inner = inner
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._name = name
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        while not self._ready:
            chunk = self._inner.read(_CHUNK)
            try:
                self._ready = self._decoder.decode(chunk, final=not chunk).encode()
            except UnicodeError as error:
                raise UserError(
                    f"{self._name} is not the {self._encoding.upper()[:6]} that its byte order mark "
                    f"says it is ({error}); save it as UTF-8"
                ) from None
            if not chunk:
                break
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._inner.close()
        super().close()
