"""Rows for extraction and classification: messages to a shop, and what they say as JSON.

    python examples/extraction/make_data.py tickets

writes train.jsonl and test.jsonl into the folder, and kinds-train.jsonl and kinds-test.jsonl: the same
messages, answered with their kind alone.
The messages are made, not collected: no private data, and the right answer is known. Test messages have
sentences, products and names that no training message has.
"""

import json
import random
import sys
from pathlib import Path

# By kind of problem: what people write; the last two of each kind are for the test alone.
PROBLEMS = {
    "delivery": (
        "my {product} has not arrived yet",
        "the courier says the {product} was delivered, but there is nothing here",
        "I have been waiting two weeks for the {product}",
        "tracking has not moved for days and I still have no {product}",
        "where is my {product}",
        "the parcel with the {product} seems to be lost",
        "nobody has brought the {product} so far",
    ),
    "damaged": (
        "the {product} came with a crack",
        "the {product} is scratched all over",
        "the box was crushed and the {product} inside is broken",
        "my {product} does not switch on",
        "one part of the {product} fell off when I unpacked it",
        "the {product} you sent is dented",
        "the {product} stopped working on the first evening",
    ),
    "refund": (
        "I sent the {product} back and want my money",
        "please return what I paid for the {product}",
        "when will I be refunded for the {product}",
        "I cancelled the {product}, but you still charged me",
        "you took the money for the {product} twice",
        "I would like my payment for the {product} back",
        "the amount for the {product} has not been credited to my card",
    ),
    "question": (
        "does the {product} come in blue",
        "how long is the guarantee on the {product}",
        "is the {product} suitable for children",
        "do you also have the {product} in a smaller size",
        "which batteries does the {product} need",
        "can the {product} be washed",
        "what does the {product} weigh",
    ),
}
PRODUCTS = (
    "kettle",
    "desk lamp",
    "backpack",
    "toaster",
    "office chair",
    "headphones",
    "tent",
    "clock",
)
NEW_PRODUCTS = ("coffee grinder", "bicycle pump", "rain jacket")
NAMES = ("Ana", "Bo", "Chidi", "Dana", "Emre", "Fatou", "Goran", "Hana")
NEW_NAMES = ("Ines", "Jonas", "Kavya")
HURRY = ("It is urgent.", "Please answer today.", "I need this solved right away.")
ORDER = ("Order {order}.", "My order number is {order}.", "It is about {order}.")
WHOLE = "Read the message and answer with JSON: kind, product, order, urgent, name."
KIND = "Which kind of message is it: delivery, damaged, refund or question?"


def message(draw: random.Random, test: bool) -> tuple[str, dict[str, object]]:
    """A message, and the fields that are to be read from it."""
    kind = draw.choice(sorted(PROBLEMS))
    said = PROBLEMS[kind][5:] if test else PROBLEMS[kind][:5]
    fields: dict[str, object] = {
        "kind": kind,
        "product": draw.choice(NEW_PRODUCTS if test else PRODUCTS),
        "order": f"{draw.choice('ABCD')}{draw.randint(10000, 99999)}"
        if draw.random() < 0.7
        else None,
        "urgent": draw.random() < 0.4,
        "name": draw.choice(NEW_NAMES if test else NAMES),
    }
    sentence = draw.choice(said).format(product=fields["product"])
    end = "?" if kind == "question" else "."
    parts = [sentence[0].upper() + sentence[1:] + end]
    if fields["order"]:
        parts.append(draw.choice(ORDER).format(order=fields["order"]))
    if fields["urgent"]:
        parts.append(draw.choice(HURRY))
    draw.shuffle(parts)
    return (
        f"{draw.choice(('Hello,', 'Hi there.', ''))} {' '.join(parts)} {fields['name']}".strip(),
        fields,
    )


def main(folder: Path) -> None:
    draw = random.Random(0)
    seen: set[str] = set()
    rows: dict[str, list[dict[str, str]]] = {}
    for part, count in (("train", 320), ("test", 80)):
        whole, kinds = rows.setdefault(part, []), rows.setdefault(f"kinds-{part}", [])
        while len(whole) < count:
            text, fields = message(draw, test=part == "test")
            if text in seen:
                continue
            seen.add(text)
            whole.append({"instruction": WHOLE, "input": text, "output": json.dumps(fields)})
            kinds.append({"instruction": KIND, "input": text, "output": str(fields["kind"])})
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in rows.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")
        print(f"{path}: {len(made)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
