"""What is wrong inside one text: secrets, broken characters, template text, refusals."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

# Texts that chat templates write around turns, of the common families; inside a turn's content they
# end the turn or begin another one. A model's own come from its tokenizer besides.
SPECIAL_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>",
    "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>",
    "<bos>", "<eos>", "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<|user|>",
    "<|assistant|>", "<|system|>", "<|end|>",
)  # fmt: skip

_TEMPLATE_TEXT = re.compile(
    r"^(?:### ?(?:Instruction|Input|Response|Human|Assistant)\b:?|(?:Human|Assistant|USER|ASSISTANT):)",
    re.MULTILINE,
)

# Said of the model itself, or in place of an answer; anchored so that an answer may quote it.
_REFUSAL = re.compile(
    r"\bas an? (?:AI|artificial intelligence)(?: language)?(?: model| assistant)?\b"
    r"|\bI(?:'m| am) (?:just |only )?an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|^(?:I'm sorry|I am sorry|Sorry|I apologi[sz]e),? (?:but )?(?:I )?(?:can(?:'|no)t|can not|am unable|am not able)"
    r"|^I (?:can(?:'|no)t|am unable to|am not able to|won't) (?:assist|help|provide|fulfil|answer|comply|do that)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Secret:
    """Something that must not be learned; ``start`` and ``end`` are character offsets."""

    kind: str
    start: int
    end: int

    @property
    def is_key(self) -> bool:
        """True for what opens doors, False for personal data."""
        return self.kind in ("api_key", "private_key")


# 'user@host:/path' is an address for copying files, not for mail.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b(?!:[/~\w])")
# International with a plus, or North American (3, 3 and 4 digits); not a piece of a sum.
_PHONE = re.compile(
    r"(?<![\w.,=*/<>+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,4}){1,4}"
    r"|(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4})(?![\w=*/-]|[.,]\d)"
)
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]\d|\d)")
_KEYS = re.compile(
    r"\b(?:sk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}"
    r"|github_pat_[A-Za-z0-9_]{50,}|AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}|xox[abposr]-[A-Za-z0-9-]{10,}"
    r"|glpat-[A-Za-z0-9_-]{20,})(?![A-Za-z0-9_-])"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----.*?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
# Addresses that documents use as examples (RFC 2606) belong to nobody.
_NOBODY = re.compile(
    r"@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|[\w-]+\.(?:example|test|invalid))$", re.I
)


def find_secrets(text: str) -> list[Secret]:
    """Keys and personal data in ``text``, in order, none overlapping.

    Kinds: ``private_key``, ``api_key``, ``card`` (13 to 19 digits with a right Luhn checksum),
    ``email`` (addresses reserved for examples skipped), ``phone`` (grouped as phone numbers are).
    """
    found: list[Secret] = []
    finders = [
        ("private_key", _PRIVATE_KEY), ("api_key", _KEYS), ("card", _CARD), ("email", _EMAIL),
        ("phone", _PHONE),
    ]  # fmt: skip
    for kind, pattern in finders:
        for match in pattern.finditer(text):
            if kind == "card" and not _luhn(match[0]):
                continue
            if kind == "email" and _NOBODY.search(match[0]):
                continue
            if all(match.end() <= s.start or match.start() >= s.end for s in found):
                found.append(Secret(kind, match.start(), match.end()))
    return sorted(found, key=lambda secret: secret.start)


def _luhn(number: str) -> bool:
    """The checksum of payment cards (ISO/IEC 7812-1, annex B)."""
    digits = [int(c) for c in number if c.isdigit()]
    if len(set(digits)) == 1:
        return False  # 0000 0000 … passes the sum and is no card
    total = sum(digits[-1::-2]) + sum(sum(divmod(2 * d, 10)) for d in digits[-2::-2])
    return total % 10 == 0


def control_characters(text: str) -> list[str]:
    """Characters that no one types, by their code: controls, stray surrogates, private use.

    Tab, line breaks and the joiners that scripts and emoji need are not among them.
    """
    if text.isascii() and text.isprintable():
        return []
    found = {c for c in text if c not in "\t\n\r" and unicodedata.category(c) in ("Cc", "Cs", "Co")}
    return [f"U+{ord(c):04X}" for c in sorted(found)]


# UTF-8 that was read as Latin-1 or Windows-1252: a lead byte's letter, then a continuation byte's.
_MOJIBAKE = re.compile(
    r"[ÃÂ][\u0080-\u00bf]|â€[\u0080-\u024f\u2013-\u2122]|ð[\u009fŸ][\u0080-\u024f\u2013-\u2122]"
)


def is_mojibake(text: str) -> bool:
    """Whether the text was decoded by the wrong table (``cafÃ©``) or lost characters to U+FFFD."""
    if text.isascii():
        return False
    return "\ufffd" in text or bool(_MOJIBAKE.search(text))


def special_token_in(text: str, of_model: Iterable[str] = ()) -> str | None:
    """The first special token that occurs in ``text`` as ordinary characters."""
    if "<" not in text and "[" not in text and not of_model:
        return None
    return next((token for token in (*SPECIAL_TOKENS, *of_model) if token in text), None)


def template_text_in(text: str) -> str | None:
    """A line that begins as a prompt template's does (``### Response:``), or None."""
    match = _TEMPLATE_TEXT.search(text)
    return match[0] if match else None


def refusal_in(text: str) -> str | None:
    """The words in which an answer refuses or speaks of itself as an AI, or None."""
    match = _REFUSAL.search(text.lstrip())
    return match[0] if match else None
