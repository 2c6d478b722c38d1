"""A model card written from the run folder: what it was made of, how, and how good it is."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from luthier.files import write_text
from luthier.models.known import KNOWN_MODELS
from luthier.perplexity import perplexity
from luthier.recipe import Recipe, hub_dataset
from luthier.records import DataReport, Evaluation, Measured, Provenance
from luthier.run import Run

_RELATION = {"adapter-gguf": "adapter", "gguf": "quantized", "ollama": "quantized"}
_METRICS = {
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L (F1)",
    "chrf": "chrF",
    "sql_execution": "SQL execution accuracy",
}


def write_card(run: Run, folder: Path, shape: str, facts: dict[str, Any]) -> None:
    """Write ``README.md`` into ``folder``, with metadata that the hub reads.

    Args:
        shape: what the folder holds: safetensors, gguf, ollama or adapter-gguf.
        facts: what only the export knows: ``files`` (one per line, with what it is), ``use`` (how to
            use it, as a fenced block) and ``checks`` (lines of Markdown).
    """
    recipe = run.recipe()
    provenance, measured = run.provenance(), run.measured()
    parts = [
        f"# {run.root.name}",
        _summary(recipe, provenance),
        "## Use",
        facts["use"],
        "## Files",
        "\n".join(f"- {line}" for line in facts["files"]),
        "## Training",
        _training(recipe, measured, run.data_report()),
        "## Evaluation",
        _evaluation(run.evaluation(), measured),
    ]
    if facts["checks"]:
        parts += ["## Checked on export", "\n".join(facts["checks"])]
    yaml = _metadata(run, recipe, shape).to_yaml()
    write_text(folder / "README.md", f"---\n{yaml}\n---\n\n" + "\n\n".join(parts) + "\n")


def _metadata(run: Run, recipe: Recipe, shape: str) -> ModelCardData:
    known = KNOWN_MODELS.get(recipe.model.source)
    hub_id = base_on_the_hub(recipe, run.provenance())
    datasets = [found[0] for source in recipe.train_files if (found := hub_dataset(source))]
    merged = "finetune" if recipe.method.name == "full" else "merge"
    return ModelCardData(
        base_model=hub_id,
        base_model_relation=_RELATION.get(shape, merged) if hub_id else None,
        license=known.licence.lower() if known else None,
        library_name="transformers" if shape == "safetensors" else "gguf",
        pipeline_tag="text-generation",
        datasets=datasets or None,
        tags=["luthier", recipe.method.name],
        model_name=run.root.name,
    )


def base_on_the_hub(recipe: Recipe, provenance: Provenance) -> str | None:
    """The base's id on the hub; None where it was a local file or folder, whose path is private."""
    known = KNOWN_MODELS.get(recipe.model.source)
    if known:
        return known.hub_id
    origin = provenance.model
    return origin.removeprefix("hub ") if origin.startswith("hub ") else None


def _summary(recipe: Recipe, provenance: Provenance) -> str:
    base = base_on_the_hub(recipe, provenance)
    name = f"[{base}](https://huggingface.co/{base})" if base else Path(recipe.model.source).name
    if not recipe.train_files:
        return f"{name} with a LoRA adapter."
    how = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[recipe.method.name]
    version = provenance.versions.get("luthier", "")
    return f"{name}, fine-tuned by {how} with Luthier {version}".rstrip() + "."


def _training(recipe: Recipe, measured: Measured, report: DataReport | None) -> str:
    if not recipe.train_files:
        return "Another tool trained the adapter; what it was trained on was not kept with it."
    method, train = recipe.method, recipe.train
    sources = ", ".join(
        source if hub_dataset(source) else Path(source).name for source in recipe.train_files
    )
    lines = [f"data: {sources}"]
    if report is not None:
        rows = report.rows
        lines.append(f"rows: {rows.train:,} to train on, {rows.validation:,} held out")
    lines.append(f"loss on: {recipe.data.train_on}; rows up to {recipe.data.max_length:,} tokens")
    if method.name != "full":
        kind = "".join(
            name
            for name, on in ((", rank-stabilised", method.use_rslora), (", DoRA", method.use_dora))
            if on
        )
        lines.append(
            f"adapter: r={method.lora_r}, alpha={method.lora_alpha}, dropout="
            f"{method.lora_dropout}, on {method.target_modules}{kind}"
        )
    if method.name == "qlora":
        twice = ", double quantisation" if method.bnb_4bit_use_double_quant else ""
        lines.append(f"base during training: {method.bnb_4bit_quant_type} 4 bits{twice}")
    batch = train.per_device_train_batch_size * train.gradient_accumulation_steps
    lines.append(
        f"{train.optim}, learning rate {train.learning_rate:g}, {train.lr_scheduler_type}, "
        f"{batch} rows per step, seed {train.seed}"
    )
    lines.append(
        f"{measured.steps:,} steps, {measured.tokens:,} tokens, "
        f"{measured.seconds / 60:.1f} minutes on {measured.device} in {measured.dtype}; "
        f"the weights are those of step {measured.best_step:,}"
    )
    return "\n".join(f"- {line}" for line in lines)


def _evaluation(evaluation: Evaluation | None, measured: Measured) -> str:
    if evaluation is None:
        best = measured.best_eval_loss
        if best is None:
            return "Not evaluated."
        if measured.best_eval_perplexity is None:  # of pairs, or of another objective's own loss
            return f"Validation loss {best:.4f}; not compared with the base."
        return (
            f"Validation loss {best:.4f} nats per token, perplexity {perplexity(best):.3f}; "
            "not compared with the base."
        )
    lines = [
        f"On {evaluation.rows:,} held-out rows ({evaluation.supervised_tokens:,} tokens), "
        f"{evaluation.answered_rows:,} of them answered greedily:",
        "",
        "| | base | tuned |",
        "|---|---|---|",
    ]
    for key, label in {"perplexity": "perplexity", **_METRICS}.items():
        if key in evaluation.base:
            cells = [side[key] for side in (evaluation.base, evaluation.tuned)]
            shown = [f"{c:.3f}" if key == "perplexity" else f"{c:.1%}" for c in cells]
            lines.append(f"| {label} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)
