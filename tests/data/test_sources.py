"""What a person may write where data is asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from families import CHAT_FAMILIES, make_tokenizer
from helpers import write_rows

from luthier.data.prepare import prepare
from luthier.data.readers import BadRow, read_rows
from luthier.data.sources import find_files
from luthier.errors import UserError
from luthier.recipe import Recipe

COMMIT = "0" * 40


def texts(source: str) -> list[str]:
    return [item[1]["text"] for item in read_rows(source) if not isinstance(item, BadRow)]


def put(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_rows(path, [{"text": text} for text in rows])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "d" / "b.jsonl", "b1", "b2")
    put(tmp_path / "d" / "sub" / "a.jsonl", "a")
    put(tmp_path / "d" / ".hidden.jsonl", "no")
    put(tmp_path / "d" / ".cache" / "c.jsonl", "no")
    (tmp_path / "d" / "README.md").write_text("no rows")
    (tmp_path / "d" / "dataset_info.json").write_text("{}")
    (tmp_path / "d" / "a.json").write_text(json.dumps([{"text": "j"}]))
    return tmp_path / "d"


def test_a_folder_is_all_the_readable_files_in_it(folder: Path) -> None:
    assert texts(str(folder)) == ["j", "b1", "b2", "a"]


def test_a_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no rows")
    with pytest.raises(UserError, match=r"holds no data file: they end in \.jsonl"):
        find_files(str(tmp_path))


def test_a_pattern(folder: Path) -> None:
    assert texts(f"{folder}/*.jsonl") == ["b1", "b2"]
    assert texts(f"{folder}/**/*.jsonl") == ["b1", "b2", "a"]
    assert texts(f"{folder}/*") == ["j", "b1", "b2"]
    with pytest.raises(UserError, match="no data file matches"):
        find_files(f"{folder}/*.csv")


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    path = put(tmp_path / "rows[1].jsonl", "x")
    assert texts(str(path)) == ["x"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset in the hub's cache, as after a download, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "hub" / "datasets--acme--tiny"
    snapshot = repository / "snapshots" / COMMIT
    put(snapshot / "data" / "train-00000-of-00002.jsonl", "t0")
    put(snapshot / "data" / "train-00001-of-00002.jsonl", "t1")
    put(snapshot / "data" / "train_sft-00000-of-00001.jsonl", "sft")
    put(snapshot / "data" / "test-00000-of-00001.jsonl", "e")
    (snapshot / "README.md").write_text("---\n")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_hub_dataset_gives_the_split_that_is_named(hub: Path) -> None:
    assert texts("acme/tiny:test") == ["e"]
    assert texts("acme/tiny:train") == ["t0", "t1"]
    assert texts("acme/tiny:train_sft") == ["sft"]
    with pytest.raises(UserError, match="no files of a split 'dev': it has data/test-00000"):
        find_files("acme/tiny:dev")


def test_without_a_split_it_gives_train_where_there_is_one(hub: Path) -> None:
    assert texts("acme/tiny") == ["t0", "t1"]
    for file in hub.glob("data/train-*"):
        file.unlink()
    assert texts("acme/tiny") == ["e", "sft"]


def test_a_split_in_a_folder_of_a_configuration(hub: Path) -> None:
    put(hub / "main" / "train" / "0.jsonl", "m")
    assert texts("acme/tiny:main/train") == ["m"]


def test_a_dataset_that_nobody_answers_for(hub: Path) -> None:
    with pytest.raises(
        UserError, match=r"is not a file or folder here, .* the hub does not answer"
    ):
        find_files("acme/none")


def test_a_missing_file_in_a_folder_is_not_looked_for_on_the_hub(hub: Path) -> None:
    with pytest.raises(UserError, match=r"no data file at acme/rows\.jsonl\.gz"):
        find_files("acme/rows.jsonl.gz")


def test_a_recipe_takes_every_source(
    hub: Path, folder: Path, make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe(
        f"data.train=[{folder}, acme/tiny]",
        f"data.validation={folder.parent}/hub/**/test-*.jsonl",
    )
    kept = recipe.with_absolute_paths()
    assert kept.data.train == [str(folder), "acme/tiny"]
    prepared = prepare(kept, make_tokenizer(CHAT_FAMILIES["chatml"]))
    assert [s.rows for s in prepared.report.sources] == [1, 2, 1, 1, 1, 1]
    assert (len(prepared.train), len(prepared.validation)) == (6, 1)
