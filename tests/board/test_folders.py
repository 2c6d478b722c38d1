"""The board reads and writes in the folders that it was given, and nowhere else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.board.folders import Folders
from luthier.errors import UserError
from luthier.recipe import Recipe


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("runs/first", "data", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs/first/recipe.yaml").write_text("model: {source: m}\ndata: {train: d}\n")
    (tmp_path / "runs/first/log.txt").write_text("log")
    (tmp_path / "elsewhere/recipe.yaml").write_text("secret")
    (tmp_path / "elsewhere/secret.txt").write_text("secret")
    return Folders((tmp_path / "runs").resolve(), ((tmp_path / "data").resolve(),))


def test_a_run_is_a_folder_among_the_runs(folders: Folders, tmp_path: Path) -> None:
    assert folders.run("first").root == folders.runs / "first"
    (folders.runs / "link").symlink_to(tmp_path / "elsewhere")
    (folders.runs / ".board").mkdir()
    for name in (
        "link",
        "..",
        "../elsewhere",
        "",
        ".",
        ".board",
        "none",
        "first/..",
        "a\0b",
        "x" * 999,
    ):
        with pytest.raises(UserError, match="there is no run"):
            folders.run(name)


def test_a_file_is_inside_its_run(folders: Folders, tmp_path: Path) -> None:
    run = folders.run("first")
    assert folders.file(run, "log.txt").read_text() == "log"
    (run.root / "link.txt").symlink_to(tmp_path / "elsewhere/secret.txt")
    (run.root / "folder").symlink_to(tmp_path / "elsewhere")
    outside = (
        "link.txt",
        "folder/secret.txt",
        "../../elsewhere/secret.txt",
        "/etc/passwd",
        ".",
        "a\0",
    )
    for name in outside:
        with pytest.raises(UserError, match="there is no file"):
            folders.file(run, name)
    assert [path.name for path in folders.files(run)] == ["log.txt", "recipe.yaml"]


def test_data_are_read_from_the_folders_given(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "data/rows.jsonl").write_text("{}")
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    folders.readable(str(tmp_path / "data/rows.jsonl"))
    for text in (
        "/etc/passwd",
        "~/x",
        str(tmp_path / "data/../elsewhere/a"),
        str(tmp_path / "data/link/a"),
    ):
        with pytest.raises(UserError, match="is not in a folder that the board may read"):
            folders.readable(text)


def test_every_path_of_a_recipe_is_checked(
    folders: Folders, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    inside, outside = tmp_path / "data/rows.jsonl", tmp_path / "elsewhere/secret.txt"
    inside.write_text("{}")
    good = (f"data.train={inside}", "model.source=smollm2-135m")
    checked = folders.check(make_recipe(*good))
    assert checked.run.dir == str(folders.runs)
    (tmp_path / "elsewhere/metric.py").write_text("")
    for setting in (
        f"data.train=[{inside}, {outside}]",
        f"data.validation={outside}",
        f"data.replay={{source: {outside}}}",
        f"model.source={tmp_path / 'elsewhere'}",
        f"evaluate.sql_databases={tmp_path / 'elsewhere'}",
        f"evaluate.json_schema={outside}",
        f"evaluate.metrics=[{tmp_path / 'elsewhere/metric.py'}]",
    ):
        with pytest.raises(UserError, match="is not in a folder that the board may read"):
            folders.check(make_recipe(*good, setting))
    for name in ("../out", "a/b", ".hidden", "a\\b"):
        with pytest.raises(UserError, match=r"run\.name"):
            folders.check(make_recipe(*good).changed(run={"name": name}))


def test_an_upload_keeps_its_name_and_replaces_nothing(folders: Folders) -> None:
    first = folders.upload("rows.jsonl")
    assert first == folders.uploads / "rows.jsonl"
    first.parent.mkdir(parents=True)
    first.write_text("x")
    assert folders.upload("rows.jsonl").name == "rows-2.jsonl"
    for name in ("", "..", ".x", "a/b", "a\0", "x" * 200):
        with pytest.raises(UserError, match="is not a name"):
            folders.upload(name)


def test_records_that_lead_out_of_a_run_are_not_shown(folders: Folders, tmp_path: Path) -> None:
    (folders.runs / "first/metrics.jsonl").symlink_to(tmp_path / "elsewhere/secret.txt")
    with pytest.raises(UserError, match="leads out of its run"):
        folders.run("first")
