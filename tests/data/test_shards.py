"""Training from shards is training from the sources."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import CHAT_FAMILIES, make_tokenizer
from helpers import Notes, write_rows
from transformers import PreTrainedTokenizerBase

from luthier.data import token_rows
from luthier.data.prepare import load_stored, prepare, store, tokenize_into
from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.run import Run

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer(CHAT_FAMILIES["chatml"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


def chats(folder: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"prompt": f"q{n} é", "completion": "a " * (n % 9 + 1), "note": n or None}
        for n in range(60)
    ]
    rows += [{"prompt": "long", "completion": "x " * 300}, {"prompt": "", "completion": ""}]
    return write_rows(folder / "rows.jsonl", rows)


def texts(folder: Path) -> Path:
    return write_rows(folder / "rows.jsonl", [{"text": f"t{n} " * (n * 9)} for n in range(1, 30)])


def pairs(folder: Path) -> Path:
    rows = [{"prompt": f"q{n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(40)]
    return write_rows(folder / "rows.jsonl", rows)


CASES = {
    "chats": (chats, ()),
    "texts in several rows": (texts, ("data.max_length=32",)),
    "pairs": (pairs, ("objective.name=dpo",)),
    "labels": (pairs, ("objective.name=kto",)),
}


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_rows_from_shards_are_those_from_the_sources(
    name: str,
    shards: int,
    make_recipe: MakeRecipe,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, more = CASES[name]
    recipe = make_recipe(f"data.train={write(tmp_path)}", "data.on_bad_row=skip", *more)
    expected = prepare(recipe, tokenizer)
    store(expected, Run(tmp_path / "expected"))
    made = tokenize_into(tmp_path / "tokens", recipe, tokenizer, shards)
    assert len(made.train) == shards
    (tmp_path / "rows.jsonl").unlink()
    monkeypatch.setattr(token_rows, "encode_all", lambda *_, **__: pytest.fail("tokenised again"))

    from_shards = recipe.changed(data={"train": str(tmp_path / "tokens")})
    found = prepare(from_shards, tokenizer)
    assert (found.train, found.validation) == (expected.train, expected.validation)
    assert [row.origin for row in found.train] == [row.origin for row in expected.train]
    assert len({row.source for row in found.train}) == len({row.source for row in expected.train})
    run = Run(tmp_path / "found")
    store(found, run)
    for each in (Run(tmp_path / "expected").root / "data").iterdir():
        assert (run.root / "data" / each.name).read_bytes() == each.read_bytes()

    resumed = load_stored(from_shards.data, tokenizer, run, objective=recipe.objective)
    assert (resumed.train, resumed.validation) == (expected.train, expected.validation)


@pytest.fixture
def tokens(make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    recipe = make_recipe(f"data.train={chats(tmp_path)}", "data.on_bad_row=skip")
    tokenize_into(tmp_path / "tokens", recipe, tokenizer, 2)
    return tmp_path / "tokens"


def shard_recipe(make_recipe: MakeRecipe, tokens: Path, *more: str) -> Recipe:
    return make_recipe(f"data.train={tokens}", "data.on_bad_row=skip", *more)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.max_length=64", "with data.max_length 128, and the recipe has 64"),
        ("data.train_on=all", "with data.train_on completions, and the recipe has all"),
        ("train.seed=7", "with train.seed 42, and the recipe has 7"),
        ("data.validation_fraction=0.3", "data.validation_fraction 0.1, and the recipe has 0.3"),
        ("objective.name=dpo", "objective learns from answers, and the recipe has pairs"),
    ],
)
def test_other_settings_are_refused_by_name(
    change: str,
    told: str,
    make_recipe: MakeRecipe,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Path,
) -> None:
    with pytest.raises(UserError, match=told):
        prepare(shard_recipe(make_recipe, tokens, change), tokenizer)


def test_what_decides_no_tokens_may_differ(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tokens: Path
) -> None:
    prepare(shard_recipe(make_recipe, tokens, "data.packing=true"), tokenizer)


def test_another_template_or_tokenizer_is_refused(make_recipe: MakeRecipe, tokens: Path) -> None:
    changed = make_tokenizer(CHAT_FAMILIES["chatml"])
    changed.chat_template += " "
    with pytest.raises(UserError, match="with another chat template"):
        prepare(shard_recipe(make_recipe, tokens), changed)
    other = make_tokenizer(CHAT_FAMILIES["llama3"])
    with pytest.raises(UserError, match="by another tokenizer"):
        prepare(shard_recipe(make_recipe, tokens), other)


def test_other_versions_of_packages_are_told(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tokens: Path
) -> None:
    manifest = tokens / "tokenized.json"
    told = json.loads(manifest.read_text("utf-8"))
    told["versions"]["tokenizers"] = "0.1"
    manifest.write_text(json.dumps(told), "utf-8")
    notes = Notes()
    prepare(shard_recipe(make_recipe, tokens), tokenizer, notes)
    assert any("tokenised by tokenizers 0.1" in str(note) for note in notes.notes)


def test_a_damaged_or_missing_shard_is_told(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tokens: Path
) -> None:
    shard = tokens / "train-00001-of-00002.tokens"
    whole = shard.read_bytes()
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(UserError, match=r"train-00001-of-00002\.tokens is not as it was written"):
        prepare(shard_recipe(make_recipe, tokens), tokenizer)
    shard.unlink()
    with pytest.raises(UserError, match="is missing; copy the whole folder again"):
        prepare(shard_recipe(make_recipe, tokens), tokenizer)


def test_shards_stand_alone(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tokens: Path, tmp_path: Path
) -> None:
    both = make_recipe(f"data.train=[{tokens}, {tmp_path / 'rows.jsonl'}]", "data.on_bad_row=skip")
    with pytest.raises(UserError, match="cannot be mixed"):
        prepare(both, tokenizer)
    with pytest.raises(UserError, match="holds tokenised rows already"):
        tokenize_into(tmp_path / "again", shard_recipe(make_recipe, tokens), tokenizer)
    with pytest.raises(UserError, match="holds no tokenised rows"):
        tokenize_into(tmp_path, make_recipe(), tokenizer)


def test_the_command_says_what_it_wrote_and_training_takes_it(
    cli: Any, recipe_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tokens"
    done = cli("data", "tokenize", recipe_file, "--out", folder, "--shards", "2")
    assert done.returncode == 0, done.stderr
    assert "training rows" in done.stdout
    assert "2 shards" in done.stdout
    short = ("--set", "train.max_steps=2", "--set", f"data.train={folder}")
    trained = cli("train", recipe_file, *short)
    assert trained.returncode == 0, trained.stderr
    refused = cli(
        "train", recipe_file, *short, "--set", "data.max_length=64", "--set", "run.name=b"
    )
    assert refused.returncode != 0
    assert "data.max_length 128" in " ".join(refused.stderr.split())
