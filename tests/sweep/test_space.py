"""What a sweep may vary: as people write it, as the default has it, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from families import save_tiny

from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.records.sweep import Choice, Span
from luthier.sweep.defaults import attention_layers, default_space
from luthier.sweep.space import holds, own_value, parse_space, shown, with_values
from luthier.train.setup import resolve_model

MakeRecipe = Callable[..., Recipe]


def test_texts_and_a_file_say_the_same(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "train.learning_rate: 1e-5..1e-3:log\n"
        "method.lora_r: [4, 16, 64]\n"
        "train.warmup_steps: 0..10\n"
        "method.target_modules: [all-linear, [q_proj, v_proj]]\n"
        "data.packing: [true, false]\n"
    )
    texts = [
        "train.learning_rate=1e-5..1e-3:log",
        "method.lora_r=4,16,64",
        "train.warmup_steps=0..10",
        "method.target_modules=all-linear,[q_proj,v_proj]",
        "data.packing=true,false",
    ]
    recipe = make_recipe()
    space = parse_space(texts, recipe)
    assert space == parse_space([str(file)], recipe)
    assert space == [
        Span(key="train.learning_rate", low=1e-5, high=1e-3, log=True),
        Choice(key="method.lora_r", choices=[4, 16, 64]),
        Span(key="train.warmup_steps", low=0, high=10, whole=True),
        Choice(key="method.target_modules", choices=["all-linear", ["q_proj", "v_proj"]]),
        Choice(key="data.packing", choices=[True, False]),
    ]
    again = [f"{dimension.key}={shown(dimension)}" for dimension in space]
    assert parse_space(again, recipe) == space
    rates = parse_space(["train.learning_rate=1e-4,3e-4"], recipe)
    assert rates == [Choice(key="train.learning_rate", choices=[1e-4, 3e-4])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.learning_rat=1e-5..1e-3", "did you mean 'train.learning_rate'?"),
        ("train.lr=1e-5..1e-3", "train.learning_rate"),
        ("method.lora_r=4", "give two values at least"),
        ("method.lora_r=4,4", "give each value once"),
        ("method.lora_r=64..4", "must rise from its low to its high"),
        ("method.lora_r=1.5..4", "takes whole numbers"),
        ("method.lora_r=0..4", "0 cannot be tried: recipe: 'method.lora_r' is 0"),
        ("train.learning_rate=0..1e-3:log", "must begin above 0"),
        ("train.learning_rate=a..b", "no range of numbers"),
        ("train.optim=adamw_torch,adam", "adam cannot be tried"),
        ("train.warmup_steps=0,5.5", "5.5 cannot be tried"),
        ("train.seed=1,2", "the best of several seeds is luck"),
        ("train.eval_steps=5,10", "how a run is measured"),
        ("method.name=lora,full", "luthier compare --methods"),
        ("data.max_length=64,128", "the same rows and model"),
        ("model.source=a,b", "the same rows and model"),
        ("method.alpha_ratio=0..4:log", "must begin above 0"),
        ("nosuch.yaml", "'nosuch.yaml' is none of them"),
        ("train.learning_rate=[1e-4", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_told(text: str, message: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError) as error:
        parse_space([text], make_recipe())
    assert message in str(error.value)
    assert text.partition("=")[0] in str(error.value)


def test_keys_that_do_not_go_together(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    with pytest.raises(UserError, match="given twice"):
        parse_space(["method.lora_r=4,8", "method.lora_r=16,32"], recipe)
    with pytest.raises(UserError, match="not both"):
        parse_space(["method.alpha_ratio=1,2", "method.lora_alpha=16,32"], recipe)
    file = tmp_path / "space.yaml"
    file.write_text("- method.lora_r\n")
    with pytest.raises(UserError, match="a space is a mapping of keys"):
        parse_space([str(file)], recipe)


def test_alpha_follows_the_rank(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("method.lora_r=8", "method.lora_alpha=24")
    assert own_value(recipe, "method.alpha_ratio") == 3
    changed = with_values(recipe, {"method.alpha_ratio": 2, "method.lora_r": 6})
    assert (changed.method.lora_r, changed.method.lora_alpha) == (6, 12)
    assert with_values(recipe, {"method.alpha_ratio": 0.5}).method.lora_alpha == 4


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_default_space_holds_the_recipe_as_it_is(method: str, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        f"method.name={method}", "train.max_steps=-1", "train.num_train_epochs=3"
    ).changed(train={"learning_rate": None})
    space = default_space(recipe, resolve_model(recipe))
    keys = [dimension.key for dimension in space]
    assert keys[0] == "train.learning_rate"
    assert keys[-2:] == ["train.num_train_epochs", "train.warmup_ratio"]
    adapted = ["method.lora_r", "method.alpha_ratio", "method.target_modules"]
    assert keys[1:-2] == (["train.weight_decay"] if method == "full" else adapted)
    for dimension in space:
        assert holds(dimension, own_value(recipe, dimension.key)), dimension
    published = {"lora": 3e-4, "qlora": 2e-4, "full": 2e-5}[method]
    rate = space[0]
    assert isinstance(rate, Span)
    assert rate.log
    assert (rate.low * rate.high) ** 0.5 == pytest.approx(published, rel=1e-2)
    # What it says can be written down and read again.
    assert parse_space([f"{d.key}={shown(d)}" for d in space], recipe) == space


def test_what_the_recipe_settles_otherwise_is_not_varied(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        "train.max_steps=6", "train.warmup_steps=1", "method.target_modules=[q_proj]"
    )
    keys = [dimension.key for dimension in default_space(recipe, resolve_model(recipe))]
    assert keys == ["train.learning_rate", "method.lora_r", "method.alpha_ratio"]


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("llama", ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ("phi3", ["o_proj", "qkv_proj"]),
        ("gpt2", []),  # it calls a layer of its attention as one of its MLP
    ],
)
def test_attention_is_found_in_families(
    family: str, layers: list[str], make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(f"model.source={save_tiny(tmp_path / family, family)}")
    assert attention_layers(recipe, resolve_model(recipe)) == layers
