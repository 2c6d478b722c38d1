"""The door: what a program gets by `import luthier`."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Notes

import luthier
from luthier import api
from luthier.events import Checkpoint, Evaluation, Finished, Started, Step
from luthier.recipe import Recipe
from luthier.run import Run

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, rows: list[dict[str, str]]
) -> Run:
    """A finished run, made through the door from a mapping with changes."""
    folder = tmp_path_factory.mktemp("door")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return luthier.train(
        {
            "model": {"source": str(tiny_model), "dtype": "float32"},
            "data": {"train": str(data), "max_length": 128},
            "train": {"max_steps": 60, "learning_rate": 1e-2},
            "evaluate": {"probe": False, "max_rows": 4, "max_new_tokens": 8},
        },
        train={"max_steps": 4, "eval_steps": 2},
        run={"dir": str(folder / "runs"), "name": "first"},
    )


def test_importing_loads_no_library_and_the_names_load_only_what_they_need() -> None:
    heavy = ("torch", "transformers", "peft", "rich", "fastapi", "pyarrow")
    script = (
        "import sys, luthier\n"
        "light = [m for m in sys.modules if m.split('.')[0] in heavy]\n"
        "luthier.Recipe, luthier.UserError, luthier.train, dir(luthier)\n"
        "from luthier import *\n"
        "print(light, [m for m in sys.modules if m.split('.')[0] in heavy])"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"heavy = {heavy!r}\n{script}"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[] []", done.stdout + done.stderr


def test_every_name_is_there_and_an_unknown_one_is_an_error() -> None:
    for name in luthier.__all__:
        assert getattr(luthier, name) is not None
    assert set(luthier.__all__) == set(dir(luthier))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        luthier.trian  # noqa: B018


def test_functions_stay_functions_though_packages_have_their_names() -> None:
    import luthier.train.loop

    for name in ("train", "evaluate", "plan", "compare", "advise", "generate", "export"):
        assert callable(getattr(luthier, name)), name
        assert getattr(luthier, name).__module__ == "luthier.api"


def test_the_parts_that_type_checkers_see_are_those_that_run() -> None:
    tree = ast.parse(Path(api.__file__).read_text())
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    told = {
        alias.asname: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == api._PARTS
    for name in api._PARTS:
        if name not in ("Approach", "Combination", "GgufType", "Goal", "Onto", "Shape"):
            assert getattr(api, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        api.nothing  # noqa: B018


def test_a_run_tells_all_that_happens_in_order(make_recipe: MakeRecipe) -> None:
    heard = Notes()
    run = luthier.train(make_recipe("train.max_steps=3"), on_event=heard)
    kinds = [
        type(e)
        for e in heard.events
        if isinstance(e, Started | Step | Evaluation | Checkpoint | Finished)
    ]
    assert kinds == [Started, Step, Step, Step, Evaluation, Checkpoint, Finished]
    assert [str(line.step) for line in run.metrics()] == ["1", "2", "3", "3"]
    stored = [json.loads(line) for line in run.events_path.read_text().splitlines()]
    assert [e["event"] for e in stored if e["event"] != "note"] == [
        "started", "step", "step", "step", "evaluation", "checkpoint", "finished",
    ]  # fmt: skip
    assert all(e["time"] for e in stored)
    text = run.log_path.read_text()
    assert "54 training rows" in text
    assert "checkpoint of step 3" in text


def test_recipes_are_mappings_files_or_objects(run: Run, tmp_path: Path) -> None:
    again = luthier.train(run.recipe(), run={"dir": str(run.root.parent), "name": "first"})
    assert again == run
    file = tmp_path / "my.yaml"
    file.write_text(run.recipe().to_yaml())
    recipe = luthier.as_recipe(file, method={"lora_r": 4})
    assert (recipe.method.lora_r, recipe.train.max_steps) == (4, 4)
    assert luthier.plan(file).plans[0].method == "lora"


def test_mistakes_are_user_errors(run: Run, tmp_path: Path) -> None:
    with pytest.raises(luthier.UserError, match=r"did you mean 'train\.max_steps'"):
        luthier.train(run.recipe(), train={"max_step": 3})
    with pytest.raises(luthier.UserError, match="no run folder at"):
        luthier.evaluate(tmp_path / "nowhere")
    with pytest.raises(luthier.UserError, match="no sampling option 'temprature'"):
        luthier.generate(run, ["hello"], temprature=1)
    with pytest.raises(luthier.UserError, match="by its memory, not both"):
        luthier.plan(run.recipe(), gpu="rtx-4090", memory=24)


def test_results_are_typed_and_print_as_tables(run: Run) -> None:
    evaluation = luthier.evaluate(run)
    assert evaluation == run.evaluation()
    assert run.report_path.is_file()
    assert (
        f"rows  {evaluation.rows}" in " ".join(str(evaluation).split("\n")).replace("   ", " ")
        or evaluation.rows
    )
    for result in (evaluation, run.measured(), luthier.plan(run.recipe())):
        assert str(result).count("\n") > 3
        assert result._repr_html_().startswith("<table>")
    assert "best_eval_loss" in run._repr_html_()
    checked = luthier.check_data(run.recipe().train_files)
    assert checked.rows["read"] == 60
    assert checked.verdict == checked.findings[0].severity == "error"  # sixty rows are too few
    assert [finding.severity for finding in checked.errors] == ["error"]


def test_generating_again_with_a_loaded_model(run: Run) -> None:
    models = luthier.load(run)
    prompts = ["Repeat the number 3, please", "Repeat the number 4, please"]
    answers = luthier.generate(models, prompts, max_new_tokens=6)
    assert answers == luthier.generate(str(run.root), prompts, max_new_tokens=6)
    assert len(answers) == 2
    base = luthier.generate(models, prompts, base=True, max_new_tokens=6)
    assert base == luthier.generate(luthier.load(run, adapter_scale=0.0), prompts, max_new_tokens=6)


def test_merged_and_exported(run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    merged = luthier.merge(run, tmp_path / "merged", check_rows=2)
    AutoModelForCausalLM.from_pretrained(merged.folder)
    exported = luthier.export(run, "safetensors", tmp_path / "exported", check_rows=0)
    assert exported.shape == "safetensors"
    assert (Path(exported.folder) / "README.md").is_file()


def test_advice_is_a_decision_or_the_question_that_is_open() -> None:
    question = luthier.advise()
    assert question.text.endswith("?")
    decision: Any = luthier.advise(metric=False)
    assert decision.outcome == "prepare"
    with pytest.raises(luthier.UserError):
        luthier.advise(metric="perhaps")


def test_compared(run: Run, tmp_path: Path) -> None:
    found = luthier.compare(
        run.recipe(), vary={"method.lora_r": [2, 4]}, out=tmp_path / "c", train={"max_steps": 2}
    )
    assert [variant["name"] for variant in found.variants] == ["lora_r=2", "lora_r=4"]
    assert (tmp_path / "c" / "comparison.html").is_file()
