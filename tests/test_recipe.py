from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.recipe import load_recipe, parse_recipe

LEAST = "model: {source: m}\ndata: {train: t.jsonl}\n"
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("method", "rate", "decay", "optim"),
    [
        ("full", 2e-5, 0.01, "adamw_torch_fused"),
        ("lora", 3e-4, 0.0, "adamw_torch_fused"),
        ("qlora", 2e-4, 0.0, "paged_adamw_8bit"),
    ],
)
def test_each_method_has_its_published_defaults(
    method: str, rate: float, decay: float, optim: str
) -> None:
    train = parse_recipe(LEAST + f"method: {{name: {method}}}").train
    assert (train.learning_rate, train.weight_decay, train.optim) == (rate, decay, optim)


def test_what_the_user_sets_beats_the_method() -> None:
    recipe = parse_recipe(LEAST, ["train.learning_rate=1e-4", "method.lora_r=64"])
    assert recipe.train.learning_rate == 1e-4
    assert recipe.method.lora_r == 64


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.learning_rat=1", "did you mean 'train.learning_rate'"),
        ("train.lora_r=8", "did you mean 'method.lora_r'"),
        ("trian.seed=1", "did you mean 'train"),
        ("train.seed=-1", "'train.seed' is -1"),
        ("train.learning_rate=abc", "'train.learning_rate' is 'abc'"),
        ("train.optim=adam", "'train.optim' is 'adam'"),
        ("train.seed", "--set takes group.key=value"),
        ("run.name=a/b", "plain folder name"),
        ("data.validation_fraction=1", "less than 1"),
        ("evaluate.metrics=[sql_execution]", "needs evaluate.sql_databases"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(LEAST, [override])
    assert said in str(error.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        parse_recipe("model: {}\ntrain: {sed: 1}")
    text = str(error.value)
    assert "'model.source' is missing" in text
    assert "'data' is missing" in text
    assert "'train.seed'" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {source: m", "line"),
        ("- a\n- b", "mapping"),
        ("model: {source: a}\nmodel: {source: b}", "stands twice"),
        ("model: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_not_a_recipe_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_recipe(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe at .*none\.yaml"):
        load_recipe(tmp_path / "none.yaml")


def test_yaml_round_trip_keeps_everything() -> None:
    recipe = parse_recipe(LEAST, ["train.warmup_ratio=0.03", "data.train=[a.csv, b.json]"])
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_early_stopping_needs_validation_rows() -> None:
    with pytest.raises(UserError, match="needs a validation set"):
        parse_recipe(LEAST, ["train.early_stopping_patience=2", "data.validation_fraction=0"])


def test_differences_name_key_and_both_values() -> None:
    mine, theirs = parse_recipe(LEAST), parse_recipe(LEAST, ["train.seed=1", "run.name=x"])
    assert mine.differences(theirs) == ["train.seed: 42 -> 1"]


def test_the_default_name_depends_on_the_settings_alone() -> None:
    first = parse_recipe(LEAST).default_name("lora")
    assert first == parse_recipe(LEAST, ["run.dir=elsewhere"]).default_name("lora")
    assert first != parse_recipe(LEAST, ["train.seed=1"]).default_name("lora")


@pytest.mark.parametrize("name", ["full", "lora", "qlora"])
def test_the_shipped_recipes_are_valid_and_of_their_method(name: str) -> None:
    assert load_recipe(ROOT / "recipes" / f"{name}.yaml").method.name == name
