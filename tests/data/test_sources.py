"""What a person may write where data is asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from families import CHAT_FAMILIES, make_tokenizer
from helpers import Notes, write_rows

from luthier.data.prepare import prepare
from luthier.data.readers import BadRow, read_rows
from luthier.data.sources import find_files
from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.recipe.sources import absolute_source

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
    with pytest.raises(UserError, match=r"has no data file: their names end in \.jsonl"):
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
    with pytest.raises(UserError, match="no split 'dev': it has data/test-00000"):
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


def card(folder: Path, configs: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: mit\n{configs}\n---\n# Rows\n")


ONE_CONFIG = """configs:
- config_name: main
  data_files:
  - split: train
    path: [data/rows-*.jsonl, more]
  - split: test
    path: data/held.jsonl"""


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A data set whose names tell nothing; its README does."""
    folder = tmp_path / "set"
    for name in ("data/rows-0", "data/rows-1", "data/held", "more/a", "other"):
        put(folder / f"{name}.jsonl", name)
    card(folder, ONE_CONFIG)
    return folder


def test_the_readme_of_a_data_set_tells_its_splits(described: Path) -> None:
    notes = Notes()
    files = find_files(str(described), notes)
    names = [str(Path(file).relative_to(described)) for file in files]
    assert names == ["data/rows-0.jsonl", "data/rows-1.jsonl", "more/a.jsonl"]
    assert notes.notes == [
        f"{described}: 3 of its 5 data files are read (its train split); not read: "
        "data/held.jsonl, other.jsonl"
    ]
    for wanted in ("test", "main/test"):
        assert texts(f"{described}:{wanted}") == ["data/held"]
    assert len(texts(f"{described}:main")) == 3
    with pytest.raises(UserError, match=r"has no split 'dev': it has train, test; choose one, as"):
        find_files(f"{described}:dev")


def test_a_hub_data_set_is_read_as_its_readme_says(hub: Path) -> None:
    card(hub, "configs:\n- config_name: x\n  data_files: [{split: train, path: data/test-*}]")
    assert texts("acme/tiny") == ["e"]


SEVERAL = """configs:
- {config_name: en, data_files: data/rows-0.jsonl}
- {config_name: fr, data_dir: more}"""


def test_several_configurations_are_the_users_choice(described: Path) -> None:
    card(described, SEVERAL)
    with pytest.raises(UserError) as error:
        find_files(str(described))
    assert str(error.value) == (
        f"{described} has several configurations (en, fr) and names no default; choose one, as in "
        f"{described}:en"
    )
    assert texts(f"{described}:en") == ["data/rows-0"]
    assert texts(f"{described}:fr") == ["more/a"]
    card(described, SEVERAL.replace("data_dir: more", "data_dir: more, default: true"))
    assert texts(str(described)) == ["more/a"]


@pytest.mark.parametrize(
    ("configs", "said"),
    [
        ("configs: 3", "'configs' is not a list"),
        ("configs: [{data_files: x}]", "entry 1 has no 'config_name'"),
        ("configs: [{config_name: a, data_files: [{split: train}]}]", "are not paths"),
        ("configs: [{config_name: a, data_files: [{split: test, path: more}]}]", "it has test"),
        ("configs: [{config_name: a, data_files: ../../*}]", "no such file whose name ends in"),
        ("configs: [{config_name: a, data_files: /etc/*}]", "no such file whose name ends in"),
        ("configs: [{config_name: a, data_files: x.txt}]", "no such file whose name ends in"),
        ("configs: [{config_name: a, data_dir: ../x}]", "no such file whose name ends in"),
        ("configs: [", "not valid YAML"),
    ],
)
def test_a_readme_that_cannot_be_followed(described: Path, configs: str, said: str) -> None:
    card(described, configs)
    with pytest.raises(UserError) as error:
        find_files(str(described))
    assert said in str(error.value)


def test_a_folder_with_train_and_test_files_is_not_trained_on_its_test(tmp_path: Path) -> None:
    for name in ("train", "test", "validation-0", "extra", "testimonials"):
        put(tmp_path / "d" / f"{name}.jsonl", name)
    notes = Notes()
    assert texts(str(tmp_path / "d")) == ["extra", "testimonials", "train"]
    find_files(str(tmp_path / "d"), notes)
    assert "not read: test.jsonl, validation-0.jsonl" in notes.notes[0]
    assert texts(f"{tmp_path}/d:test") == ["test"]


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    import pyarrow as pa

    def save(folder: Path, split: str) -> None:
        folder.mkdir(parents=True)
        for name in ("data-00000-of-00001.arrow", "cache-123.arrow"):
            table = pa.table({"text": [f"{split} {name[:4]}"]})
            with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
                writer.write_table(table)
        listed = [{"filename": "data-00000-of-00001.arrow"}]
        (folder / "state.json").write_text(json.dumps({"_data_files": listed, "_split": split}))
        (folder / "dataset_info.json").write_text("{}")

    save(tmp_path / "one", "test")
    assert texts(str(tmp_path / "one")) == ["test data"]
    for split in ("train", "test"):
        save(tmp_path / "dict" / split, split)
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert texts(str(tmp_path / "dict")) == ["train data"]
    assert texts(f"{tmp_path}/dict:test") == ["test data"]
    with pytest.raises(UserError, match="has no split 'dev': it has train, test"):
        find_files(f"{tmp_path}/dict:dev")
    (tmp_path / "one" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match=r"saved data set that lacks data-00000-of-00001\.arrow"):
        find_files(str(tmp_path / "one"))


def test_a_split_of_a_folder_means_the_same_from_any_folder(
    described: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(described.parent)
    put(Path("a/b/test.jsonl"), "x")
    assert absolute_source("a/b:test") == f"{described.parent}/a/b:test"
    assert texts("a/b:test") == ["x"]


def shard(path: Path, *rows: str) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": list(rows)}), path)
    return path


def test_a_folder_of_configurations_without_a_readme_asks_for_one(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for config in ("fr", "de"):
        shard(folder / config / "train-00000-of-00002.parquet", f"{config}0")
        shard(folder / config / "train-00001-of-00002.parquet", f"{config}1")
        shard(folder / config / "test-00000-of-00001.parquet", f"{config}-test")
    with pytest.raises(UserError, match=r"several configurations \(de, fr\).*set:de, or list"):
        find_files(str(folder))
    assert texts(f"{folder}:fr") == ["fr0", "fr1"]
    assert texts(f"{folder}:de/test") == ["de-test"]
    with pytest.raises(UserError, match="has no split 'dev'"):
        find_files(f"{folder}:de/dev")


def test_folders_of_splits_and_of_months_are_one_data_set(tmp_path: Path) -> None:
    for split in ("train", "test"):
        shard(tmp_path / "splits" / split / f"{split}-00000-of-00001.parquet", split)
    assert texts(str(tmp_path / "splits")) == ["train"]
    for month in ("01", "02"):
        shard(tmp_path / "months" / month / "rows.parquet", month)
    assert texts(str(tmp_path / "months")) == ["01", "02"]
