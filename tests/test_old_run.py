"""A folder that version 0.1 wrote (tests/run-0.1): a LoRA run of four steps, evaluated."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Cli
from transformers import AutoModelForCausalLM

from luthier.data.prepare import held_out, trained_on
from luthier.errors import UserError
from luthier.evaluate import answering
from luthier.evaluate.before_after import evaluate_run
from luthier.evaluate.report.page import render_report
from luthier.export.card import write_card
from luthier.export.merge import merge
from luthier.models.tuned import load_tuned
from luthier.recipe import load_recipe
from luthier.records import Record
from luthier.run import Run, open_run
from luthier.serve.models import Models
from luthier.train.fit import fit


@pytest.fixture
def old_run(tmp_path: Path, tiny_model: Path, data_file: Path) -> Run:
    """A copy whose model and data are where this test has them."""
    root = tmp_path / "old"
    shutil.copytree(Path(__file__).parent / "run-0.1", root)
    path = root / "recipe.yaml"
    text = path.read_text().replace("MODEL", str(tiny_model)).replace("ROWS", str(data_file))
    path.write_text(text)
    return open_run(root)


def written(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_each_file_is_read_whole(old_run: Run) -> None:
    """Nothing that 0.1 wrote is lost, and nothing that it did not write is added."""
    pairs: list[tuple[Record | None, Path]] = [
        (old_run.measured(), old_run.measured_path),
        (old_run.plan(), old_run.plan_path),
        (old_run.data_report(), old_run.data_report_path),
        (old_run.evaluation(), old_run.evaluation_path),
    ]
    for record, path in pairs:
        assert record is not None
        assert record.to_dict() == written(path), path.name
    lines = [json.loads(text) for text in old_run.metrics_path.read_text().splitlines()]
    assert [line.to_dict() for line in old_run.metrics()] == lines
    rows = [json.loads(text) for text in old_run.answered_rows_path.read_text().splitlines()]
    assert [row.to_dict() for row in old_run.answered_rows()] == rows


def test_its_provenance_is_in_its_recipe(old_run: Run) -> None:
    made_of = old_run.provenance()
    assert (made_of.dtype, made_of.template, made_of.learned_turns) == ("float32", "model", True)
    assert made_of.versions["luthier"] == "0.1.0"
    assert "\nprovenance:" not in old_run.recipe().to_yaml()
    assert load_recipe(old_run.recipe_path) == old_run.recipe()
    old_run.recipe_path.write_text(
        old_run.recipe_path.read_text().replace("dtype: float32\n  sub", "sub")
    )
    with pytest.raises(UserError, match=r"the provenance in .*recipe\.yaml is damaged"):
        old_run.provenance()


def test_it_is_evaluated_again_from_the_answers_it_kept(
    old_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "Ask", lambda *_, **__: pytest.fail("asked again"))
    before = old_run.evaluation()
    assert before is not None
    after = evaluate_run(old_run, probe=False)
    assert [row.tuned for row in after.samples] == [row.tuned for row in before.samples]
    assert after.supervised_tokens == before.supervised_tokens
    assert list(after.metrics) == list(before.metrics)


def test_its_page_and_its_card(old_run: Run, tmp_path: Path) -> None:
    page = render_report(old_run)
    for part in ("What it forgot", "How training went", "What it took", "luthier 0.1.0"):
        assert part in page
    write_card(old_run, tmp_path, "gguf", {"use": "x", "files": [], "checks": []})
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "with Luthier 0.1.0" in card
    assert "rows: 18 to train on, 6 held out" in card


def test_it_answers_and_is_served(old_run: Run, cli: Cli) -> None:
    assert len(held_out(old_run)) == 6
    assert len(trained_on(old_run)) == 18
    said = cli("generate", old_run.root, "-p", "Repeat 3", "--compare", "--max-new-tokens", "3")
    assert (said.returncode, "tuned:" in said.stdout) == (0, True), said.stderr
    served = Models([f"old={old_run.root}"]).by_name
    assert "old" in served
    gate = cli("gate", old_run.root, "--max", "perplexity=1", "--max-leakage", "1", "--json")
    assert gate.returncode == 1, gate.stderr
    assert [check["passed"] for check in json.loads(gate.stdout)["checks"]] == [False, True]


def test_it_is_merged(old_run: Run, tmp_path: Path) -> None:
    merged = merge([old_run], tmp_path / "merged")
    assert merged.checks[str(old_run.root)].same_top == 1
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        torch.testing.assert_close(
            alone, load_tuned(old_run).tuned(ids).logits, atol=1e-4, rtol=1e-4
        )


def test_training_is_done_or_is_not_gone_on_with(old_run: Run) -> None:
    recipe = old_run.recipe()
    assert fit(recipe, old_run) == old_run.measured()
    old_run.measured_path.unlink()
    with pytest.raises(UserError, match=r"0\.1"):
        fit(recipe, old_run)
    with pytest.raises(UserError, match="has not finished training"):
        load_tuned(old_run)
