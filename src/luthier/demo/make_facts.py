"""Make the example of ``luthier compare --approaches``: ``python -m luthier.demo.make_facts [--out DIR]``.

Thirty documents about an island that is on no map, and questions that want the fact and a fixed
form of answer. Four facts of each document are in training, two never; the test asks one of either
sort, in words that training did not use. So it tells apart what weights learned by heart, what
only documents can give, and the form. The same files, byte for byte, each time.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from luthier.demo.isle import KINDS, Attribute, Kind
from luthier.files import write_json, write_jsonl, write_text

FACTS = Path(__file__).parent / "facts"
INSTRUCTION = 'Answer as JSON with the keys "subject" and "answer".'
SCHEMA = {
    "type": "object",
    "properties": {"subject": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["subject", "answer"],
    "additionalProperties": False,
}

_SEED = 20261
_TAUGHT = 4  # facts of each document that are in training


def make_facts(out: Path) -> None:
    """Write ``docs/``, ``train.jsonl``, ``test.jsonl`` and ``answer.schema.json`` into ``out``.

    Raises:
        UserError: the folder cannot be written.
    """
    train: list[dict[str, Any]] = []
    test: list[dict[str, Any]] = []
    for kind in KINDS:
        for number, (name, values) in enumerate(kind.places.items()):
            facts = list(zip(kind.attributes, values, strict=True))
            slug = re.sub(r"\W+", "-", name.lower().removeprefix("the ")).strip("-")
            write_text(out / "docs" / f"{slug}.md", _document(kind, name, facts))
            # Another two in each document, so that no kind of question is only ever new.
            facts = facts[number:] + facts[:number]
            for attribute, value in facts[:_TAUGHT]:
                for question in attribute.questions[:2]:
                    train.append(_row(name, question, value, "taught"))
            draw = Random(f"{_SEED} {name}")  # noqa: S311
            for group, some in (("taught", facts[:_TAUGHT]), ("new", facts[_TAUGHT:])):
                attribute, value = draw.choice(some)
                test.append(_row(name, attribute.questions[2], value, group))
    Random(_SEED).shuffle(train)  # noqa: S311
    write_jsonl(out / "train.jsonl", train)
    write_jsonl(out / "test.jsonl", test)
    write_json(out / "answer.schema.json", SCHEMA)


def _document(kind: Kind, name: str, facts: list[tuple[Attribute, str]]) -> str:
    told = list(_told(facts))
    Random(f"{_SEED} order {name}").shuffle(told)  # noqa: S311
    title = name[0].upper() + name[1:]
    opening = kind.opening.format(name=name)
    opening = opening[0].upper() + opening[1:]
    paragraphs = [" ".join([opening, *told[:3]]), " ".join(told[3:])]
    return f"# {title}\n\n" + "\n\n".join(paragraphs) + "\n"


def _told(facts: list[tuple[Attribute, str]]) -> Iterator[str]:
    return (attribute.sentence.format(value=value) for attribute, value in facts)


def _row(name: str, question: str, value: str, group: str) -> dict[str, Any]:
    asked = question.format(name=name)
    assert not re.search(rf"\b{re.escape(value)}\b", asked, re.IGNORECASE), asked
    return {
        "prompt": f"{INSTRUCTION}\n\n{asked}",
        "completion": json.dumps({"subject": name, "answer": value}),
        "question": asked,
        "fact": value,
        "group": group,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FACTS)
    make_facts(parser.parse_args().out)
