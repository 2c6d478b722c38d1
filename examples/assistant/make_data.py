"""Rows for an assistant with one style, from the documentation that ships with Python.

    python examples/assistant/make_data.py python-help

writes train.jsonl and test.jsonl into the folder: chats about functions of the standard library, answered
in one form, "`module.name`: what it does." No function of the test is in the training rows. Another
version of Python gives slightly other rows.
"""

import importlib
import inspect
import json
import random
import re
import sys
from pathlib import Path

MODULES = (
    *("bisect", "calendar", "collections", "contextlib", "copy", "csv", "datetime", "difflib"),
    *(
        "email.utils",
        "fnmatch",
        "functools",
        "glob",
        "gzip",
        "heapq",
        "html",
        "inspect",
        "ipaddress",
    ),
    *("itertools", "json", "linecache", "logging", "math", "os", "os.path", "pathlib", "pickle"),
    *("pkgutil", "platform", "random", "re", "secrets", "shutil", "socket", "statistics", "string"),
    *("subprocess", "sys", "tarfile", "tempfile", "textwrap", "time", "tokenize", "traceback"),
    *("unicodedata", "urllib.parse", "uuid", "zipfile"),
)
SYSTEM = "You explain Python's standard library. Name the function, then say in one sentence what it does."
FIRST = (
    "What does {name} do?",
    "Explain {name}, please.",
    "When would I use {name}?",
    "I found {name} in some code. What is it for?",
    "Can you tell me about {name}?",
)
THEN = ("And {name}?", "What about {name}?", "Thanks. Now {name}.")


def functions() -> dict[str, str]:
    """What the first sentence of its documentation says about each public function, by its name."""
    found: dict[str, str] = {}
    for module in MODULES:
        for name, function in inspect.getmembers(importlib.import_module(module), callable):
            text = (inspect.getdoc(function) or "").partition("\n\n")[0]
            sentence = re.split(r"(?<=\.)\s", " ".join(text.split()))[0]
            told = 20 <= len(sentence) <= 140 and sentence.endswith(".")
            plain = sentence[:1].isupper() and not re.search(r"->|`|Error|Exception", sentence)
            if told and plain and not name.startswith("_") and sentence not in found.values():
                found[f"{module}.{name}"] = sentence
    return found


def chat(names: list[str], known: dict[str, str], draw: random.Random) -> dict[str, object]:
    """One conversation: a question for each name, and its answer."""
    turns = [{"role": "system", "content": SYSTEM}]
    for number, name in enumerate(names):
        question = draw.choice(THEN if number else FIRST).format(name=name)
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": f"`{name}`: {known[name]}"})
    return {"messages": turns}


def main(folder: Path) -> None:
    known, draw = functions(), random.Random(0)
    names = sorted(known)
    draw.shuffle(names)
    asked, learned = names[:60], names[60:420]
    test = [chat([name], known, draw) for name in asked]
    train = []
    while learned:  # conversations of one to three questions
        count = draw.randint(1, 3)
        train.append(chat(learned[:count], known, draw))
        learned = learned[count:]
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", train), ("test", test)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{part}.jsonl").write_text("".join(lines), "utf-8")
        print(f"{folder / part}.jsonl: {len(rows)} conversations")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
