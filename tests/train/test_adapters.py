"""What adapters of a recipe can be: each is saved for plain PEFT, resumed, merged and right."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.export.merge import MergeOptions, merge
from luthier.models.tuned import load_tuned
from luthier.recipe import Recipe
from luthier.run import Run, claim_run
from luthier.train.checkpoints import Checkpoints
from luthier.train.fit import fit
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
