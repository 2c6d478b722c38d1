"""Tokenizers of strangers, tried out where they can do no harm.

A regular expression can search for longer than anyone waits, and a replacement can make a text grow
without end; the library is then in machine code that no exception reaches. So a tokenizer with parts
that published ones do not have encodes a few texts first, in a process of its own with bounds on
time and memory:

    python -m luthier.models.tryout tokenizer.json

is that process.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.errors import UserError

_SECONDS = 20
_MEMORY = 2**31  # bytes
_RUN = 1500  # characters of the same kind in a text to try
_GROWTH = 64  # tokens or characters for each byte of a text
_ALLOWANCE = 1024  # and for the text as a whole

# What published tokenizers are made of, and none of it makes a text grow by much.
_USUAL = {
    *("Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Nmt"),
    *("BertNormalizer", "Prepend", "Replace", "ByteLevel", "Split", "BertPreTokenizer"),
    *("Metaspace", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits", "UnicodeScripts"),
    *("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteFallback", "Fuse"),
    *("WordPiece", "BPEDecoder", "CTC", "BPE", "Unigram", "WordLevel"),
}
_LONGEST_PIECE = 32  # characters that are put before or behind a word
_MOST_PIECES = 64  # tokens around a text, or parts in a sequence
_LONGEST_PATTERN = 4000
_LONGEST_TOKEN = 10_000
_MOST_TOKENS = 200_000

_CLASS = re.compile(r"\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]", re.DOTALL)
_UNBOUNDED = re.compile(r"[*+]|\{\d*,\}|\{\d*,?\d{4,}\}")
_OF_A_GROUP = re.compile(r"\)(?:[*+]|\{\d*,\}|\{\d*,?\d{2,}\})")
_UNUSUAL = re.compile(r"\\[1-9gkK]|\(\?(?!:|=|!|<=|<!|[imx]+[:)])")


def suspicions(parts: dict[str, Any]) -> list[str]:
    """Why a tokenizer (the object of tokenizer.json) should be tried out; empty for the usual one."""
    found: list[str] = []
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for part in _parts(parts.get(name)):
            found += _of_part(part, name)
    model = parts.get("model")
    if isinstance(model, dict):
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if len(str(model.get(key) or "")) > _LONGEST_PIECE:
                found.append(f"'{key}' is very long")
        if _number(model.get("max_input_chars_per_word")) > _LONGEST_TOKEN:
            found.append("'max_input_chars_per_word' is very large")
    padding = parts.get("padding")
    if isinstance(padding, dict):
        strategy = padding.get("strategy")
        fixed = strategy.get("Fixed") if isinstance(strategy, dict) else None
        if max(_number(fixed), _number(padding.get("pad_to_multiple_of"))) > _LONGEST_TOKEN:
            found.append("'padding' is very long")
    tokens = parts.get("added_tokens") or []
    if len(tokens) > _MOST_TOKENS or any(len(t["content"]) > _LONGEST_TOKEN for t in tokens):
        found.append("its added tokens are very long, or very many")
    return found


def try_out(path: Path, why: list[str]) -> None:
    """Let the tokenizer encode a few texts in a process with bounds.

    Raises:
        UserError: it takes too long or too much memory, makes texts grow, or fails; ``why`` is told.
    """
    # -P: what lies in the working folder is not imported.
    command = [sys.executable, "-P", "-m", "luthier.models.tryout", str(path.resolve())]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
        told = done.stdout.strip().splitlines()[-1:] if done.returncode == 3 else []
        failed = done.returncode != 0
        said = told[0] if told else "it ended the process, or took too much memory"
    except subprocess.TimeoutExpired:
        failed, said = True, f"it was not done after {_SECONDS} seconds"
    if failed:
        raise UserError(
            f"{path} cannot be used: {'; '.join(why[:3])}; tried on short texts, {said}"
        )


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A component and those inside it."""
    if not isinstance(part, dict):
        return
    yield part
    for inner in ("normalizers", "pretokenizers", "processors", "decoders"):
        listed = part.get(inner)
        for one in listed if isinstance(listed, list) else []:
            yield from _parts(one)


def _of_part(part: dict[str, Any], name: str) -> Iterator[str]:
    kind = part.get("type")
    if kind not in _USUAL:
        yield f"'{name}' has a part {str(kind)[:40]!r}"
    pattern = part.get("pattern")
    text = pattern.get("Regex") if isinstance(pattern, dict) else None
    if isinstance(text, str) and _is_unusual(text):
        yield f"'{name}' has the regular expression {_short(text)}"
    if kind == "Replace":
        plain = pattern.get("String") if isinstance(pattern, dict) else pattern
        room = len(plain) if isinstance(plain, str) else 1
        content = str(part.get("content") or "")
        if len(content) > max(1, room) or plain == "":
            yield f"'{name}' replaces {_short(str(text if plain is None else plain))} by {_short(content)}"
    if any(
        len(v) > _LONGEST_PIECE for k in ("prepend", "prefix") if isinstance(v := part.get(k), str)
    ):
        yield f"'{name}' puts a very long text before each word"
    lists = [value for value in part.values() if isinstance(value, list)]
    tokens = part.get("special_tokens")
    for token in tokens.values() if isinstance(tokens, dict) else []:
        lists += (
            [v for v in token.values() if isinstance(v, list)] if isinstance(token, dict) else []
        )
    if any(len(value) > _MOST_PIECES for value in lists):
        yield f"'{name}' has very many parts"


def _is_unusual(pattern: str) -> bool:
    """Whether a search for ``pattern`` might go back and forth for long.

    That takes a repetition of a group, several in a row, or a reference.
    """
    plain = _CLASS.sub("x", pattern)
    if _UNUSUAL.search(plain) or len(pattern) > _LONGEST_PATTERN:
        return True
    plain = re.sub(r"\\.", "x", plain)
    if _OF_A_GROUP.search(plain):
        return True
    return any(len(_UNBOUNDED.findall(choice)) > 2 for choice in plain.split("|"))


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _texts(pattern_text: str) -> Iterator[str]:
    """Runs of each character that the patterns name, and texts of all kinds."""
    characters = dict.fromkeys([*"aA1 .-_'\n\t", "é", "あ", "中", "😀", *pattern_text[:4000]])
    kept = [c for c in characters if c.isprintable() or c in "\n\t"][:64]
    everything = "".join(kept)
    yield from ("", "The quick brown fox, 1234 times!\n\n" * 40, everything * 20)
    for character in kept:
        yield character * _RUN
        # A search is not even begun where a character that it must find is nowhere.
        yield f"{character * _RUN}\0!{everything}"
    yield "".join(chr(n) for n in range(32, 0xD800))


def main() -> None:
    """The process that tries it out; exit code 3 says that a sentence was printed."""
    path = Path(sys.argv[1])
    with suppress(ImportError, ValueError, OSError):
        import resource  # which Windows does not have

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from tokenizers import Tokenizer

    parts = json.loads(path.read_bytes())
    named = [str(part.get(key, "")) for name in ("normalizer", "pre_tokenizer", "decoder")
             for part in _parts(parts.get(name)) for key in ("pattern", "content")]  # fmt: skip
    try:
        tokenizer = Tokenizer.from_file(str(path))
        for text in _texts("".join(named)):
            most = _GROWTH * len(text.encode()) + _ALLOWANCE
            ids = tokenizer.encode(text).ids
            back = tokenizer.decode(ids, skip_special_tokens=False)
            if max(len(ids), len(back)) > most:
                print(f"a text of {len(text)} characters became {len(ids):,} tokens, and these "
                      f"{len(back):,} characters")  # fmt: skip
                sys.exit(3)
    except BaseException as error:  # a panic of the library is not an Exception
        if isinstance(error, SystemExit):
            raise
        print(f"it failed: {' '.join(str(error).split())[:300]}")
        sys.exit(3)


if __name__ == "__main__":
    main()
