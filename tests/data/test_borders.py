"""Texts tokenised in pieces: the tokens and masks of the whole text, or no pieces."""

from collections.abc import Callable

import pytest
from data.slow_tokens import SlowTokenizer
from families import CHAT_FAMILIES, make_tokenizer
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from luthier.data.borders import Borders
from luthier.data.conversation import Conversation, Origin
from luthier.data.spans import Rendering, renderings
from luthier.data.tokens import Tokenizer

CONTENTS = (
    "Paris.", " ", "", "\n\na\n", "🎻 é", "é\u0301a\u0323\u0301", "\u0301", "e\u0301\u0338", "  a  ",
    "<|im_end|>", "<|im_start", "|>\n<|im_start|>user\n", "x<|im_end|> y", "\x04\x00", "\u200b", "＝\u0338",
    "日本語", "▁a ▁", "Ġ", "<unk>", "<0x0A>",
)  # fmt: skip


def chatml() -> PreTrainedTokenizerFast:
    return make_tokenizer(CHAT_FAMILIES["chatml"])


def composed(form: str) -> PreTrainedTokenizerFast:
    made = chatml()
    made.backend_tokenizer.normalizer = getattr(normalizers, form)()
    return made


def trimmed() -> PreTrainedTokenizerFast:
    made = chatml()
    made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


def gemma(family: str = "gemma") -> PreTrainedTokenizerFast:
    """As Gemma's own: spaces become a sign, and nothing is put before a text."""
    made = make_tokenizer(CHAT_FAMILIES[family])
    made.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.add_tokens(["▁"])
    return made


def split() -> PreTrainedTokenizerFast:
    made = chatml()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return made


def with_token(token: AddedToken | str) -> PreTrainedTokenizerFast:
    made = chatml()
    made.add_tokens([token])
    return made


def stripping(side: str) -> PreTrainedTokenizerFast:
    made = chatml()
    made.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|im_end|>", **{side: True}, special=True)]}
    )
    return made


MADE: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], bool]] = {
    "chatml": (chatml, True),
    "llama 3": (lambda: make_tokenizer(CHAT_FAMILIES["llama3"]), True),
    "phi 3": (lambda: make_tokenizer(CHAT_FAMILIES["phi3"]), True),
    "no token before the answer": (lambda: make_tokenizer(CHAT_FAMILIES["mistral-bytes"]), True),
    "composing": (lambda: composed("NFC"), True),
    "decomposing": (lambda: composed("NFD"), False),
    "trimming": (trimmed, True),
    "gemma": (gemma, True),
    "gemma's spaces, mistral's template": (lambda: gemma("mistral"), True),
    "a space before every text": (lambda: make_tokenizer(CHAT_FAMILIES["mistral"]), False),
    "digits": (split, True),
    "another token": (lambda: with_token("<|other|>"), True),
    "a token with a space": (lambda: with_token(". x"), True),
    "a longer token": (lambda: with_token("<|im_end|>\n"), False),
    "a token over the border": (lambda: with_token(".<|im_end|>"), False),
    "a token across the end": (lambda: with_token("|>\n<|im"), False),
    "a token inside": (lambda: with_token("end"), False),
    "spaces before a token": (lambda: stripping("lstrip"), False),
    "spaces after a token": (lambda: stripping("rstrip"), False),
}


def rows() -> list[Conversation]:
    made = []
    for number, (question, answer) in enumerate(
        (question, answer) for question in CONTENTS for answer in CONTENTS
    ):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if number % 3 == 0:
            turns += [
                {"role": "user", "content": answer + " x"},
                {"role": "assistant", "content": question + "y "},
            ]
        made.append(Conversation(Origin("a", number + 1), tuple(turns)))
    return made


@pytest.mark.parametrize("name", MADE)
def test_in_pieces_as_whole(name: str) -> None:
    make, cuts = MADE[name]
    tokenizer = make()
    borders = Borders.of(tokenizer)
    encoder = Tokenizer(tokenizer, "completions")
    slow = SlowTokenizer(tokenizer, "completions")
    together = list(encoder.encode_all(rows()))
    in_pieces = 0
    for row, encoded in zip(rows(), together, strict=True):
        try:
            expected = slow.encode(row)
        except Exception as error:
            assert str(encoded) == str(error)
            continue
        assert isinstance(encoded, list)
        assert [(each.input_ids, each.supervised) for each in encoded] == [
            (each.input_ids, each.supervised) for each in expected
        ], row
        for each in renderings(tokenizer, row.messages):
            cut = borders.cut(each) if borders is not None else None
            if cut is not None:
                assert "".join(cut.pieces) == each.text
                in_pieces += cut.joined(borders.encode(cut.texts)) is not None  # type: ignore[union-attr]
    assert (in_pieces > 50) if cuts else not in_pieces


def test_a_tokenizer_without_added_tokens_has_no_borders() -> None:
    raw = Backend(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    borders = Borders.of(PreTrainedTokenizerFast(tokenizer_object=raw))
    assert borders is not None
    assert borders.cut(Rendering("a b", ((1, 3),))) is None


def test_settings_of_the_tokenizer_are_looked_at() -> None:
    dropping = chatml()
    dropping.backend_tokenizer.model.dropout = 0.1
    split_specials = chatml()
    split_specials.split_special_tokens = True
    assert Borders.of(dropping) is None
    assert Borders.of(split_specials) is None
