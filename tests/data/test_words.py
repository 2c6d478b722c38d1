"""Texts tokenised word by word: the tokens of the whole text, for every way to cut that is known."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, models, trainers
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers as cutters

from luthier.data import words
from luthier.data.words import Words, cuts_at_spaces, ids_of

SHARED = Path(__file__).parents[3] / "shared" / "tokenizers"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    "\\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)  # fmt: skip
WAYS: dict[str, list[Any]] = {
    "gpt-2": [cutters.ByteLevel(add_prefix_space=False)],
    "digits": [cutters.Digits(True), cutters.ByteLevel(add_prefix_space=False)],
    "llama 3": [LLAMA3],
    "qwen": [LLAMA3.replace("{1,3}", "")],
    "qwen 3.5": [
        LLAMA3.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}", r"\s\p{L}\p{M}\p{N}")
    ],
    "o200k": [O200K],
    "tekken": [O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")],
    "deepseek": [*DEEPSEEK],
}
PARTS = (
    *"aBé日5½!/'_\t\n\r\v\x1c\x85\xa0\u2028\u3000\u180e\u200b\u0301ǅ", "'s", "'S", "\r\n", "<|end|>", "🎻",
    *[" "] * 10, "  ", " a", "a b", " 5",
)  # fmt: skip


def steps(way: list[Any]) -> list[Any]:
    made = [
        cutters.Split(Regex(each), "isolated") if isinstance(each, str) else each for each in way
    ]
    return (
        made
        if isinstance(way[-1], cutters.ByteLevel)
        else [*made, cutters.ByteLevel(False, use_regex=False)]
    )


def states(parts: list[Any]) -> list[dict[str, Any]]:
    return [json.loads(each.__getstate__()) for each in parts]


def texts(count: int) -> list[str]:
    draw = random.Random(5)
    return ["", *("".join(draw.choices(PARTS, k=draw.randint(1, 14))) for _ in range(count))]


@pytest.mark.parametrize("name", WAYS)
def test_word_by_word_as_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its vocabulary has most words whole, so that another cut would be other tokens."""
    parts = steps(WAYS[name])
    assert cuts_at_spaces(states(parts))
    backend = Backend(models.BPE())
    backend.pre_tokenizer = cutters.Sequence(parts)
    trainer = trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=cutters.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts(1500), trainer)
    backend.add_tokens([AddedToken("<|end|>", normalized=False)])
    encoder = Words(backend)
    for part in (texts(300), texts(1500), texts(300)):  # new words, known ones, and forgotten ones
        found = encoder.encode(part)
        assert [found[text] for text in part] == [*ids_of(backend, part)]
        monkeypatch.setattr(words, "_MOST", 1000)
        monkeypatch.setattr(words, "_LONGEST", 6)


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "gptoss"])
def test_real_tokenizers_are_known(name: str) -> None:
    file = SHARED / name / "tokenizer.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    text, name = file.read_text("utf-8"), '"pre_tokenizer":'
    state, _ = json.JSONDecoder().raw_decode(text, text.index("{", text.index(name)))
    assert cuts_at_spaces(state["pretokenizers"])


@pytest.mark.parametrize(
    "way",
    [
        [cutters.Punctuation(), cutters.ByteLevel(False)],
        [cutters.ByteLevel(False, use_regex=False)],  # it cuts nothing
        [r"\p{N}{1,3}"],
        [LLAMA3.removesuffix(r"|\s+")],  # a space may be in no match
        [LLAMA3 + r"|(?<=a) b"],
        [LLAMA3.replace(r"\p{L}+", r"[\p{L} ]+")],
        [cutters.Split(Regex(LLAMA3), "merged_with_next")],
        [cutters.Split(Regex(LLAMA3), "isolated", invert=True)],
        [cutters.Split(" ", "isolated"), LLAMA3],
    ],
)  # fmt: skip
def test_other_ways_to_cut_are_not_known(way: list[Any]) -> None:
    assert not cuts_at_spaces(states(steps(way)))


def test_white_space_of_a_pattern_is_white_space_here() -> None:
    others = "".join(
        sign
        for sign in map(chr, range(0x10000))
        if not (sign.isspace() or "\ud800" <= sign < "\ue000")
    )
    assert cutters.Split(Regex(r"\s"), "isolated").pre_tokenize_str(others) == [
        (others, (0, len(others)))
    ]
