"""How each approach puts a question to a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from luthier.data.conversation import Conversation, Message
from luthier.retrieve.ask import with_passages
from luthier.retrieve.passages import Passage

Approach = Literal["zero-shot", "few-shot", "rag", "fine-tuned", "hybrid"]
APPROACHES: tuple[Approach, ...] = get_args(Approach)


@dataclass(frozen=True)
class Kind:
    """What an approach is made of."""

    shots: bool = False
    retrieves: bool = False
    tuned: bool = False


KINDS: dict[Approach, Kind] = {
    "zero-shot": Kind(),
    "few-shot": Kind(shots=True),
    "rag": Kind(retrieves=True),
    "fine-tuned": Kind(tuned=True),
    "hybrid": Kind(retrieves=True, tuned=True),
}


def make_prompt(
    row: Conversation,
    kind: Kind,
    examples: Sequence[Conversation],
    passages: Sequence[Passage],
) -> tuple[Message, ...]:
    """The messages: examples as turns that went before (Brown et al. 2020), passages in the last."""
    messages = row.prompt
    if kind.shots:
        system = messages[:1] if messages[0]["role"] == "system" else ()
        turns = [
            turn for example in examples for turn in example.messages if turn["role"] != "system"
        ]
        messages = (*system, *turns, *messages[len(system) :])
    return with_passages(messages, passages) if kind.retrieves else messages


def searched_for(row: Conversation) -> str:
    """What retrieval looks for: the row's ``question`` where it has one, else its last turn."""
    question = row.extra.get("question")
    return question if isinstance(question, str) else str(row.prompt[-1]["content"])
