import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.check.text import (
    control_characters,
    find_secrets,
    is_mojibake,
    refusal_in,
    special_token_in,
    template_text_in,
)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("ask ann@firma.de, bob@x.co.uk", ["email", "email"]),
        ("AKIAIOSFODNN7EXAMPLE and hf_" + "a" * 34, ["api_key", "api_key"]),
        ("ghp_" + "A1" * 18, ["api_key"]),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", ["private_key"]),
        ("5500 0000 0000 0004", ["card"]),
        ("378282246310005", ["card"]),
        ("378282246310006", []),
        ("0000 0000 0000 0000", []),
        ("+1 212-555-0187 or 212.555.0187", ["phone", "phone"]),
        ("12 345 678 910", []),
        ("x = 100-200-3000", []),
        ("127.0.0.1 and 10.000.000", []),
        ("2026-11-24 03:36", []),
    ],
)
def test_secrets(text: str, kinds: list[str]) -> None:
    found = find_secrets(text)
    assert [secret.kind for secret in found] == kinds


@given(st.text())
def test_any_text_is_judged_without_fault(text: str) -> None:
    found = find_secrets(text)
    assert all(0 <= s.start < s.end <= len(text) for s in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    control_characters(text)
    is_mojibake(text)
    refusal_in(text)
    special_token_in(text)
    template_text_in(text)


def test_control_characters_are_named_and_ordinary_ones_are_not() -> None:
    assert control_characters("a\x00b\x07") == ["U+0000", "U+0007"]
    assert control_characters("tab\t line\r\n joiner\u200d ünïcödé 日本") == []


@pytest.mark.parametrize("text", ["Crème brûlée", "naïve café", "Ångström", "“quoted” – it’s"])
def test_mojibake_is_told_from_its_original(text: str) -> None:
    assert not is_mojibake(text)
    assert is_mojibake(text.encode("utf-8").decode("cp1252", "replace"))


def test_special_tokens_and_template_text() -> None:
    assert special_token_in("a <|eot_id|> b") == "<|eot_id|>"
    assert special_token_in("<mine>", ["<mine>"]) == "<mine>"
    assert special_token_in("if a < b and c[0] > d") is None
    assert template_text_in("x\n### Response:\ny") == "### Response:"
    assert template_text_in("## Response\nHumans:") is None


def test_refusals() -> None:
    assert refusal_in("I'm sorry, but I cannot help with that.") == "I'm sorry, but I cannot"
    assert refusal_in("Sure. I'm sorry to hear it.") is None
