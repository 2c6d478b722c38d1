"""What reads input of strangers, each as a function of bytes that must end well or with a UserError.

An input is bytes, so that one that failed can be kept as a file in ``corpus/<target>/`` and tried
again for ever. A new reader of foreign input gets a line in ``TARGETS``.
"""

import atexit
import datetime
import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zstandard
from data.thinkers import TOKENS as THINKERS
from families import CHAT_FAMILIES, HERMES, MISTRAL_TOOLS, QWEN3, make_tokenizer, save_tiny
from fuzz.requests import PATHS, RIGHT, check_answer, requests, send
from hypothesis import strategies as st

from luthier.data.pins import pin
from luthier.data.readers import BadRow, read_rows
from luthier.data.rows import read_row
from luthier.data.spans import renderings
from luthier.data.template import TemplateRejects
from luthier.data.thoughts import answer_shape
from luthier.data.unused import unused_fields
from luthier.errors import UserError
from luthier.models.gguf_header import check_header
from luthier.recipe import known_keys, parse_recipe
from luthier.run import open_run

Input = st.SearchStrategy[bytes]


@dataclass(frozen=True)
class Target:
    """``share`` of all inputs are for it; ``run`` raises on what must not happen."""

    run: Callable[[bytes], None]
    inputs: Input
    share: float


@cache
def scratch() -> Path:
    shared = Path("/dev/shm")  # memory, where there is such
    return Path(tempfile.mkdtemp(prefix="luthier-fuzz-", dir=shared if shared.is_dir() else None))


def mutated(seeds: list[bytes]) -> Input:
    """One of ``seeds`` with some bytes changed, cut out, doubled or put in."""
    edit = st.tuples(
        st.floats(0, 1), st.sampled_from(["change", "cut", "double", "insert", "swap"]),
        st.integers(1, 12), st.binary(min_size=1, max_size=8),
    )  # fmt: skip

    def apply(seed: bytes, edits: list[Any]) -> bytes:
        data = bytearray(seed)
        for place, kind, length, new in edits:
            at = int(place * len(data))
            if kind == "change":
                data[at : at + len(new)] = new
            elif kind == "cut":
                del data[at : at + length]
            elif kind == "double":
                data[at:at] = data[at : at + length] * 3
            elif kind == "insert":
                data[at:at] = new
            else:
                data[at : at + length] = data[at : at + length][::-1]
        return bytes(data)

    return st.builds(apply, st.sampled_from(seeds), st.lists(edit, min_size=0, max_size=6))


# --- recipes ---

GOOD_RECIPE = b"""\
model: {source: smollm2-135m, dtype: auto}
method:
  name: lora
  target_modules: [q_proj, v_proj]
data:
  train: [a.jsonl, "b/*.csv", owner/name:train]
  validation: null
  replay: {source: general.jsonl, share: 0.1}
train: {learning_rate: 1e-4, num_train_epochs: 3, save_steps: 0.5}
evaluate: {metrics: [exact_match, chrf], sql_databases: dbs}
run: {name: first, dir: runs}
"""

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["~x/y", "a\0b", "1e-4", "2026-99-99", "../../x", "smollm2-135m", "a/b:c"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
keys = st.sampled_from(sorted(known_keys()))


def as_recipe(pairs: list[tuple[str, Any]]) -> bytes:
    tree: dict[str, Any] = {"model": {"source": "m"}, "data": {"train": "a.jsonl"}}
    for key, value in pairs:
        group, _, name = key.partition(".")
        tree.setdefault(group, {})[name] = value
    return yaml.safe_dump(tree).encode("utf-8", "surrogatepass")


def run_recipe(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    lines = text.splitlines()
    overrides = [line for line in lines[1:3] if "=" in line]
    with suppress(UserError):
        recipe = parse_recipe(text, overrides)
        full = recipe.with_absolute_paths()
        again = parse_recipe(full.to_yaml())
        assert again.differences(full) == []
        recipe.default_name("x").encode()


# --- data files ---

KINDS = (
    "a.jsonl",
    "a.json",
    "a.csv",
    "a.parquet",
    "a.jsonl.gz",
    "a.json.zst",
    "a.csv.zst",
    "a.csv.gz",
    "a.tsv",
    "a.arrow",
    "a.xlsx",
    "a.ods",
)
ROWS = [
    {"instruction": "i", "input": "", "output": "o"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"prompt": "p", "completion": "c"},
    {"prompt": "p", "chosen": "c", "rejected": "r"},
    {"text": "some text\nof lines"},
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "1"}, {"role": "assistant", "content": "b"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    {
        "system": "s", "history": [["a", "b"]], "functions": [{"name": "f"}], "images": [], "note": 1,
        "messages": [
            {"role": "user", "content": "a", "weight": 1},
            {"role": "assistant", "content": "b", "weight": 0, "reasoning_content": "c", "x": {"y": 1}},
            {"role": "user", "content": [{"type": "text", "value": "a"}]},
            {"role": "assistant", "content": "<think>c</think>d", "training": True},
        ],
    },
]  # fmt: skip


@cache
def file_seeds() -> list[bytes]:
    """A good file of each kind; the first byte of an input says which kind it is."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    table = b'prompt,completion\n"a, b","c\nd"\ne,f\n'
    parquet = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": ["c", None]}), parquet)
    listed = json.dumps(ROWS).encode()
    contents = [
        lines, listed, table, parquet.getvalue(), gzip.compress(lines),
        zstandard.compress(listed), zstandard.compress(table), gzip.compress(table),
    ]  # fmt: skip
    return [bytes([kind]) + content for kind, content in enumerate(contents)]


def any_file(kind: int, row: list[Any]) -> bytes:
    lines = "".join(json.dumps(each) + "\n" for each in row).encode()
    return bytes([kind]) + lines


fields = st.sampled_from(
    [
        *{key for row in ROWS for key in row},
        "system",
        "tools",
        "history",
        "x",
        "question",
        "Answer",
        "label",
    ]
)
turn = st.dictionaries(
    st.sampled_from(
        [
            "role",
            "content",
            "from",
            "value",
            "tool_calls",
            "name",
            "thinking",
            "weight",
            "train",
            "x",
        ]
    ),
    st.sampled_from(["user", "assistant", "gpt", "tool", "", "{}", "[]", 0, 1, 0.5]) | values,
    max_size=5,
)
rows = st.lists(
    st.dictionaries(fields, st.text(max_size=12) | st.lists(turn, max_size=3) | values, max_size=4),
    min_size=1,
    max_size=3,
)


def run_file(data: bytes) -> None:
    kind, content = data[0] if data else 0, data[1:]
    path = scratch() / KINDS[kind % len(KINDS)]
    path.write_bytes(content)
    with suppress(UserError):
        for item in read_rows(str(path)):
            if isinstance(item, BadRow):
                assert str(item)
                continue
            origin, row = item
            try:
                _, conversation = read_row(row, origin)
            except BadRow as bad:
                assert str(bad)
                continue
            json.dumps(conversation.to_row(), default=str)
            assert {field.field for field in unused_fields([conversation])} >= {
                key for key, value in row.items() if key == "note" and value
            }


# --- chat templates ---

TEMPLATES = [family.template for family in CHAT_FAMILIES.values()]
TEMPLATES += [HERMES, MISTRAL_TOOLS, QWEN3, *THINKERS]
PIECES = [
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if m %}",
    "{% endif %}", "{{ bos_token }}", "{{ eos_token }}", "{{ 'a' * 99999999999 }}", "{{ 2 ** 99999 }}",
    "{% set ns = namespace(s='ab') %}", "{% for i in range(40) %}", "{% set ns.s = ns.s ~ ns.s %}",
    "{{ ns.s }}", "{{ messages | tojson }}", "{{ raise_exception('x') }}", "{{ m.__class__ }}",
    "{{ messages.append(1) }}", "{% macro f(x) %}", "{% endmacro %}", "{{ f(1) }}", "{{ x | int }}",
    "{{ '%1000000000d' % 1 }}", "{{ 'x'.center(99999999999) }}", "{{ [1] * 9999999999 }}", "{{ 1 / 0 }}",
    "{{ messages[99].content }}", "{{ m | map(attribute='x') | list }}", "{% break %}", "text\n",
    "{% include 'x' %}", "{% import 'os' as os %}", "{{ strftime_now('%Y') }}", "{{ 9 * 9 * m }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{{ lipsum(n=99999) }}",
    "{% for i in range(99999) %}", "{{ f(f(f(f))) }}", "{{ '{:>99999999999}'.format(1) }}",
]  # fmt: skip


@cache
def tokenizer() -> Any:
    return make_tokenizer(CHAT_FAMILIES["chatml"])


def as_template(template: str, messages: Any) -> bytes:
    return json.dumps({"template": template, "messages": messages}).encode()


message_lists = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "content": st.text(max_size=10) | st.just("<think>\nx\n</think>\n\ny"),
        },
        optional={"reasoning_content": st.text(max_size=4), "train": st.just(False)},
    ),
    min_size=1,
    max_size=4,
)


def run_template(data: bytes) -> None:
    value = json.loads(data)
    tokenizer().chat_template = value["template"]
    with suppress(TemplateRejects, UserError):
        switches = {"enable_thinking": False} if "enable_thinking" in value["template"] else {}
        pinned = pin(value["template"], switches, datetime.date(2024, 7, 6))
        tokenizer().chat_template = pinned
        shape = answer_shape(tokenizer())
        for rendering in renderings(tokenizer(), tuple(value["messages"])):
            for start, end in rendering.spans:
                shape.split(rendering.text[start:end])


# --- run folders ---

RUN = Path(__file__).parents[1] / "run-0.1"
RUN_FILES = (
    "recipe.yaml", "provenance.json", "measured.json", "metrics.jsonl", "evaluation.json", "plan.json",
    "evaluation/answers.jsonl", "data/data-report.json", "adapter/adapter_config.json",
)  # fmt: skip


@cache
def run_seeds() -> list[bytes]:
    """Each file of a run; the first byte of an input says which one it replaces."""
    present = [(place, RUN / name) for place, name in enumerate(RUN_FILES)]
    return [bytes([place]) + file.read_bytes() for place, file in present if file.is_file()]


def run_run(data: bytes) -> None:
    folder = scratch() / "run"
    if not folder.exists():
        shutil.copytree(RUN, folder)
    name = RUN_FILES[data[0] % len(RUN_FILES)] if data else RUN_FILES[0]
    file = folder / name
    file.write_bytes(data[1:])
    try:
        with suppress(UserError):
            run = open_run(folder)
            for read in (run.recipe, run.provenance, run.measured, run.metrics, run.evaluation):
                with suppress(UserError):
                    read()
            for read in (run.plan, run.data_report, run.answered_rows, run.require_trust):
                with suppress(UserError):
                    read()
    finally:
        if (RUN / name).is_file():
            shutil.copy(RUN / name, file)
        else:
            file.unlink()


# --- GGUF ---


@cache
def gguf_seeds() -> list[bytes]:
    from gguf import GGUFWriter

    seeds = []
    for version_of in range(2):
        path = scratch() / "seed.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_uint32("llama.block_count", 1)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
        writer.add_array("numbers", [1, 2, 3])
        writer.add_bool("flag", True)
        writer.add_float32("scale", 1.5)
        for number in range(1 + version_of):
            writer.add_tensor(f"t{number}", np.ones((4, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        seeds.append(path.read_bytes())
    return seeds


def run_gguf(data: bytes) -> None:
    from gguf import GGUFReader

    path = scratch() / "a.gguf"
    path.write_bytes(data)
    with suppress(UserError):
        check_header(path)
        # What passes is handed to the library, whose own errors `convert_gguf` explains.
        with suppress(Exception):
            GGUFReader(path)


# --- requests to a server ---


@cache
def server() -> Any:
    """The app over a run of the tiny model."""
    from helpers import write_rows

    from luthier.run import claim_run
    from luthier.serve.app import create_app
    from luthier.serve.limits import Limits
    from luthier.serve.models import Models
    from luthier.train.fit import fit

    rows = [{"prompt": f"say {n}", "completion": str(n)} for n in range(20)]
    recipe = parse_recipe(
        "",
        [
            f"model.source={save_tiny(scratch() / 'model')}", "model.dtype=float32",
            f"data.train={write_rows(scratch() / 'rows.jsonl', rows)}", "data.max_length=128",
            "train.max_steps=1", "train.warmup_ratio=0", f"run.dir={scratch()}", "run.name=one",
        ],
    )  # fmt: skip
    run = claim_run(recipe, "fuzz")
    fit(recipe, run)
    app = create_app(Models([str(run.root)]), Limits(new_tokens=8, batch=4, choices=4))
    atexit.register(app.state.engine.close)
    return app


def as_request(request: tuple[str, bytes]) -> bytes:
    path, body = request
    return bytes([PATHS.index(path)]) + body


def run_request(data: bytes) -> None:
    path = PATHS[data[0] % len(PATHS)] if data else PATHS[0]
    check_answer(send(server(), path, data[1:]), data[1:])


TARGETS = {
    "recipe": Target(
        run_recipe,
        mutated([GOOD_RECIPE])
        | st.builds(as_recipe, st.lists(st.tuples(keys, values), max_size=5))
        | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")),
        0.2,
    ),
    "data files": Target(
        run_file,
        st.deferred(lambda: mutated(file_seeds()))
        | st.builds(any_file, st.just(0), rows)
        | st.builds(lambda kind, data: bytes([kind]) + data, st.integers(0, 7), st.binary(max_size=80)),
        0.3,
    ),
    "chat template": Target(
        run_template,
        st.builds(
            as_template,
            mutated([t.encode() for t in TEMPLATES]).map(lambda b: b.decode("utf-8", "replace"))
            | st.lists(st.sampled_from(PIECES), min_size=1, max_size=7).map("".join),
            message_lists,
        ),
        0.15,
    ),
    "run folders": Target(run_run, st.deferred(lambda: mutated(run_seeds())), 0.1),
    "gguf": Target(run_gguf, st.deferred(lambda: mutated(gguf_seeds())) | st.binary(max_size=120), 0.15),
    "requests": Target(
        run_request,
        requests.map(as_request)
        | mutated([b"\0" + json.dumps({**RIGHT, "max_tokens": 2, "stream": True}).encode()]),
        0.1,
    ),
}  # fmt: skip
