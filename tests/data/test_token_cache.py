from pathlib import Path

import pytest
from families import CHAT_FAMILIES, make_tokenizer

from luthier.data import token_cache
from luthier.data.conversation import Conversation, Origin
from luthier.data.template import TemplateRejects
from luthier.data.token_cache import encode_all
from luthier.data.tokens import Tokenizer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    monkeypatch.setattr(token_cache, "WORTH", 2)
    return tmp_path / "tokens"


def rows(*questions: str) -> list[Conversation]:
    return [
        Conversation(Origin("f", i), ({"role": "user", "content": q}, {"role": "assistant", "content": "a"}))
        for i, q in enumerate(questions)
    ]  # fmt: skip


def test_a_second_time_no_row_is_tokenised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Tokenizer(make_tokenizer(CHAT_FAMILIES["chatml"]), "completions")
    first = encode_all(encoder, rows("x", "a longer one", "z"))
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(Tokenizer, "encode_all", lambda *_: pytest.fail("tokenised again"))
    assert encode_all(encoder, rows("x", "a longer one", "z")) == first


def test_whatever_changes_the_tokens_tokenises_anew(folder: Path) -> None:
    made = [
        (CHAT_FAMILIES["chatml"], "completions", ["x", "y"]),
        (CHAT_FAMILIES["llama3"], "completions", ["x", "y"]),
        (CHAT_FAMILIES["chatml"], "all", ["x", "y"]),
        (CHAT_FAMILIES["chatml"], "completions", ["x", "Y"]),
    ]
    for family, mode, questions in made:
        encoder = Tokenizer(make_tokenizer(family), mode)  # type: ignore[arg-type]
        expected = [encoder.encode(row) for row in rows(*questions)]
        assert encode_all(encoder, rows(*questions)) == expected
    assert len(list(folder.iterdir())) == len(made)


def test_a_damaged_file_is_written_anew(folder: Path) -> None:
    encoder = Tokenizer(make_tokenizer(CHAT_FAMILIES["chatml"]), "completions")
    first = encode_all(encoder, rows("x", "y"))
    (file,) = folder.iterdir()
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    assert encode_all(encoder, rows("x", "y")) == first
    assert file.read_bytes() == good


def test_refused_rows_come_as_errors_and_are_not_cached(folder: Path) -> None:
    encoder = Tokenizer(make_tokenizer(CHAT_FAMILIES["gemma"]), "completions")
    system = Conversation(
        Origin("f", 9), ({"role": "system", "content": "s"}, *rows("x")[0].messages)
    )
    first, second = encode_all(encoder, [rows("x")[0], system])
    assert not isinstance(first, TemplateRejects)
    assert isinstance(second, TemplateRejects)
    assert not folder.exists()
