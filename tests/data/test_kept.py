"""Prepared rows that are kept between runs are those that would be prepared again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import CHAT_FAMILIES, make_tokenizer
from helpers import Notes, write_rows
from transformers import PreTrainedTokenizerBase

from luthier.data import kept, token_rows
from luthier.data import prepare as module
from luthier.data.prepare import Prepared, load_stored, prepare, store
from luthier.recipe import Recipe
from luthier.run import Run

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer(CHAT_FAMILIES["chatml"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "WORTH_KEEPING", 0)
    monkeypatch.setattr("luthier.data.token_file._SMALL", 0)
    return tmp_path / "cache" / "prepared"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"Question": f"q{n} é", "Answer": "a " * (n % 9 + 1), "context": "", "note": n or None}
        for n in range(80)
    ]
    rows += [{"Question": "long", "Answer": "x " * 300}, {"Question": "", "Answer": ""}]
    return write_rows(tmp_path / "rows.jsonl", rows)


def recipe_of(make_recipe: MakeRecipe, source: Path, *more: str) -> Recipe:
    return make_recipe(f"data.train={source}", "data.on_bad_row=skip", *more)


def fail(*_: Any, **__: Any) -> Any:
    pytest.fail("done again")


def in_run(prepared: Prepared, folder: Path) -> dict[str, bytes]:
    store(prepared, Run(folder))
    return {each.name: each.read_bytes() for each in (folder / "data").iterdir()}


def test_unchanged_sources_are_not_read_again(
    make_recipe: MakeRecipe,
    tokenizer: PreTrainedTokenizerBase,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_of(make_recipe, source)
    with monkeypatch.context() as plain:
        plain.setattr(module, "WORTH_KEEPING", 2**40)
        expected = prepare(recipe, tokenizer)
    first, again = Notes(), Notes()
    prepared = prepare(recipe, tokenizer, first)
    monkeypatch.setattr(module, "read_rows", fail)
    monkeypatch.setattr(token_rows, "encode_all", fail)
    found = prepare(recipe, tokenizer, again)
    assert prepared == expected
    assert found == expected
    assert again.notes == first.notes != []
    assert [row.origin for row in found.train] == [row.origin for row in expected.train]
    written = in_run(expected, tmp_path / "expected")
    assert in_run(prepared, tmp_path / "prepared") == written
    assert in_run(found, tmp_path / "found") == written


def test_a_resumed_run_finds_its_rows(
    make_recipe: MakeRecipe,
    tokenizer: PreTrainedTokenizerBase,
    source: Path,
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, run = recipe_of(make_recipe, source), Run(tmp_path / "run")
    prepared = prepare(recipe, tokenizer)
    store(prepared, run)
    with monkeypatch.context() as changed:
        changed.setattr(token_rows, "encode_all", fail)
        found = load_stored(recipe.data, tokenizer, run)
    assert (found.train, found.validation) == (prepared.train, prepared.validation)
    for each in folder.iterdir():  # without the cache, and kept by that
        each.rename(tmp_path / each.name)
    again = load_stored(recipe.data, tokenizer, run)
    assert (again.train, again.validation) == (prepared.train, prepared.validation)
    with monkeypatch.context() as changed:
        changed.setattr(token_rows, "encode_all", fail)
        assert load_stored(recipe.data, tokenizer, run).train == prepared.train


def test_what_changes_rows_or_tokens_prepares_anew(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, source: Path, folder: Path
) -> None:
    prepare(recipe_of(make_recipe, source), tokenizer)
    for more in ("data.max_length=200", "data.train_on=all", "train.seed=5", "data.max_rows=30"):
        recipe = recipe_of(make_recipe, source, more)
        prepared = prepare(recipe, tokenizer)
        assert prepare(recipe, tokenizer) == prepared
    other = make_tokenizer(CHAT_FAMILIES["llama3"])
    assert prepare(recipe_of(make_recipe, source), other).train[0].ids[0] != 0
    source.write_text(source.read_text("utf-8").replace("q7 ", "q77 "), "utf-8")
    changed = prepare(recipe_of(make_recipe, source), tokenizer)
    assert any(b"q77" in row.line for row in [*changed.train, *changed.validation])
    assert len(list(folder.glob("*.json"))) == 7


@pytest.mark.parametrize("name", ["train.rows", "train.npz", "train.tokens", "validation.tokens"])
def test_damaged_files_are_prepared_anew(
    name: str,
    make_recipe: MakeRecipe,
    tokenizer: PreTrainedTokenizerBase,
    source: Path,
    folder: Path,
) -> None:
    recipe = recipe_of(make_recipe, source)
    first = in_memory(prepare(recipe, tokenizer))
    (split,) = (each for each in folder.iterdir() if each.is_dir())
    whole = (split / name).read_bytes()
    (split / name).write_bytes(whole[:-7])
    assert in_memory(prepare(recipe, tokenizer)) == first
    assert (split / name).stat().st_size == len(whole)


def in_memory(prepared: Prepared) -> list[Any]:
    return [
        (row.input_ids, row.supervised, row.conversation)
        for row in [*prepared.train, *prepared.validation]
    ]


def test_the_oldest_are_deleted(
    make_recipe: MakeRecipe,
    tokenizer: PreTrainedTokenizerBase,
    source: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "_KEPT_BYTES", 1)
    for seed in (1, 2, 3):
        recipe = recipe_of(make_recipe, source, f"train.seed={seed}")
        prepared = prepare(recipe, tokenizer)
    assert len([each for each in folder.iterdir() if each.is_dir()]) == 1
    assert prepare(recipe, tokenizer) == prepared
