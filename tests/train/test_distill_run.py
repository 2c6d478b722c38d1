"""Runs that learn from a teacher."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from families import CHAT_FAMILIES, make_tokenizer, save_tiny
from helpers import Notes, read_metrics

from luthier.errors import UserError
from luthier.objectives.teacher import Lessons
from luthier.recipe import Recipe, parse_recipe
from luthier.run import Run

Make = Callable[..., Recipe]
Train = Callable[..., Run]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another architecture with the same tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("teacher"), "qwen3")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_learns_from_its_teacher(
    method: str, make_recipe: Make, train: Train, teacher: Path
) -> None:
    heard = Notes()
    run = train(
        make_recipe(
            "objective.name=distill", f"objective.teacher={teacher}", f"method.name={method}",
            "objective.alpha=0", "train.max_steps=12", "train.eval_steps=6",
        ),
        heard,
    )  # fmt: skip
    assert run.teacher_path.is_file()
    assert any("is asked once, before the first step" in note for note in heard.notes)
    assert any("the teacher's loss is" in note for note in heard.notes)
    steps = [line for line in read_metrics(run) if "loss" in line]
    assert {"kl", "cross_entropy"} <= steps[0].keys()
    assert steps[0]["loss"] == pytest.approx(steps[0]["kl"], rel=1e-5)
    assert steps[-1]["kl"] < 0.9 * steps[0]["kl"]
    (first, *_) = (line for line in read_metrics(run) if "eval_loss" in line)
    assert first["eval_perplexity"] == pytest.approx(
        2.718281828 ** first["eval_cross_entropy"], rel=1e-3
    )
    assert run.measured().best_eval_perplexity is None


def test_a_lost_file_ends_a_resumed_run(make_recipe: Make, train: Train, teacher: Path) -> None:
    recipe = make_recipe("objective.name=distill", f"objective.teacher={teacher}")
    run = train(recipe)
    run.measured_path.unlink()
    run.teacher_path.unlink()
    with pytest.raises(UserError, match="holds what the teacher finds likely"):
        train(recipe)


def test_a_resumed_run_does_not_need_its_teacher(
    make_recipe: Make, train: Train, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "teacher", "qwen3")
    recipe = make_recipe("objective.name=distill", f"objective.teacher={folder}")
    run = train(recipe)
    before = (run.adapter_path / "adapter_model.safetensors").read_bytes()
    run.measured_path.unlink()
    for file in folder.iterdir():
        file.write_bytes(b"")
    assert (train(recipe).adapter_path / "adapter_model.safetensors").read_bytes() == before
    Lessons(run.teacher_path).check()


def test_a_teacher_with_another_tokenizer_or_template_is_refused(
    make_recipe: Make, train: Train, tmp_path: Path, tiny_model: Path
) -> None:
    other = save_tiny(tmp_path / "other", "llama", "llama3")
    with pytest.raises(UserError, match=r"has another tokenizer than .* have not the same ids"):
        train(make_recipe("objective.name=distill", f"objective.teacher={other}"))
    templated = save_tiny(tmp_path / "templated", "llama")
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = str(tokenizer.chat_template).replace("'\\n'", "'\\n\\n'")
    tokenizer.save_pretrained(templated)
    recipe = make_recipe("objective.name=distill", f"objective.teacher={templated}")
    with pytest.raises(UserError, match=r"as other tokens than .* data\.template"):
        train(recipe)
    assert not (Path(recipe.run.dir) / "run").exists()
    template = tmp_path / "template.jinja"  # what both are to read
    template.write_text(str(make_tokenizer(CHAT_FAMILIES["chatml"]).chat_template))
    train(recipe.changed(data={"template": str(template)}, train={"max_steps": 3}))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "needs a model to learn from: set objective.teacher"),
        (["objective.teacher=t", "objective.beta=1"], "is not a key of the objective distill"),
        (["objective.teacher=t", "data.add_tokens=[<a>]"], "does not know new tokens"),
        (["objective.teacher=t", "objective.alpha=2"], "alpha"),
    ],
)
def test_keys_that_do_not_fit_are_told_of(more: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_recipe("", ["model.source=m", "data.train=d", "objective.name=distill", *more])


def test_a_teacher_is_named_by_its_absolute_path(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(teacher.parent)
    sets = ["model.source=m", "data.train=d", "objective.name=distill"]
    recipe = parse_recipe("", [*sets, f"objective.teacher={teacher.name}"])
    assert recipe.with_absolute_paths().objective.teacher == str(teacher.resolve())
    assert (recipe.objective.top_k, recipe.objective.temperature) == (64, 1)
    assert json.loads(json.dumps(recipe.settings()))["objective"]["alpha"] == 0.1
