"""Templates with a run's values written into them, rendered by a real llama.cpp."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from data.thinkers import CLOCK, SWITCH
from shipping import ask_llama_cpp, full_run, needs_llama_cpp
from transformers import AutoTokenizer

from luthier.data.conversation import Message
from luthier.data.pins import pin
from luthier.data.template import render
from luthier.export.gguf_write import write_gguf
from luthier.export.tuned import TunedWeights

QWEN3 = Path(__file__).parents[3] / "shared" / "tokenizers" / "qwen3" / "tokenizer_config.json"
DAY = datetime.date(2026, 3, 4)
FORMATS = "%d %B %Y|%A, %-d %b %y|%F|%j|%H:%M:%S|%Y-%m-%d|%d/%m"
TURNS: list[list[Message]] = [
    [{"role": "user", "content": "What day is it?"}],
    [
        {"role": "system", "content": "Say “%d” and \\n as they are."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two {{ x }}"},
    ],
]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "clock": (CLOCK, {}),
    "formats": (f"{{{{ strftime_now('{FORMATS}') }}}}{CLOCK}", {}),
    "off": (SWITCH, {"enable_thinking": False}),
    "on": (SWITCH, {"enable_thinking": True}),
    "both": ("{{ strftime_now('%d %b %Y') }}" + SWITCH, {"enable_thinking": False}),
    "nothing": ("{{ 'nothing' if style is none else style }}" + SWITCH, {"style": None}),
    "texts": (
        "{{ '<' + style + '>' + amount | string + share | string }}" + SWITCH,
        {"style": 'a "b" \\ {{ c }} %} #} é\n', "amount": 3, "share": 0.5},
    ),
    "qwen3": ("", {"enable_thinking": False}),  # the real one
}


@needs_llama_cpp
@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_renders_what_was_trained(tmp_path: Path, case: str) -> None:
    template, switches = CASES[case]
    if not template:
        if not QWEN3.is_file():
            pytest.skip("Qwen 3's tokenizer is not here")
        template = json.loads(QWEN3.read_text("utf-8"))["chat_template"]
    run = full_run(tmp_path / "run", "llama")
    tokenizer = AutoTokenizer.from_pretrained(run.model_path)
    tokenizer.chat_template = pin(template, switches, DAY)
    tokenizer.save_pretrained(run.model_path)
    file = write_gguf(TunedWeights(run), tmp_path / "x.gguf", "f32", "x").file
    ours = [render(tokenizer, tuple(turns), add_generation_prompt=True) for turns in TURNS]
    answer = ask_llama_cpp(file, chats=TURNS)
    assert answer["template"] == tokenizer.chat_template
    assert answer["rendered"] == ours
