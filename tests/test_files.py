import os
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.files import (
    remove_folder,
    remove_unfinished,
    sha256,
    staged_folder,
    write_json,
    write_jsonl,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_in_the_way_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"]


def test_a_staged_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "t"
    with pytest.raises(RuntimeError), staged_folder(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
        raise RuntimeError
    assert names(tmp_path) == []
    with staged_folder(target) as folder:
        (folder / "x").write_text("1")
    assert names(tmp_path) == ["t"]
    with staged_folder(target) as folder:
        (folder / "y").write_text("2")
    assert names(target) == ["y"]
    assert names(tmp_path) == ["t"]


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-3.abcdef01.tmp").mkdir()
    (tmp_path / ".a.json.abcdef01.tmp").write_text("half")
    (tmp_path / "kept.tmp").write_text("whole")
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["kept.tmp"]


def test_remove_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    remove_folder(tmp_path / "a")
    assert names(tmp_path) == []


def test_json_is_utf8_and_ends_its_lines(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"k": "é"})
    write_jsonl(tmp_path / "a.jsonl", [{"k": 1}, {"k": "é\n"}])
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "k": "é"\n}\n'
    assert (tmp_path / "a.jsonl").read_text("utf-8") == '{"k": 1}\n{"k": "é\\n"}\n'


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223b00361a396177a9c")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_the_users_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="cannot write"):
            write_text(tmp_path / "a", "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_home_that_is_not_there_is_said() -> None:
    from luthier.files import user_path

    assert user_path("~/x") == Path.home() / "x"
    with pytest.raises(UserError, match="there is no user with that name"):
        user_path("~nobody-of-this-name/x")
