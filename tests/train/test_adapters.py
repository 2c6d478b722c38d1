"""What adapters of a recipe can be: each is saved for plain PEFT, resumed, merged and right."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import CHATML, save_tiny
from helpers import Notes
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.cli.main import main
from luthier.data.batches import Batch
from luthier.errors import CheckFailed, UserError
from luthier.export import changes
from luthier.export.export import export
from luthier.export.merge import MergeOptions, merge
from luthier.models.adapters import attach_adapter
from luthier.models.known import public_name
from luthier.models.tuned import load_tuned
from luthier.objectives.noise import Noisy
from luthier.recipe import MethodGroup, Recipe, TrainGroup
from luthier.run import Run, claim_run
from luthier.train.checkpoints import Checkpoints
from luthier.train.fit import fit
from luthier.train.optimizers import make_optimizer
from luthier.train.state import State

EXACT = MergeOptions(dtype=torch.float32)
SHORT = ("train.max_steps=4", "train.eval_steps=4", "train.save_steps=2")
NEW = "data.add_tokens=[<new_a>, <|im_start|>]"

KINDS = {
    "modules_to_save": ("method.modules_to_save=[embed_tokens]",),
    "both-ends": ("method.modules_to_save=[embed_tokens, lm_head]",),
    "norm": ("method.modules_to_save=[norm]", "method.target_modules=[q_proj]"),
    "layers": ("method.layers_to_transform=[1]",),
    "patterns": ("method.rank_pattern={q_proj: 4}", "method.alpha_pattern={'layers.0.*': 8}"),
    "gaussian": ("method.init_lora_weights=gaussian",),
    "pissa": ("method.init_lora_weights=pissa",),
    "pissa-fast": ("method.init_lora_weights=pissa_niter_4", "method.use_rslora=true"),
    "pissa-patterns": (
        "method.init_lora_weights=pissa",
        "method.use_rslora=true",
        "method.rank_pattern={q_proj: 4}",
        "method.alpha_pattern={v_proj: 8}",
    ),
    "olora": ("method.init_lora_weights=olora", "method.lora_dropout=0"),
    "eva": ("method.init_lora_weights=eva", "method.lora_r=4"),
    "loftq": ("method.name=qlora", "method.init_lora_weights=loftq", "train.optim=adamw_torch"),
    "loraplus": ("method.loraplus_lr_ratio=8", "train.learning_rate=2e-3"),
    "tokens": (NEW,),
    "neftune": ("train.neftune_noise_alpha=5",),
}


def logits(model: torch.nn.Module, rows: int = 40) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(torch.arange(rows)[None]).logits
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_and_the_merged_folder_answer_as_the_run(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tiny_model: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    run = train(make_recipe(*SHORT, *KINDS[kind]))
    tuned = logits(load_tuned(run).tuned)
    merged = merge([run], tmp_path / "merged", EXACT)
    check = merged.checks[str(run.root)]
    assert check.logits_max < 1e-4 and check.same_top == 1
    if kind == "loftq":  # the base in 4 bits is loaded by nobody in quite the same way
        return
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(logits(alone), tuned, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert (logits(base) - tuned[..., : base.config.vocab_size]).abs().max() > 1e-3
    tokenizer = AutoTokenizer.from_pretrained(run.adapter_path)
    if len(tokenizer) > base.config.vocab_size:
        base.resize_token_embeddings(len(tokenizer))
    theirs = PeftModel.from_pretrained(base, run.adapter_path)
    assert torch.allclose(logits(theirs), tuned, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    whole = train(make_recipe(*SHORT, *KINDS[kind], "run.name=whole"))
    recipe = make_recipe(*SHORT, *KINDS[kind], "run.name=cut")
    cut = claim_run(recipe, "x")

    save = Checkpoints.save

    def save_once(self: Checkpoints, state: State, best: bool) -> None:
        save(self, state, best)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checkpoints, "save", save_once)
        fit(recipe, cut)
    assert list(cut.checkpoints()) == [2]
    fit(recipe, cut)
    one, other = (r.adapter_path / "adapter_model.safetensors" for r in (whole, cut))
    assert one.read_bytes() == other.read_bytes()


def test_a_merge_that_is_another_model_writes_nothing_and_ends_with_1(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = train(make_recipe(*SHORT, *KINDS["modules_to_save"], "train.learning_rate=5e-2"))
    # What version 0.1 did: it saw A and B alone.
    monkeypatch.setattr(changes, "_in_base", lambda _stored: "")
    with pytest.raises(CheckFailed, match=r"does not answer as base and adapter do.*\d+\.\d% of"):
        merge([run], tmp_path / "merged", EXACT)
    monkeypatch.setattr("sys.argv", ["luthier", "merge", str(run.root), "-o", f"{tmp_path}/merged"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".*.tmp"))


def test_ends_that_differ_are_untied(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    for name, chosen, untied in (
        ("one", "method.modules_to_save=[embed_tokens]", True),
        ("both", "method.target_modules=[embed_tokens, lm_head]", True),
        ("tokens", NEW, False),
    ):
        run = train(make_recipe(*SHORT, chosen, f"run.name={name}"))
        assert merge([run], tmp_path / name, EXACT).untied is untied
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["tie_word_embeddings"] is not untied


def test_the_base_s_own_stop_tokens_stay(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    source = save_tiny(tmp_path / "base")
    settings = source / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": [2, 3]}))
    run = train(make_recipe(*SHORT, f"model.source={source}"))
    merge([run], tmp_path / "merged", EXACT)
    kept = json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"]
    ours = AutoTokenizer.from_pretrained(source).eos_token_id
    assert kept == list(dict.fromkeys([2, 3, ours]))


SEVEN = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"


@pytest.mark.parametrize(
    ("family", "chosen", "message"),
    [
        (
            "phi3",
            f"method.target_modules={SEVEN}",
            "no layer called gate_proj, k_proj, q_proj, up_proj, v_proj; its linear layers are "
            "down_proj, gate_up_proj, o_proj, qkv_proj",
        ),
        ("llama", "method.target_modules=[q_proj, bogus]", "no layer called bogus; its linear"),
        ("llama", "method.target_modules=[bogus]", "no layer called bogus; its linear"),
        ("llama", "method.modules_to_save=[embed]", "no module called embed; .*embed_tokens"),
        ("llama", "method.layers_to_transform=[0, 7]", "no layer 7; this model has 2 layers"),
        ("llama", "method.rank_pattern={w_proj: 4}", "'w_proj' fits no layer with an adapter"),
        ("llama", "method.alpha_pattern={'(': 4}", "not a regular expression"),
        ("llama", "method.bias=all", "this model has no bias to train"),
        ("mixtral", "method.target_parameters=[experts.w9]", "no parameter called experts.w9; .*gate_up"),
    ],
)  # fmt: skip
def test_names_that_the_model_has_not(
    make_recipe: Callable[..., Recipe], tmp_path: Path, family: str, chosen: str, message: str
) -> None:
    source = save_tiny(tmp_path / family, family)
    recipe = make_recipe(f"model.source={source}", "method.lora_dropout=0", chosen)
    with pytest.raises(UserError, match=message):
        fit(recipe, claim_run(recipe, "x"))
    assert not (tmp_path / "runs" / "run").exists()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (("method.name=qlora", "method.init_lora_weights=pissa"), "qlora keeps in 4 bits"),
        (("method.name=qlora", "method.init_lora_weights=olora"), "qlora keeps in 4 bits"),
        (("method.init_lora_weights=loftq",), "method.name qlora"),
        (("method.init_lora_weights=false",), "it takes true, gaussian, pissa"),
        (("method.init_lora_weights=pizza",), "it takes true, gaussian, pissa"),
        (("method.freeze_modules=[embed_tokens]",), "is for method.name full"),
        (("method.loraplus_lr_ratio=0.5",), "loraplus_lr_ratio"),
        (("train.neftune_noise_alpha=0",), "neftune_noise_alpha"),
    ],
)
def test_what_does_not_go_together(
    make_recipe: Callable[..., Recipe], chosen: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_recipe(*chosen)


def test_biases_train_are_saved_and_merged_and_the_base_is_still_the_base(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    source = save_tiny(tmp_path / "qwen2", "qwen2")
    run = train(make_recipe(*SHORT, f"model.source={source}", "method.bias=all"))
    saved = load_file(run.adapter_path / "adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    bias = "layers.0.self_attn.q_proj.bias"
    stored = saved[f"base_model.model.model.{bias.replace('.bias', '.base_layer.bias')}"]
    assert not torch.equal(stored, base.model.get_parameter(bias))
    assert merge([run], tmp_path / "merged", EXACT).checks[str(run.root)].logits_max < 2e-5
    with load_tuned(run).as_base() as untouched:
        assert torch.equal(logits(untouched), logits(base))


def test_experts_get_adapters_that_peft_loads(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    source = save_tiny(tmp_path / "mixtral", "mixtral")
    run = train(
        make_recipe(
            *SHORT,
            f"model.source={source}",
            "method.target_modules=[q_proj]",
            "method.target_parameters=[mlp.experts.gate_up_proj]",
            "method.lora_dropout=0",
        )
    )
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    theirs = logits(PeftModel.from_pretrained(base, run.adapter_path))
    assert torch.allclose(theirs, logits(load_tuned(run).tuned), atol=1e-6)
    names = load_file(run.adapter_path / "adapter_model.safetensors")
    assert any("experts" in name for name in names)


def test_the_adapter_names_its_base_as_the_user_did(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tiny_model: Path
) -> None:
    run = train(make_recipe(*SHORT))
    config = json.loads((run.adapter_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert public_name("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert public_name("owner/model") == "owner/model"


@pytest.mark.parametrize(
    ("chosen", "trains"),
    [
        ("method.freeze_modules=[embed_tokens, layers.0]", ("layers.1.", "model.norm")),
        ("method.train_modules=['layers.*.mlp', norm]", (".mlp.", "model.norm")),
    ],
)
def test_full_fine_tuning_of_chosen_weights(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tiny_model: Path,
    chosen: str,
    trains: tuple[str, ...],
) -> None:
    run = train(make_recipe(*SHORT, "method.name=full", "train.learning_rate=1e-2", chosen))
    before = load_file(tiny_model / "model.safetensors")
    after = load_file(run.model_path / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if any(part in name for part in trains)}


def test_patterns_that_fit_nothing_or_everything(make_recipe: Callable[..., Recipe]) -> None:
    for chosen, message in (
        ("method.freeze_modules=[layers.7]", "nothing in this model is called layers.7"),
        ("method.freeze_modules=['*']", "leave nothing to train"),
    ):
        recipe = make_recipe("method.name=full", chosen)
        with pytest.raises(UserError, match=message):
            fit(recipe, claim_run(recipe, "x"))


def test_loraplus_groups_are_peft_s(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = attach_adapter(model, MethodGroup(use_dora=True, modules_to_save=["norm"]))
    ours = make_optimizer(
        adapted, TrainGroup(learning_rate=1e-3, weight_decay=0.1), "adamw_torch", 16
    )
    theirs = create_loraplus_optimizer(
        adapted, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )

    def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
        return {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}

    assert rates(ours) == rates(theirs)
    assert set(rates(ours).values()) == {1e-3, 16e-3}


def test_noise_is_uniform_by_the_row_s_length_and_only_in_training(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    seen: list[Tensor] = []

    class Look:
        def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            seen.append(model.model.embed_tokens(batch.input_ids))  # type: ignore[union-attr]
            return torch.zeros(()), {}

    ids = torch.arange(200)[None]
    batch = Batch(ids, torch.arange(200)[None], ids, torch.arange(3), (160, 40))
    noisy = Noisy(Look(), alpha=5)  # type: ignore[arg-type]
    plain = model.model.embed_tokens(ids)
    model.train()
    for _ in range(2):
        noisy.loss(model, batch)
    long, short = (seen[0] - plain)[0].detach().split([160, 40])
    for part, length in ((long, 160), (short, 40)):
        most = 5 / (length * 64) ** 0.5
        assert 0.98 * most < part.abs().max() <= most * 1.0001
        assert part.abs().mean() == pytest.approx(most / 2, rel=0.03)
        assert abs(part.mean()) < most * 0.05
    assert not torch.equal(seen[0], seen[1])
    model.eval()
    noisy.loss(model, batch)
    assert torch.equal(seen[2], plain)
    model.train()
    with torch.no_grad():  # a reference
        noisy.loss(model, batch)
    assert torch.equal(seen[3], plain)


def test_marks_that_are_no_tokens_and_rows_that_nobody_trained_are_told(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    plain = save_tiny(tmp_path / "plain", chat="mistral-bytes")
    template = tmp_path / "chatml.jinja"
    template.write_text(CHATML.replace("'<|im_end|>'", "eos_token"))
    chosen = (*SHORT, f"model.source={plain}", f"data.template={template}")
    notes = Notes()
    train(make_recipe(*chosen), notes)
    (told,) = [note for note in notes.warnings if "has no token" in note]
    assert "data.add_tokens=['<|im_start|>']" in told
    notes = Notes()
    added = "data.add_tokens=['<|im_start|>']"
    run = train(make_recipe(*chosen, added, "run.name=added"), notes)
    assert not [note for note in notes.warnings if "token" in note]
    tokenizer = AutoTokenizer.from_pretrained(run.adapter_path)
    assert len(tokenizer("<|im_start|>", add_special_tokens=False).input_ids) == 1
    # Added by hand, saved with the model, and trained by nobody.
    model = AutoModelForCausalLM.from_pretrained(plain)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "resized")
    tokenizer.save_pretrained(tmp_path / "resized")
    notes = Notes()
    train(make_recipe(*SHORT, f"model.source={tmp_path / 'resized'}", "run.name=hand"), notes)
    (told,) = [note for note in notes.warnings if "look untrained" in note]
    assert "<|im_start|>" in told and "data.add_tokens" in told


def test_what_trained_beside_an_adapter_is_not_lost_in_silence(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run], tmp_path: Path
) -> None:
    run = train(make_recipe(*SHORT, *KINDS["modules_to_save"]))
    with pytest.raises(UserError, match="whole modules besides cannot be combined"):
        merge([run, run], tmp_path / "both", MergeOptions(check_rows=0))
    with pytest.raises(UserError, match="trained whole modules beside the adapter"):
        export(run, "adapter-gguf", tmp_path / "gguf")
    assert not (tmp_path / "both").exists() and not (tmp_path / "gguf").exists()
