"""A recipe to start from, by the answers and the decision, with its reasons as comments."""

from collections.abc import Sequence

from luthier.advise.answers import Answers
from luthier.advise.decide import GOOD, LEAST, Decision
from luthier.recipe import METHOD_DEFAULTS, parse_recipe
from luthier.recipe.json_schema import schema_comment

_WHY_METHOD = {
    "full": "train all weights",
    "lora": "train an adapter on frozen 16-bit weights",
    "qlora": "train an adapter on frozen 4-bit weights",
}
_TIGHT = 1.5  # times the estimated memory; below it activations are recomputed


def make_recipe(answers: Answers, decision: Decision, data: Sequence[str]) -> str:
    """YAML for `luthier train`, which reads it as it stands; ``data`` becomes data.train."""
    choice = decision.choice
    assert choice is not None
    assert answers.size is not None
    many = (answers.examples or 0) >= GOOD
    few = (answers.examples or 0) < LEAST
    lora_r = 64 if many else 16
    # A rented GPU has little more than what is needed.
    memory = choice.rent or answers.gpu_memory or 0.0
    tight = 0 < memory < _TIGHT * choice.needs
    batch = 1 if tight else 4
    defaults = METHOD_DEFAULTS[choice.method]
    sources = _quoted(data[0]) if len(data) == 1 else f"[{', '.join(map(_quoted, data))}]"
    lines = [
        schema_comment(),
        f"# {decision.headline}: {choice.reason}.",
        "#",
        "# Next: luthier data check, luthier plan, luthier train.",
        "model:",
        f"  source: {_quoted(answers.model or '')}",
        "method:",
        f"  name: {choice.method} # {_WHY_METHOD[choice.method]}",
    ]
    if choice.method != "full":
        rank = f"{answers.examples:,} examples: room for more" if many else "enough for thousands"
        lines += [
            f"  lora_r: {lora_r} # {rank}",
            f"  lora_alpha: {2 * lora_r} # the update is scaled by alpha / r = 2",
            "  target_modules: all-linear # attention alone learns less",
        ]
    lines += [
        "data:",
        f"  train: {sources}",
        "  validation_fraction: 0.1 # held-out rows, to evaluate on",
        "train:",
        f"  num_train_epochs: {5 if few else 3} # {'few examples' if few else 'usual'}; "
        "early stopping ends it sooner",
        f"  per_device_train_batch_size: {batch}",
        f"  gradient_accumulation_steps: {16 // batch} # effective batch 16",
        f"  learning_rate: {defaults['learning_rate']} # usual for {choice.method}",
        f"  gradient_checkpointing: {str(tight).lower()}"
        + (" # memory is short: activations are recomputed" if tight else ""),
        "  early_stopping_patience: 3 # evaluations without a better validation loss",
    ]
    text = "\n".join(lines) + "\n"
    parse_recipe(text)
    return text


def _quoted(text: str) -> str:
    """``text`` as a YAML scalar that stays text (``007``, ``a: b``)."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
