"""Which method, by the size of the model, the memory available, and the priority."""

from dataclasses import dataclass

from luthier.advise.answers import Answers
from luthier.recipe import MethodName

# GB per billion parameters. Full: 16 bytes (weight, gradient, AdamW's two moments, in float32; ZeRO,
# section 3.1) and an eighth for activations. LoRA: 2 bytes, and as much again for activations,
# logits and the adapter. QLoRA: half a byte, as much again, and 2 GB. Rough on purpose, to choose
# by: `luthier plan` computes it.
_FULL, _LORA, _QLORA, _QLORA_REST = 18.0, 4.0, 1.0, 2.0
_ON_CPU = 1.0  # billions; a larger model takes days there

_LORA_SOURCE = "Hu et al. 2021; LoRA Without Regret (Thinking Machines 2025)"
_QLORA_SOURCE = "Dettmers et al. 2023 (QLoRA)"


@dataclass(frozen=True)
class Choice:
    """A method; ``rent`` is the GB of a GPU to rent where those at hand do not suffice."""

    method: MethodName
    needs: float  # GB, roughly
    reason: str
    source: str
    rent: float | None = None


def needed(method: MethodName, billions: float) -> float:
    """GB that ``method`` needs for a model of so many ``billions`` of parameters, roughly."""
    match method:
        case "full":
            return _FULL * billions
        case "lora":
            return _LORA * billions
        case _:
            return _QLORA * billions + _QLORA_REST


def choose_method(answers: Answers) -> Choice:
    """Full where accuracy asks for it and there is room, QLoRA where memory is short, else LoRA."""
    size, memory = answers.size, answers.gpu_memory
    assert size is not None
    assert memory is not None
    if memory == 0 and size <= _ON_CPU and answers.priority != "memory":
        return Choice(
            "lora",
            needed("lora", size),
            f"a CPU can train {size:g} billion parameters; LoRA takes a third less work than "
            "full fine-tuning",
            _LORA_SOURCE,
        )
    room = f"{memory:g} GB" if memory else "no GPU"
    if answers.priority == "accuracy" and memory >= needed("full", size):
        return Choice(
            "full",
            needed("full", size),
            f"{room} hold all weights, gradients and optimiser state "
            f"({needed('full', size):.0f} GB), and accuracy comes first",
            "Rajbhandari et al. 2020 (ZeRO, section 3.1); Biderman et al. 2024",
        )
    if answers.priority != "memory" and memory >= needed("lora", size):
        return Choice(
            "lora",
            needed("lora", size),
            f"{room} hold 16-bit weights and an adapter ({needed('lora', size):.0f} GB); on "
            "all layers, LoRA learns as well as full fine-tuning on all but very large data sets",
            _LORA_SOURCE,
        )
    least = needed("qlora", size)
    wanted = "as asked" if answers.priority == "memory" else "16-bit weights would not fit"
    reason = f"QLoRA's 4-bit weights and adapter take {least:.0f} GB ({wanted}; you have {room})"
    if memory >= least or (memory == 0 and size <= _ON_CPU):
        return Choice("qlora", least, reason, _QLORA_SOURCE)
    return Choice(
        "qlora",
        least,
        f"{reason}; rent a GPU of {least:.0f} GB or more",
        _QLORA_SOURCE,
        rent=least,
    )
