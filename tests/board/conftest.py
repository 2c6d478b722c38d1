"""Runs for the board to show."""

import json
import shutil
from pathlib import Path

import pytest
from boards import EVIL, SCRIPT
from helpers import write_rows

import luthier
from luthier.run import Run


@pytest.fixture(scope="module")
def shown_runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, rows: list[dict[str, str]]
) -> Path:
    """A folder of runs: one finished and evaluated, one of the same under hostile names."""
    folder = tmp_path_factory.mktemp("board")
    data = write_rows(folder / "rows.jsonl", rows)
    run = luthier.train(
        {
            "model": {"source": str(tiny_model), "dtype": "float32"},
            "data": {"train": str(data), "max_length": 128},
            "train": {"max_steps": 12, "eval_steps": 4, "logging_steps": 1, "learning_rate": 1e-2},
            "evaluate": {"probe": False, "max_rows": 4, "max_new_tokens": 8},
            "run": {"dir": str(folder / "runs"), "name": "first"},
        }
    )
    luthier.evaluate(run)
    evil = Run(run.root.parent / EVIL)
    shutil.copytree(run.root, evil.root)
    (evil.root / f"{EVIL}.txt").write_text(SCRIPT)
    evaluation = json.loads(evil.evaluation_path.read_text())
    for sample in evaluation["samples"]:
        sample.update(base=EVIL, tuned=SCRIPT, reference=EVIL, row=SCRIPT)
        sample["messages"] = [{"role": "user", "content": EVIL + SCRIPT}]
    evaluation["data"] = SCRIPT
    for metric in evaluation["metrics"].values():
        metric["label"] = EVIL
    evil.evaluation_path.write_text(json.dumps(evaluation))
    with evil.events_path.open("a") as file:
        file.write(json.dumps({"event": "note", "time": SCRIPT, "text": EVIL + SCRIPT}) + "\n")
    own = run.root.parent / ".board"
    own.mkdir()
    (own / "tags.json").write_text(json.dumps({EVIL: [EVIL, SCRIPT], "first": ["good"]}))
    make_studies(run, folder)
    return run.root.parent


def make_studies(run: Run, folder: Path) -> None:
    """Records of real comparisons and of a real sweep, with a hostile text wherever one may be."""
    comparison, sweep = folder / "comparison", folder / "sweeps/first"
    shutil.copytree(run.root, comparison / "runs" / EVIL)
    shutil.copytree(run.root, sweep / "trials/000")
    (comparison / "comparison.json").write_text(hostile("variants"))
    (folder / "sweeps/approaches").mkdir()
    (folder / "sweeps/approaches/comparison.json").write_text(hostile("approaches"))
    (sweep / "sweep.json").write_text(hostile("sweep"))
    (sweep / "best.yaml").write_text(f"# {EVIL}{SCRIPT}\n")
    # One that has only begun.
    shutil.copytree(run.root, folder / "sweeps/begun/trials/000")


def hostile(name: str) -> str:
    """A record whose names, labels and texts are hostile; what is compared keeps its name."""
    found = json.loads((Path(__file__).parent / "records" / f"{name}.json").read_text())
    texts = {"label", "question", "reference", "data", "why", "because", "model", "ended"}

    def changed(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {k: changed(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [changed(inner, key) for inner in value]
        hit = isinstance(value, str) and (key in texts or (key == "name" and name == "variants"))
        return f"{EVIL}{SCRIPT}{value}" if hit else value

    metrics = found.get("metrics", [])
    names = [metric["name"] for metric in metrics]
    found = changed(found)
    for metric, own in zip(found.get("metrics", []), names, strict=True):  # type: ignore[attr-defined]
        metric["name"] = own
    return json.dumps(found)
