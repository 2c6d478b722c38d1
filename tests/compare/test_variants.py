"""The grid of variants, before anything trains."""

from pathlib import Path

import pytest

from luthier.compare.variants import Variant, make_variants, parse_vary
from luthier.errors import UserError
from luthier.recipe import load_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {source: smollm2-135m}\ndata: {train: a.jsonl, validation: v.jsonl}\n"
        "train: {learning_rate: 9.0e-4, max_grad_norm: 0.5}\n"
    )
    return path


def make(recipe: Path, *sets: str, methods: str = "", seeds: int = 1, **vary: str) -> list[Variant]:
    grid = parse_vary([f"{key.replace('__', '.')}={values}" for key, values in vary.items()])
    chosen = methods.split(",") if methods else []
    return make_variants(load_recipe(recipe, sets), chosen, grid, seeds, recipe.parent / "runs")


def test_each_method_gets_the_same_multiple_of_its_own_rate(recipe: Path) -> None:
    full, lora, qlora = make(recipe, methods="full,lora,qlora")
    assert [v.name for v in (full, lora, qlora)] == ["full", "lora", "qlora"]
    assert [v.recipe.run.name for v in (full, lora, qlora)] == ["full", "lora", "qlora"]
    # The recipe's 9e-4 is three times LoRA's usual 3e-4; full's is 2e-5, QLoRA's 2e-4.
    rates = [v.recipe.train.learning_rate for v in (full, lora, qlora)]
    assert rates == pytest.approx([6e-5, 9e-4, 6e-4])
    assert [v.recipe.train.weight_decay for v in (full, lora, qlora)] == [0.01, 0.0, 0.0]
    assert qlora.recipe.train.optim == "paged_adamw_8bit"
    assert {v.recipe.train.max_grad_norm for v in (full, lora, qlora)} == {0.5}


def test_what_the_recipe_says_of_the_optimiser_stays(recipe: Path) -> None:
    full, _ = make(recipe, "train.optim=sgd", methods="full,lora")
    assert full.recipe.train.optim == "sgd"


def test_every_combination_with_its_name(recipe: Path) -> None:
    variants = make(
        recipe,
        methods="lora,qlora",
        method__lora_r="4,16",
        method__target_modules="[q_proj, v_proj],all-linear",
    )
    assert len(variants) == 8
    assert variants[0].name == "lora lora_r=4 target_modules=q_proj+v_proj"
    assert variants[0].recipe.run.name == "lora-lora_r-4-target_modules-q_proj+v_proj"
    assert variants[0].recipe.method.target_modules == ["q_proj", "v_proj"]
    assert variants[-1].changes == {
        "method.name": "qlora",
        "method.lora_r": 16,
        "method.target_modules": "all-linear",
    }


def test_a_varied_rate_is_taken_as_it_stands(recipe: Path) -> None:
    variants = make(recipe, methods="full,lora", train__learning_rate="1e-4,2.0e-3")
    assert [v.recipe.train.learning_rate for v in variants] == [1e-4, 2e-3] * 2


def test_seeds_are_repetitions(recipe: Path) -> None:
    variants = make(recipe, "train.seed=7", methods="full,lora", seeds=2)
    assert [(v.name, v.seed, v.recipe.run.name) for v in variants] == [
        ("full", 7, "full-seed7"),
        ("full", 8, "full-seed8"),
        ("lora", 7, "lora-seed7"),
        ("lora", 8, "lora-seed8"),
    ]
    assert [v.recipe.train.seed for v in variants] == [7, 8, 7, 8]


def test_wrong_grids_say_what_is_wrong(recipe: Path) -> None:
    with pytest.raises(UserError, match="there is only one variant"):
        make(recipe, methods="lora")
    with pytest.raises(UserError, match="there is no method 'dora'"):
        make(recipe, methods="lora,dora")
    with pytest.raises(UserError, match=r"did you mean 'method\.lora_r'"):
        make(recipe, method__lora_rr="4,8")
    with pytest.raises(UserError, match="give each value"):
        make(recipe, method__lora_r="4,4")
    text = recipe.read_text().replace(", validation: v.jsonl", "")
    recipe.write_text(text)
    with pytest.raises(UserError, match=r"set data\.validation to a file"):
        make(recipe, methods="full,lora", seeds=2)


@pytest.mark.parametrize("text", ["method.lora_r", "lora_r=4", "method.lora_r=", "a.b=[4"])
def test_what_is_no_vary_option(text: str) -> None:
    with pytest.raises(UserError, match="--vary takes"):
        parse_vary([text])


def test_methods_and_seeds_have_options_of_their_own() -> None:
    with pytest.raises(UserError, match="--methods"):
        parse_vary(["method.name=full,lora"])
    with pytest.raises(UserError, match="--seeds"):
        parse_vary(["train.seed=1,2"])
