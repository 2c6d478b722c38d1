"""Whether a GGUF file answers as the model does: Transformers loads and runs it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from luthier.data.conversation import Conversation
from luthier.data.split import sample
from luthier.data.tokens import TokenRow
from luthier.errors import CheckFailed, UserError
from luthier.events import OnEvent, during, ignore
from luthier.export.options import GgufType
from luthier.export.same import (
    Difference,
    Outputs,
    check_rows,
    difference,
    exact_arithmetic,
    outputs,
    rows_of,
)
from luthier.generate.answer import Prompt, Sampling, answer_all
from luthier.models.dtype import pick_device
from luthier.models.tuned import load_tuned
from luthier.run import Run

_ANSWERED, _NEW_TOKENS = 8, 48
# What every architecture's metadata says in the same words.
_SHAPE = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "vocab_size",
)


# Nats per token that a type may cost. Models of a few hundred million weights lose 0.002 by Q8_0 and
# 0.5 by Q4_0 (RESULTS.md); one whose tensors are in the wrong place loses several.
_MOST_KL: dict[GgufType, float] = {
    "f32": 1e-4,
    "f16": 0.01,
    "bf16": 0.05,
    "q8_0": 0.1,
    "q5_1": 0.75,
    "q5_0": 0.75,
    "q4_1": 1.5,
    "q4_0": 1.5,
}
_MOST_KL_ROUNDED = 0.05  # where both were computed in 16 bits


@dataclass(frozen=True)
class Reference:
    """What the tuned model itself makes of held-out rows."""

    rows: list[TokenRow]
    texts: list[str]
    prompts: list[Prompt]
    outputs: Outputs
    answers: list[str]
    arithmetic: str


@dataclass(frozen=True)
class Checked:
    """A file against its source.

    Attributes:
        difference: of logits and loss; None where Transformers cannot read the file.
        same_answers: greedy answers that are identical, of ``answers``.
        same_tokens: held-out texts that give the same tokens, of ``texts``, in Transformers' reader,
            which has not every rule of a tokenizer.
        other_tokens: ids that the file gives another text than the tokenizer does.
        notes: what could not be compared.
    """

    difference: Difference | None
    answers: int
    same_answers: int
    texts: int
    same_tokens: int
    other_tokens: int = 0
    notes: list[str] = field(default_factory=list)


def reference(run: Run, row_count: int, on_event: OnEvent = ignore) -> Reference:
    """Load the run's own model and ask it; nothing of it stays in memory.

    Raises:
        UserError: it cannot be loaded, or there are no rows to compare on.
    """
    rows = check_rows(run, row_count, on_event)
    seed = run.recipe().train.seed
    spoken: list[Conversation] = [row for row in rows_of(run) if row.messages]
    prompts: list[Prompt] = [row.prompt for row in sample(spoken, _ANSWERED, seed)]
    models = load_tuned(run, on_event=on_event)
    arithmetic = exact_arithmetic(models.tuned)
    texts = [str(models.tokenizer.decode(row.input_ids)) for row in rows]
    found = outputs(models.tuned, rows, "loss of the run's model", on_event)
    with during("answers of the run's model", on_event):
        answers = _answers(models.tuned, models.tokenizer, prompts)
    return Reference(rows, texts, prompts, found, answers, arithmetic)


def check_gguf(
    file: Path,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    ref: Reference,
    on_event: OnEvent = ignore,
) -> Checked:
    """Load ``file`` through Transformers' own reader and compare it with its source.

    Raises:
        UserError: the file says another shape of model than ``config``.
    """
    place: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
        "local_files_only": True,
    }
    notes: list[str] = []
    other_tokens = _other_tokens(file, tokenizer)
    try:
        _compare_shape(file, AutoConfig.from_pretrained(**place), config)
        # With the source's config: the reader ignores what it does not know (the width of a
        # head, rotary scaling), though the file says it.
        # Mistral is Llama to llama.cpp, and to the reader.
        known = {} if config.model_type == "mistral" else {"config": copy.deepcopy(config)}
        with during(f"loading {file.name}", on_event):
            model = AutoModelForCausalLM.from_pretrained(
                **place,
                **known,
                dtype=getattr(torch, ref.arithmetic),
                device_map=str(pick_device()),
            )
        theirs = AutoTokenizer.from_pretrained(**place)
    except UserError:
        raise
    except Exception as error:  # for an unsupported file it may raise anything
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        note = f"Transformers cannot load this file, so its answers were not compared: {text}"
        return Checked(None, 0, 0, 0, 0, other_tokens, [note])
    exact_arithmetic(model)
    after = outputs(model, ref.rows, f"loss of {file.name}", on_event)
    with during(f"answers of {file.name}", on_event):
        answers = _answers(model, tokenizer, ref.prompts)
    same_tokens = sum(_ids(theirs, text) == _ids(tokenizer, text) for text in ref.texts)
    return Checked(
        difference=difference(ref.outputs, after, len(ref.rows), ref.arithmetic),
        answers=len(answers),
        same_answers=sum(a == b for a, b in zip(ref.answers, answers, strict=True)),
        texts=len(ref.texts),
        same_tokens=same_tokens,
        other_tokens=other_tokens,
        notes=notes,
    )


def refuse_another_model(file: Path, kind: GgufType, checked: Checked) -> None:
    """Raise where a file is further from its source than rounding to ``kind`` brings it.

    Raises:
        CheckFailed: it answers otherwise, or its tokenizer cuts text otherwise.
    """
    advice = "Use `luthier export --to safetensors` instead, and report this with the model's name"
    if checked.other_tokens:
        raise CheckFailed(
            f"the tokenizer in {file.name} is not the run's, so nothing was written: "
            f"{checked.other_tokens} tokens have another text. {advice}"
        )
    found = checked.difference
    if found is None:
        return
    rounded = 0 if found.arithmetic == "float32" else _MOST_KL_ROUNDED
    if not found.kl <= max(_MOST_KL[kind], rounded):
        raise CheckFailed(
            f"{file.name} does not answer as the run does, so nothing was written: the loss goes from "
            f"{found.loss_before:.4f} to {found.loss_after:.4f} nats per token (KL {found.kl:.2g}, where "
            f"{kind} may cost {max(_MOST_KL[kind], rounded):g}), and the most likely token is the same at "
            f"{found.same_top:.1%} of {found.positions} positions. {advice}"
        )


def _other_tokens(file: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    from gguf import GGUFReader

    written = GGUFReader(file).fields["tokenizer.ggml.tokens"].contents()
    ours = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return sum(token is not None and token != w for token, w in zip(ours, written, strict=False))


def _answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> list[str]:
    return answer_all(model, tokenizer, prompts, Sampling(_NEW_TOKENS), batch_size=8)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _compare_shape(file: Path, found: PreTrainedConfig, wanted: PreTrainedConfig) -> None:
    for key in _SHAPE:
        if getattr(found, key, None) != getattr(wanted, key):
            raise UserError(
                f"{file} has {key} {getattr(found, key, None)}, but the model has "
                f"{getattr(wanted, key)}"
            )
