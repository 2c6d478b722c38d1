"""Comparisons and sweeps: what is found, and what of it is read."""

import json
import shutil
from pathlib import Path

import pytest

from luthier.board.folders import Folders
from luthier.errors import UserError

pytest.importorskip("nicegui", reason="the board needs the extra 'board'")

from luthier.board.pages.compare import _verdict, read_comparison

RECORDS = Path(__file__).parent / "records"


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    comparison, sweep = tmp_path / "comparison", tmp_path / "sweeps/first"
    for run in (comparison / "runs/r=2", sweep / "trials/000", tmp_path / "elsewhere"):
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text("model: {source: m}\ndata: {train: d}\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "sweeps/empty").mkdir()
    shutil.copy(RECORDS / "variants.json", comparison / "comparison.json")
    return Folders(
        (tmp_path / "runs").resolve(), (), (comparison.resolve(), (tmp_path / "sweeps").resolve())
    )


def test_a_study_is_found_as_soon_as_it_began(folders: Folders, tmp_path: Path) -> None:
    assert {study.name: study.is_sweep for study in folders.studies()} == {
        "comparison": False,
        "first": True,
    }
    # Another of the same name gets one of its own; a link may lead anywhere.
    (tmp_path / "sweeps/comparison/trials").mkdir(parents=True)
    (tmp_path / "sweeps/link").symlink_to(tmp_path / "comparison")
    assert [study.name for study in folders.studies()] == ["comparison", "comparison-2", "first"]
    with pytest.raises(UserError, match="there is no comparison or sweep 'x'"):
        folders.study("x")


def test_runs_of_a_study_are_found_by_both_names(folders: Folders, tmp_path: Path) -> None:
    assert folders.run("first:000").root == tmp_path / "sweeps/first/trials/000"
    study = folders.study("comparison")
    assert [study.run_name(run) for run in study.runs()] == ["comparison:r=2"]
    (study.runs_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in (
        *("first:", "first:..", "first:../../../elsewhere", "first:.", "first:001", ":000"),
        *("..:000", "comparison:link", "none:000", "first:000:x", "first:a\0"),
    ):
        with pytest.raises(UserError, match="there is no"):
            folders.run(name)


def test_a_record_that_leads_out_of_its_study_is_none(folders: Folders, tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere/sweep.json"
    secret.write_text("{}")
    (tmp_path / "sweeps/first/sweep.json").symlink_to(secret)
    assert [study.name for study in folders.studies()] == ["comparison"]


def test_the_verdict_is_that_of_the_record(folders: Folders) -> None:
    study = folders.study("comparison")
    raw = json.loads(study.folder.record_path.read_bytes())
    assert _verdict(read_comparison(study))[0] == "no evidence"
    tests = [v["against_reference"] for v in raw["variants"] if v["against_reference"]]
    name = raw["metrics"][0]["name"]
    for verdicts, word in ((("better", "worse"), "better"), (("worse", "worse"), "worse")):
        for test, verdict in zip(tests, verdicts, strict=True):
            test[name]["verdict"] = verdict
        study.folder.record_path.write_text(json.dumps(raw))
        assert _verdict(read_comparison(study))[0] == word


def test_a_record_whose_parts_do_not_fit_is_damaged(folders: Folders) -> None:
    study = folders.study("comparison")
    raw = json.loads(study.folder.record_path.read_bytes())
    raw["metrics"][0]["name"] = "another"
    study.folder.record_path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="the metric another is not everywhere"):
        read_comparison(study)


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "methods"}', '{"kind": 3}', "\xff"])
def test_a_damaged_record_is_a_sentence(folders: Folders, text: str) -> None:
    study = folders.study("comparison")
    study.folder.record_path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="is damaged"):
        read_comparison(study)
