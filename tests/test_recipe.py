from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.recipe import (
    KernelsGroup,
    TrainGroup,
    as_recipe,
    known_keys,
    load_recipe,
    model_recipe,
    parse_overrides,
    parse_recipe,
)
from luthier.recipe.elsewhere import counterpart, foreign_names

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


@pytest.mark.parametrize(
    ("objective", "method", "rate", "keys"),
    [
        ("dpo", "full", 1e-6, {"beta": 0.1}),
        ("ipo", "qlora", 1e-5, {"beta": 0.1}),
        ("kto", "lora", 1e-5, {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
        ("simpo", "lora", 1e-5, {"beta": 0.1, "simpo_gamma": 0.5}),
        ("reward", "lora", 1e-4, {"beta": None, "center_rewards_coefficient": None}),
        ("sft", "lora", 3e-4, {"beta": None}),
    ],
)
def test_each_objective_has_trls_defaults(
    objective: str, method: str, rate: float, keys: dict[str, float | None]
) -> None:
    made = parse_recipe(
        "",
        ["model.source=m", "data.train=d", f"objective.name={objective}", f"method.name={method}"],
    )
    assert made.train.learning_rate == rate
    assert {key: getattr(made.objective, key) for key in keys} == keys
    assert made.method.lora_dropout == (0.05 if objective == "sft" else 0)
    again = parse_recipe(made.to_yaml(), [])
    assert again.settings() == made.settings()
    # What was not set follows the objective.
    other = made.changed(objective={"name": "simpo"})
    assert (other.objective.simpo_gamma, other.objective.desirable_weight) == (0.5, None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["objective.beta=0.2"], "objective.beta is not a key of the objective sft"),
        (["objective.name=dpo", "objective.simpo_gamma=1"], "it belongs to simpo"),
        (["objective.name=dpo", "data.train_on=all"], "compares answers"),
        (["objective.name=dpo", "data.replay={source: r}"], "for the objective sft"),
        (
            ["objective.name=dpo", "objective.precompute_ref_log_probs=false", "method.name=full"],
            "needs an adapter",
        ),
        (["objective.name=reward", "train.stop_on_forgetting=0.1"], "cannot answer"),
        (["model.adapter=runs/a", "method.name=full"], "luthier merge"),
        (["model.adapter=runs/a", "method.init_lora_weights=pissa"], "for a new adapter"),
    ],
)
def test_what_does_not_fit_an_objective_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_recipe("", ["model.source=m", "data.train=d", *settings])


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
        ("data.columns={promt: q}", "no format has a field 'promt'; fields are instruction, input"),
        ("data.columns={prompt: q, completion: q}", "cannot be read from one column"),
        ("evaluate.metrics=[sql_execution]", "needs evaluate.sql_databases"),
        ("train.warmup_steps=0.03", "a share of all steps is train.warmup_ratio=0.03"),
        ("train.warmup_steps=-1", "'train.warmup_steps' is -1"),
        ("train.lr_scheduler_type=reduce_lr_on_plateau", "'train.lr_scheduler_type' is"),
        ("train.lr_scheduler_kwargs={cycles: 2}", "'cycles', but the schedule cosine takes num"),
        ("train.lr_scheduler_kwargs={num_cycles: two}", "is 'two' and must be a number above 0"),
        ("train.lr_scheduler_kwargs={num_cycles: .inf}", "is inf and must be a number above 0"),
        ("train.lr_scheduler_type=cosine_with_min_lr", "needs one of 'min_lr'"),
        ("train.lr_scheduler_type=warmup_stable_decay", "needs 'num_decay_steps'"),
        ("train.report_to=wanbd", "did you mean 'wandb'"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(LEAST, [override])
    assert said in str(error.value)


# Names of other tools, typed where their users type them, and ours for each.
ELSEWHERE = {
    "max_seq_length": "data.max_length",
    "cutoff_len": "data.max_length",
    "sequence_len": "data.max_length",
    "batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "num_epochs": "train.num_train_epochs",
    "epochs": "train.num_train_epochs",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler_type",
    "optimizer": "train.optim",
    "model_name_or_path": "model.source",
    "base_model": "model.source",
    "dataset": "data.train",
    "datasets": "data.train",
    "val_set_size": "data.validation_fraction",
    "sample_packing": "data.packing",
    "lora_rank": "method.lora_r",
    "r": "method.lora_r",
    "lora_target": "method.target_modules",
    "lora_target_linear": "method.target_modules: all-linear",
    "load_in_4bit": "method.name: qlora",
    "bf16": "model.dtype: bfloat16",
    "output_dir": "run.dir",
    "evaluation_strategy": "train.eval_steps",
    "train_on_inputs": "data.train_on: all",
    "deepspeed": "has no counterpart: DeepSpeed is not used",
    "sequence_parallel": "has no counterpart: processes share the rows of a step",
    "push_to_hub": "has no counterpart: training uploads nothing",
}


@pytest.mark.parametrize("group", ["train", "data", "method", "model", ""])
@pytest.mark.parametrize(("name", "ours"), ELSEWHERE.items())
def test_a_name_of_another_tool_points_to_ours(name: str, ours: str, group: str) -> None:
    where = f"{group}.{name}".strip(".")
    least: dict[str, Any] = {"model": {"source": "m"}, "data": {"train": "t"}}
    tree = {**least, group: {**least.get(group, {}), name: 1}} if group else {**least, name: 1}
    with pytest.raises(UserError) as error:
        as_recipe(tree)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"recipe: unknown key '{where}'; {name}")
    assert ours in line
    wanted = f"'{ours}' here" if "counterpart" not in ours else ours
    assert line.endswith(wanted) or "counterpart" in ours


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate: 1e-4", "; write it under train:, as 'train.learning_rate'"),
        ("lora_alpha: 16", "; write it under method:, as 'method.lora_alpha'"),
        ("max_rows: 3", "; did you mean 'data.max_rows' or 'evaluate.max_rows'?"),
        ("train: {max_seq_lenght: 3}", "; did you mean 'data.max_length'?"),
        ("train: {frobnicate: 3}", "; groups are model, "),
        (
            "method: {train_moduli: x}",
            "; did you mean 'method.train_modules'?",
        ),  # not train_files of others
        (
            "model: owner/name",
            "'model' is a group of keys, so it takes a mapping, not 'owner/name'",
        ),
    ],
)
def test_a_key_at_the_wrong_place_is_sent_to_its_own(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(text if text.startswith("model") else LEAST + text)
    assert said in str(error.value)


def test_set_without_a_group_says_where_the_key_is() -> None:
    with pytest.raises(UserError, match=r"write it under train:, as 'train\.learning_rate'"):
        parse_recipe(LEAST, ["learning_rate=1e-4"])


def test_names_of_others_lead_to_keys_that_exist() -> None:
    keys = set(known_keys())
    for name in foreign_names():
        meant = counterpart(name)
        assert meant is not None
        assert (meant.key is None) != (meant.why is None)
        assert meant.key is None or meant.key in keys


def test_steps_of_warmup_go_before_the_share() -> None:
    recipe = parse_recipe(LEAST, ["train.warmup_steps=10"])
    assert (recipe.train.warmup_of(1000), recipe.train.warmup_ratio) == (10, None)
    assert parse_recipe(recipe.to_yaml()) == recipe
    assert parse_recipe(LEAST).train.warmup_of(1000) == 100
    back = recipe.changed(train={"warmup_steps": None})
    assert back.train.warmup_of(1000) == 100
    share = ["train.warmup_ratio=0.03"]
    with pytest.raises(UserError, match=r"warmup_steps and train\.warmup_ratio are both set"):
        parse_recipe(LEAST, ["train.warmup_steps=10", *share])
    with pytest.raises(UserError, match="both set"):
        parse_recipe(LEAST, share).changed(train={"warmup_steps": 10})
    other = parse_recipe(LEAST, share).changed(train={"warmup_steps": 10, "warmup_ratio": None})
    assert other == recipe
    with pytest.raises(UserError, match="constant has no warm-up"):
        parse_recipe(LEAST, ["train.warmup_steps=10", "train.lr_scheduler_type=constant"])


def test_yaml_leaves_numbers_of_a_schedule_as_text() -> None:
    sets = [
        "train.lr_scheduler_type=cosine_with_min_lr",
        "train.lr_scheduler_kwargs={min_lr: 1e-5}",
    ]
    assert parse_recipe(LEAST, sets).train.lr_scheduler_kwargs == {"min_lr": 1e-5}
    with pytest.raises(UserError, match=r"must be below train\.learning_rate"):
        parse_recipe(LEAST, [*sets, "train.learning_rate=1e-6"])


@pytest.mark.parametrize(
    ("given", "kept"),
    [("none", []), ("[none]", []), ("wandb", ["wandb"]), ("[wandb, wandb]", ["wandb"])],
)
def test_report_to_takes_a_bare_name_and_none(given: str, kept: list[str]) -> None:
    assert parse_recipe(LEAST, [f"train.report_to={given}"]).train.report_to == kept


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
        ("model: {source: a}\nmodel: {source: b}", "appears twice"),
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


def test_what_was_never_set_follows_the_method() -> None:
    recipe = parse_recipe(LEAST, ["train.weight_decay=0.3", "train.optim=null"])
    qlora = recipe.changed(method={"name": "qlora"})
    assert qlora == parse_recipe(LEAST, ["train.weight_decay=0.3", "method.name=qlora"])
    assert (qlora.train.learning_rate, qlora.train.weight_decay) == (2e-4, 0.3)
    assert qlora.train.optim == "paged_adamw_8bit"
    back = qlora.changed(method={"name": "full"}, train={"weight_decay": None})
    assert (back.train.learning_rate, back.train.weight_decay) == (2e-5, 0.01)
    assert recipe.method.name == "lora"  # each is a new recipe


def test_a_change_says_the_same_as_a_string() -> None:
    recipe = parse_recipe(LEAST, ["data.replay={source: g.jsonl}", "run.name=first"])
    changed = recipe.changed(
        train={"max_steps": 3}, method={"target_modules": ["q_proj"]}, data={"replay": None}
    )
    sets = ["train.max_steps=3", "method.target_modules=[q_proj]", "run.name=first"]
    assert changed == parse_recipe(LEAST, sets)
    assert recipe.data.replay is not None
    assert recipe.changed(train={"seed": 1}).data.replay == recipe.data.replay


def test_what_was_set_by_assignment_stays() -> None:
    recipe = parse_recipe(LEAST)
    recipe.kernels.norm, recipe.train.learning_rate = False, 0.5
    changed = recipe.changed(method={"name": "full"})
    assert (changed.kernels.norm, changed.train.learning_rate) == (False, 0.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"learning_rat": 1}}, "did you mean 'train.learning_rate'"),
        ({"trian": {"seed": 1}}, "did you mean 'train"),
        ({"train": {"seed": -1}}, "'train.seed' is -1"),
        ({"train": 3}, "'train' is a group of keys"),
        ({"evaluate": {"metrics": ["bleus"]}}, "did you mean 'bleu'"),
        ({"train": {"optim": "adamw_bf16"}}, "is for method.name full"),
        ({"evaluate": {"judge_url": "https://me:hunter2@host/v1"}}, "'evaluate.judge_url' holds"),
        ({"self": {"x": 1}}, "unknown key 'self'"),
    ],
)
def test_a_wrong_change_is_told_as_in_a_file(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(LEAST).changed(**changes)
    assert said in str(error.value)
    with pytest.raises(UserError) as error:
        as_recipe({"model": {"source": "m"}, "data": {"train": "t"}}, **changes)
    assert said in str(error.value)


def test_a_program_names_a_recipe_in_four_ways(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: {source: m}\ntrain:\nrun: {name: x}\n")
    groups = {"model": {"source": "m"}, "train": TrainGroup(seed=5), "kernels": KernelsGroup()}
    wanted = parse_recipe(LEAST, ["train.max_steps=3"])
    # The file lacks its data, which the changes bring.
    changes: dict[str, Any] = {"data": {"train": "t.jsonl"}, "train": {"max_steps": 3}}
    for given in (path, str(path), {"model": {"source": "m"}}, wanted):
        assert as_recipe(given, **changes).differences(wanted) == []
    assert as_recipe(wanted) is wanted
    assert as_recipe(path, **changes).run.name == "x"
    assert as_recipe(groups, data={"train": "t"}).train.seed == 5
    with pytest.raises(UserError, match=r"r\.yaml: 'data' is missing"):
        as_recipe(path)
    with pytest.raises(UserError, match="no recipe at nowhere"):
        as_recipe("nowhere")


def test_a_recipe_for_a_model_alone() -> None:
    recipe = model_recipe("007", model={"dtype": "float16"}, method={"name": "full"})
    assert (recipe.model.source, recipe.model.dtype, recipe.train_files) == ("007", "float16", [])
    assert recipe.train.learning_rate == 2e-5


def test_overrides_are_changes_by_group() -> None:
    sets = ["train.seed=1", "data.train=[a, b]", "train.seed=2", "run.name='007'"]
    assert parse_overrides(sets) == {
        "train": {"seed": 2},
        "data": {"train": ["a", "b"]},
        "run": {"name": "007"},
    }


def test_the_shipped_recipe_of_pairs_is_valid() -> None:
    assert load_recipe(ROOT / "recipes" / "dpo.yaml").objective.learns_from == "pairs"


@pytest.mark.parametrize("name", ["full", "lora", "qlora"])
def test_the_shipped_recipes_are_valid_and_of_their_method(name: str) -> None:
    assert load_recipe(ROOT / "recipes" / f"{name}.yaml").method.name == name
