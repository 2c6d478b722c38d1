"""Trackers through their own clients, offline: what the client stored is read back."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import Notes
from played import play

from luthier.errors import Interrupted, UserError
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.sinks.all import stream_of

LOSSES = [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]


def installed(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def interrupted_and_resumed(recipe: Recipe, run: Run) -> Notes:
    """Two sessions: stopped after step 3, and on from the checkpoint at step 2."""
    heard = Notes()
    with suppress(Interrupted), stream_of(recipe, run, heard) as stream:
        for event in play(run, 0, 3):
            stream(event)
        raise Interrupted("stopped")
    with stream_of(recipe, run, heard) as stream:
        for event in play(run, 2, 4):
            stream(event)
    return heard


@installed("mlflow", "sqlalchemy", "alembic")
def test_mlflow(recipe: Recipe, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    recipe = recipe.changed(train={"report_to": "mlflow"})
    heard = interrupted_and_resumed(recipe, run)
    assert heard.warnings == []

    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("luthier")
    assert experiment is not None
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_name == "first"
    assert kept.info.status == "FINISHED"
    assert kept.data.params["train.learning_rate"] == "0.125"
    assert kept.data.params["data.train"] == "my.jsonl"

    def history(key: str) -> list[tuple[int, float]]:
        found = client.get_metric_history(kept.info.run_id, key)
        return sorted((metric.step, metric.value) for metric in found)

    assert history("train/loss") == LOSSES
    assert history("eval/loss") == [(2, 1.0), (4, 0.5)]
    assert history("measured/tokens") == [(4, 400)]
    assert json.loads(run.trackers_path.read_text()) == {"MLflow": kept.info.run_id}


@installed("mlflow", "sqlalchemy", "alembic")
def test_a_server_of_mlflow_that_is_away_stops_nothing(
    recipe: Recipe, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    recipe = recipe.changed(train={"report_to": "mlflow"})
    heard = interrupted_and_resumed(recipe, run)
    # Once in each of the two sessions, not at each step.
    assert len(heard.warnings) == 2, heard.warnings
    assert all(text.startswith("MLflow failed (MlflowException") for text in heard.warnings)
    assert len(run.metrics()) == 6
    assert not run.trackers_path.exists()


@installed("wandb")
def test_weights_and_biases(recipe: Recipe, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    recipe = recipe.changed(train={"report_to": "wandb"})
    heard = interrupted_and_resumed(recipe, run)
    assert heard.warnings == []

    files = sorted((run.root / "wandb").glob("offline-run-*/run-*.wandb"))
    records = [whole_wandb_session(path) for path in files]
    known = json.loads(run.trackers_path.read_text())["Weights & Biases"]
    begun = [record.run for session in records for record in session if record.HasField("run")]
    assert {(r.run_id, r.display_name, r.project) for r in begun} == {(known, "first", "luthier")}
    (config,) = [item for item in begun[0].config.update if item.key == "train"]
    assert json.loads(config.value_json)["learning_rate"] == 0.125
    figures = [wandb_figures(session) for session in records]
    losses = [
        (f["_step"], f["train/loss"]) for session in figures for f in session if "train/loss" in f
    ]
    assert losses == LOSSES
    evaluated = [
        (f["_step"], f["eval/loss"]) for session in figures for f in session if "eval/loss" in f
    ]
    assert evaluated == [(2, 1.0), (4, 0.5)]
    codes = [r.exit.exit_code for session in records for r in session if r.HasField("exit")]
    assert codes == [1, 0]
    summary = {
        item.key: json.loads(item.value_json)
        for record in records[-1]
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert summary["best_eval_loss"] == 0.5


def whole_wandb_session(path: Path) -> list[Any]:
    """All records; its process writes the last ones a little after ``finish`` has returned."""
    deadline = time.monotonic() + 30
    while True:
        records = list(wandb_records(path))
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.1)


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run, in LevelDB's log format: blocks of 32 KiB after a header."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        kind = data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def wandb_figures(records: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records
        if record.HasField("history")
    ]


@installed("wandb")
def test_weights_and_biases_asks_nothing_in_a_run(
    recipe: Recipe, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "online.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from luthier.run import Run\n"
        "from luthier.sinks.all import stream_of\n"
        "run = Run(Path(sys.argv[1]))\n"
        "with stream_of(run.recipe().changed(train={'report_to': 'wandb'}), run, print): pass\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody has logged in there
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run(
        [sys.executable, script, run.root], capture_output=True, text=True, timeout=120
    )
    assert "UserError: train.report_to wandb: you are not logged in" in done.stderr
    assert "WANDB_MODE=offline" in done.stderr


@pytest.fixture
def trackio_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    assert "trackio" not in sys.modules, "it reads its folder when it is imported"
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return tmp_path / "trackio"


@installed("trackio")
def test_trackio(
    recipe: Recipe, run: Run, trackio_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe.changed(train={"report_to": "trackio"})
    heard = interrupted_and_resumed(recipe, run)
    assert heard.warnings == []
    assert capsys.readouterr().out == ""  # stdout is for results

    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    (kept,) = Api().runs("luthier")
    assert kept.name == json.loads(run.trackers_path.read_text())["Trackio"]
    assert kept.name.startswith("first-")
    assert kept.config is not None
    assert kept.config["train"]["learning_rate"] == 0.125
    logged = SQLiteStorage.get_logs("luthier", kept.name)
    assert [(f["step"], f["train/loss"]) for f in logged if "train/loss" in f] == LOSSES
    assert [(f["step"], f["eval/loss"]) for f in logged if "eval/loss" in f] == [(2, 1.0), (4, 0.5)]
    assert [f["measured/tokens"] for f in logged if "measured/tokens" in f] == [400]
    assert (trackio_folder / "luthier.db").is_file()


@pytest.mark.parametrize(
    ("tracker", "needed"), [("trackio", "trackio"), ("wandb", "wandb"), ("mlflow", "alembic")]
)
def test_a_tracker_that_is_not_installed(
    tracker: str, needed: str, recipe: Recipe, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "luthier.extras.find_spec", lambda name: None if name == needed else object()
    )
    with (
        pytest.raises(UserError, match=rf"train\.report_to {tracker} needs .*luthier\[trackers\]"),
        stream_of(recipe.changed(train={"report_to": [tracker]}), run, Notes()),
    ):
        pass
