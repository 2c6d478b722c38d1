"""`luthier compare` over variants, as a person types it, on the tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Cli, wait_for_step, write_rows
from preferences import preference_rows

from luthier.run import Run


@pytest.fixture(scope="module")
def compared(
    cli: Cli, tiny_model: Path, rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_rows(folder / "rows.jsonl", rows)
    (folder / "recipe.yaml").write_text(
        f"model: {{source: {tiny_model}, dtype: float32}}\n"
        "data: {train: rows.jsonl, max_length: 128}\n"
        "train: {max_steps: 4, learning_rate: 1.0e-2, eval_steps: 2, save_steps: 2}\n"
        "evaluate: {max_new_tokens: 4, max_rows: 5, metrics: [exact_match, chrf], probe: false}\n"
    )
    done = cli(
        *("compare", "recipe.yaml", "--methods", "full,lora", "--out", "out"),
        *("--price-per-hour", "2"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "run 2 of 2: lora" in done.stderr
    for word in ("full", "lora", "chrF", "% of full", "comparison.html"):
        assert word in done.stdout
    return folder


def test_the_table_is_what_the_runs_say(compared: Path) -> None:
    comparison = json.loads((compared / "out/comparison.json").read_text())
    assert (comparison["kind"], comparison["reference"], comparison["rows"]) == (
        "methods",
        "full",
        5,
    )
    full, lora = comparison["variants"]
    for variant in (full, lora):
        run = compared / variant["runs"][0]
        measured = json.loads((run / "measured.json").read_text())
        evaluation = json.loads((run / "evaluation.json").read_text())
        plan = json.loads((run / "plan.json").read_text())
        assert variant["peak_measured_bytes"] == measured["peak_memory_bytes"]
        assert variant["peak_predicted_bytes"] == plan["memory"]["peak"]
        assert variant["seconds"] == pytest.approx(measured["seconds"])
        assert variant["cost"] == pytest.approx(measured["seconds"] / 3600 * 2)
        for metric in ("exact_match", "chrf"):
            tuned = evaluation["metrics"][metric]["tuned"]
            assert variant["scores"][metric]["mean"] == pytest.approx(tuned["mean"])
        assert [step for step, _ in variant["curve"]["eval_loss"]] == [2, 4]
        weights = run / measured["weights"]
        assert variant["weights_bytes"] == sum(
            file.stat().st_size for file in weights.glob("*.safetensors")
        )
    assert full["against_reference"] is None
    assert lora["against_reference"]["chrf"]["verdict"] in ("better", "no evidence", "worse")
    assert lora["trainable_parameters"] < full["trainable_parameters"]
    assert lora["weights_bytes"] < full["weights_bytes"]
    assert full["learning_rate"] == pytest.approx(1e-2 * 2e-5 / 3e-4, rel=1e-2)


def test_reward_models_are_compared_by_the_pairs_they_get_right(
    cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "pairs.jsonl", preference_rows(40))
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{source: {tiny_model}, dtype: float32}}\n"
        "objective: {name: reward}\n"
        "data: {train: pairs.jsonl, max_length: 128, validation_fraction: 0.3}\n"
        "train: {max_steps: 3, eval_steps: 3, save_steps: 3}\n"
    )
    done = cli(
        *("compare", "recipe.yaml", "--vary", "train.learning_rate=1e-9,3e-2", "--out", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    comparison = json.loads((tmp_path / "out/comparison.json").read_text())
    assert comparison["rows"] == 12 and comparison["base"] == {}
    assert [metric["name"] for metric in comparison["metrics"]] == ["preference_accuracy"]
    for variant in comparison["variants"]:
        run = Run(tmp_path / variant["runs"][0])
        right = [pair.chosen > pair.rejected for pair in run.scored_pairs()]
        score = variant["scores"]["preference_accuracy"]
        assert score["mean"] == pytest.approx(sum(right) / 12) and score["rows"] == 12
        assert variant["eval_loss"] == pytest.approx(run.measured().best_eval_loss)
    assert "prefers chosen answer" in done.stdout
    assert (tmp_path / "out/comparison.html").is_file()
    again = cli(
        *("compare", "recipe.yaml", "--vary", "train.learning_rate=1e-9,3e-2", "--out", "out"),
        cwd=tmp_path,
    )
    assert again.returncode == 0 and "run 1 of 2" not in again.stderr


def test_the_page_stands_alone(compared: Path) -> None:
    page = (compared / "out/comparison.html").read_text()
    assert "Validation loss" in page
    assert page.count("<svg") == 3
    assert "http" not in page
    markdown = (compared / "out/comparison.md").read_text()
    assert "| full |" in markdown
    assert "| lora |" in markdown


def test_what_is_done_is_not_done_again(cli: Cli, compared: Path) -> None:
    before = {
        file: file.stat().st_mtime_ns
        for name in ("measured.json", "evaluation.json")
        for file in (compared / "out/runs").glob(f"*/{name}")
    }
    assert len(before) == 4
    again = ("compare", "recipe.yaml", "--methods", "full,lora", "--out", "out", "--json")
    done = cli(*again, cwd=compared)
    assert done.returncode == 0, done.stderr
    assert [v["name"] for v in json.loads(done.stdout)["variants"]] == ["full", "lora"]
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_stopped_comparison_stops_its_run_which_saves(compared: Path) -> None:
    command = (
        *("-m", "luthier.cli.main", "compare", "recipe.yaml", "--methods", "full,lora"),
        *("--set", "train.max_steps=500", "--out", "stopped"),
    )
    process = subprocess.Popen(
        [sys.executable, *command], cwd=compared, stderr=subprocess.PIPE, text=True
    )
    run = Run(compared / "stopped/runs/full")
    wait_for_step(run, 3)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "go on with: luthier compare recipe.yaml" in said
    assert 3 <= max(run.checkpoints()) < 500
    with run.locked():  # no process is left at work on it
        pass


def test_other_settings_need_another_folder(cli: Cli, compared: Path) -> None:
    again = ("compare", "recipe.yaml", "--methods", "full,lora", "--out", "out")
    done = cli(*again, "--set", "train.max_steps=5", cwd=compared)
    assert done.returncode == 2
    assert "train.max_steps: 4 -> 5" in done.stderr


def test_variants_on_different_rows_are_not_compared(cli: Cli, compared: Path) -> None:
    run = compared / "out/runs/lora"
    rows = run / "evaluation/rows.jsonl"
    kept = rows.read_text()
    try:
        rows.write_text("".join(f"{line}\n" for line in kept.splitlines()[1:]))
        done = cli("compare", "recipe.yaml", "--methods", "full,lora", "--out", "out", cwd=compared)
        assert done.returncode == 2
        assert "lora answered different rows from full" in " ".join(done.stderr.split())
    finally:
        rows.write_text(kept)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "give a recipe to vary, or --approaches"),
        (["recipe.yaml", "--methods", "lora"], "there is only one variant"),
        (["--approaches", "zero-shot"], "give --data"),
        (["--approaches", "zeroshot", "--data", "rows.jsonl"], "there is no approach 'zeroshot'"),
        (["--approaches", "rag,rag", "--data", "rows.jsonl"], "must name each approach once"),
        (["--approaches", "rag", "--data", "rows.jsonl"], "rag needs documents: give --docs"),
        (["--approaches", "rag", "--data", "rows.jsonl", "--seeds", "2"], "need a recipe"),
    ],
)
def test_wrong_input_says_what_to_do(
    typed: list[str], message: str, cli: Cli, compared: Path
) -> None:
    done = cli("compare", *typed, cwd=compared)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
