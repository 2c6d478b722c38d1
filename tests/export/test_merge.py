"""Merged equals base and adapter, for every method, in bounded memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import save_tiny
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import UserError
from luthier.export import weights as weights_module
from luthier.export.merge import MergeOptions, merge
from luthier.models.tuned import load_tuned
from luthier.recipe import Recipe
from luthier.run import Run

EXACT = MergeOptions(dtype=torch.float32)


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(torch.arange(40)[None]).logits
    return output


def merged_model(folder: Path) -> torch.nn.Module:
    """As somebody without us loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


@pytest.mark.parametrize(
    "overrides",
    [
        ("method.name=lora",),
        ("method.name=lora", "method.use_rslora=true", "method.lora_r=4"),
        ("method.name=lora", "method.use_dora=true"),
        ("method.name=lora", "method.target_modules=[q_proj, down_proj]"),
        ("method.name=qlora", "train.optim=adamw_torch"),
        ("method.name=qlora", "train.optim=adamw_torch", "method.use_dora=true"),
        ("method.name=qlora", "train.optim=adamw_torch", "method.bnb_4bit_quant_type=fp4"),
        (
            "method.name=qlora",
            "train.optim=adamw_torch",
            "method.bnb_4bit_use_double_quant=false",
        ),
        ("method.name=lora", "model.dtype=bfloat16"),
        ("method.name=full",),
    ],
    ids=lambda overrides: "-".join(o.split(".")[1] for o in overrides),
)
def test_merged_equals_base_and_adapter(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tmp_path: Path,
    overrides: tuple[str, ...],
) -> None:
    run = train(make_recipe(*overrides))
    merged = merge([run], tmp_path / "merged", EXACT)
    check = merged.checks[str(run.root)]
    assert check.arithmetic == "float32"
    assert check.logits_max < 2e-5
    assert check.loss_after == pytest.approx(check.loss_before, abs=1e-6)
    assert check.same_top == 1
    assert (merged.layers > 0) == ("method.name=full" not in overrides)
    # And it is not the base.
    models = load_tuned(run)
    if "model.dtype=bfloat16" not in overrides:
        after = logits(merged_model(tmp_path / "merged"))
        assert torch.allclose(after, logits(models.tuned), atol=2e-5)
        with models.as_base() as base:
            assert (after - logits(base)).abs().max() > 1e-3


def test_the_4_bit_weights_merged_onto_are_those_that_were_loaded(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    """Bit for bit: with an adapter that does nothing, each layer is the dequantised one."""
    from luthier.kernels.nf4 import is_4bit, plain_weight
    from luthier.models.tuned import load_base

    recipe = make_recipe("method.name=qlora", "train.optim=adamw_torch", "model.dtype=bfloat16")
    run = train(recipe)
    silence_adapter(run)
    merge([run], tmp_path / "merged", EXACT)
    written = merged_model(tmp_path / "merged")
    layers = {n: m for n, m in load_base(run).named_modules() if is_4bit(m)}
    assert len(layers) == 14
    for name, layer in layers.items():
        expected = plain_weight(layer, torch.float32)
        assert torch.equal(written.get_submodule(name).weight, expected), name


def test_the_original_base_costs_what_is_said(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    run = train(make_recipe("method.name=qlora", "train.optim=adamw_torch"))
    options = MergeOptions(dtype=torch.float32, onto="original")
    check = merge([run], tmp_path / "merged", options).checks[str(run.root)]
    assert check.logits_max > 1e-2  # the weights the adapter never saw
    assert check.loss_after != pytest.approx(check.loss_before, abs=1e-5)


def test_shards_bound_the_memory_and_load_as_one(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = train(make_recipe())
    whole = merge([run], tmp_path / "whole", EXACT)
    held: list[int] = []
    read: list[str] = []
    save, get = weights_module.save_file, weights_module.Weights.__getitem__

    def saving(shard: dict[str, Tensor], *args: object, **kwargs: object) -> None:
        held.append(sum(t.numel() * t.element_size() for t in shard.values()))
        save(shard, *args, **kwargs)  # type: ignore[arg-type]

    def getting(self: weights_module.Weights, name: str) -> Tensor:
        read.append(name)
        return get(self, name)

    monkeypatch.setattr(weights_module, "save_file", saving)
    monkeypatch.setattr(weights_module.Weights, "__getitem__", getting)
    options = MergeOptions(dtype=torch.float32, max_shard_bytes=100_000)
    merged = merge([run], tmp_path / "shards", options)
    largest = 640 * 64 * 4  # the embedding
    assert merged.files == len(held) > 4
    assert max(held) <= max(100_000, largest)
    assert sum(held) == merged.bytes == whole.bytes
    assert len(read) == len(set(read))  # each tensor once
    assert torch.equal(
        logits(merged_model(tmp_path / "shards")), logits(merged_model(tmp_path / "whole"))
    )


def test_the_folder_stands_alone(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    run = train(make_recipe("data.template=alpaca"))
    merge([run], tmp_path / "merged", MergeOptions(dtype=torch.bfloat16))
    assert not list(tmp_path.glob(".*.tmp"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    turn = [{"role": "user", "content": "x"}]
    assert "### Instruction:" in tokenizer.apply_chat_template(turn, tokenize=False)
    model = merged_model(tmp_path / "merged")
    assert next(model.parameters()).dtype == torch.bfloat16
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id  # type: ignore[union-attr]
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert not {name for name in names if "adapter" in name}


def test_tied_ends_stay_tied_until_an_adapter_changes_one(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    run = train(make_recipe())
    merge([run], tmp_path / "tied", EXACT)
    assert stored(tmp_path / "tied").isdisjoint({"lm_head.weight"})
    for target in ("lm_head", "embed_tokens"):
        run = train(make_recipe(f"method.target_modules=[q_proj, {target}]", f"run.name={target}"))
        merged = merge([run], tmp_path / target, EXACT)
        assert merged.untied and "lm_head.weight" in stored(tmp_path / target)
        assert merged.checks[str(run.root)].logits_max < 2e-5
        ends = merged_model(tmp_path / target)
        gap = ends.lm_head.weight - ends.model.embed_tokens.weight  # type: ignore[union-attr]
        assert gap.abs().max() > 1e-4


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "phi3", "gpt2"])
def test_other_architectures(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path, family: str
) -> None:
    source = save_tiny(tmp_path / family, family)
    if family == "gpt2":  # as it lies on the hub: without the prefix
        strip_prefix(source, "transformer.")
    run = train(make_recipe(f"model.source={source}"))
    check = merge([run], tmp_path / "merged", EXACT).checks[str(run.root)]
    assert check.logits_max < 2e-5


def test_files_that_lack_a_weight_are_refused_with_a_way_out(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    source = save_tiny(tmp_path / "mixtral", "mixtral")
    run = train(make_recipe(f"model.source={source}", "method.lora_dropout=0"))
    held = tensors(source)
    del held["model.layers.0.block_sparse_moe.experts.2.w1.weight"]
    save_file(held, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="merge_and_unload"):
        merge([run], tmp_path / "merged", EXACT)
    assert not (tmp_path / "merged").exists()


def test_weighted_sums_of_adapters(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """`cat` is the exact sum, also with rank-stabilised scales, where PEFT alone is off by √r."""
    runs = [
        train(make_recipe("method.use_rslora=true", "method.lora_r=4", "run.name=a")),
        train(make_recipe("method.use_rslora=true", "run.name=b", "train.seed=7")),
    ]
    parts = [merged_weights(run, tmp_path / run.root.name) for run in runs]
    options = MergeOptions(dtype=torch.float32, weights=(0.7, -0.3), combination="cat")
    merged = merge(runs, tmp_path / "both", options)
    assert set(merged.checks) == {str(run.root) for run in runs}
    assert all(check.logits_max < 2e-5 for check in merged.checks.values())
    base = tensors(tiny_model)
    for name, tensor in tensors(tmp_path / "both").items():
        expected = base[name] + 0.7 * (parts[0][name] - base[name])
        expected -= 0.3 * (parts[1][name] - base[name])
        assert torch.allclose(tensor, expected, atol=1e-5), name


@pytest.mark.parametrize("combination", ["svd", "linear", "ties", "dare_linear", "dare_ties_svd"])
def test_other_combinations_run_and_repeat(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tmp_path: Path,
    combination: str,
) -> None:
    runs = [train(make_recipe(f"run.name=seed-{n}", f"train.seed={n}")) for n in (1, 2)]
    options = MergeOptions(dtype=torch.float32, combination=combination)  # type: ignore[arg-type]
    merge(runs, tmp_path / "one", options)
    merge(runs, tmp_path / "two", options)
    first, second = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_merged_says_why(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    run = train(make_recipe())
    other = train(make_recipe("model.dtype=bfloat16", "run.name=other"))
    dora = train(make_recipe("method.use_dora=true", "run.name=dora"))
    full = train(make_recipe("method.name=full", "run.name=full"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("mine")
    for runs, out, options, message in [
        ([run], "used", EXACT, "exists already"),
        ([run, other], "x", EXACT, "another base"),
        ([run, dora], "x", EXACT, "DoRA"),
        ([run, full], "x", EXACT, "only adapters"),
        ([full], "x", MergeOptions(weights=(0.5,)), "only adapters"),
        ([run, run], "x", MergeOptions(weights=(1.0,)), "for 2 runs"),
    ]:
        with pytest.raises(UserError, match=message):
            merge(runs, tmp_path / out, options)
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "used" / "letter.txt").read_text() == "mine"
    rewrite_adapter(run, lambda _name, t: t * 1e6)
    with pytest.raises(UserError, match="does not fit"):
        merge([run], tmp_path / "x", MergeOptions(dtype=torch.float16))
    damage_adapter(run)
    with pytest.raises(UserError, match=r"adapter of model\.layers"):
        merge([run], tmp_path / "x", EXACT)
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".*.tmp"))


def test_a_damaged_base_is_named(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    source = save_tiny(tmp_path / "base")
    run = train(make_recipe(f"model.source={source}"))
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not an intact safetensors file"):
        merge([run], tmp_path / "x", MergeOptions(check_rows=0))
    file.unlink()
    with pytest.raises(UserError, match="has no weights"):
        merge([run], tmp_path / "x", MergeOptions(check_rows=0))


def stored(folder: Path) -> set[str]:
    return set(tensors(folder))


def tensors(folder: Path) -> dict[str, Tensor]:
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def merged_weights(run: Run, folder: Path) -> dict[str, Tensor]:
    merge([run], folder, EXACT)
    return tensors(folder)


def rewrite_adapter(run: Run, change: Callable[[str, Tensor], Tensor]) -> None:
    from safetensors.torch import load_file

    file = run.adapter_path / "adapter_model.safetensors"
    save_file({name: change(name, t) for name, t in load_file(file).items()}, file)


def silence_adapter(run: Run) -> None:
    rewrite_adapter(run, lambda name, t: torch.zeros_like(t) if "lora_B" in name else t)


def damage_adapter(run: Run) -> None:
    rewrite_adapter(run, lambda name, t: torch.full_like(t, float("nan")))


def strip_prefix(folder: Path, prefix: str) -> None:
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    stripped = {name.removeprefix(prefix): t for name, t in load_file(file).items()}
    save_file(stripped, file, metadata={"format": "pt"})
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"
