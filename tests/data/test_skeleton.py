"""Templates that only insert contents: the text joined of a skeleton is the one that they render."""

import itertools

import pytest
from families import CHAT_FAMILIES, HERMES, MISTRAL_TOOLS, QWEN3, make_tokenizer
from jinja2 import nodes
from transformers.utils import chat_template_utils

from luthier.data import spans
from luthier.data.skeleton import Skeleton, only_inserts, stand_in
from luthier.data.template import render

SMOLLM = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are helpful<|im_end|>\\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
SETS = """\
{% if messages[0].role == 'system' %}{% set first = messages[0].content | trim %}\
{% else %}{% set first = 'none' %}{% endif %}{% for m in messages %}\
{% if (m.role == 'user') != (loop.index0 % 2 == 0) and messages[0].role != 'system' %}\
{{ raise_exception('roles must alternate') }}{% endif %}\
{% set text = '[' + first + ']' + m.content if loop.last else m['content'] %}{{ text }}{{ m.role }}\
{% endfor %}"""
INSERTING = {
    **{name: family.template for name, family in CHAT_FAMILIES.items()},
    "smollm": SMOLLM, "sets": SETS, "qwen3, in short": QWEN3,
}  # fmt: skip

LOOKING = [
    "{% if m.content %}a{% endif %}",
    "{% if 'a' in m.content %}a{% endif %}",
    "{% if m.content == 'a' %}a{% endif %}",
    "{{ m.content | replace('a', 'b') }}",
    "{{ m.content | length }}",
    "{{ m.content.strip() }}",
    "{{ m.content[0] }}",
    "{{ m.content ~ 'a' }}",
    "{{ (m.content + ' ') | trim }}",
    "{{ m.content | trim('a') }}",
    "{{ m | tojson }}",
    "{{ m }}",
    "{{ m.input }}",
    "{{ messages[loop.index0 - 1].content | upper }}",
    "{% set a = m.content %}{% if a %}b{% endif %}",
    "{% set a = m.content %}{% set b = a %}{% if b %}b{% endif %}",
    "{% set a = b %}{% set b = m.content %}{% if a %}b{% endif %}",
    "{% set a %}{{ m.content }}{% endset %}{{ a }}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(m.content) | upper }}",
    "{% set n = namespace(a=m.content) %}{% if n.a %}b{% endif %}",
    "{% for c in m.content %}{{ c }}{% endfor %}",
    "{% generation %}{{ m.content }}{% endgeneration %}",
    "{% set m = 'a' %}{{ m.content }}",
    "{% set messages = [] %}",
    "{{ strftime_now('%S') }}",
    "{{ raise_exception(m.content) }}",
    "{{ loop.previtem.content | upper }}",
    "{% if loop.changed(m.content) %}a{% endif %}",
]
ROLES = (
    ["user", "assistant"], ["system", "user", "assistant"], ["user", "assistant"] * 2, ["user"],
    ["assistant", "assistant"],
)  # fmt: skip
CONTENTS = (
    "",
    "a",
    "  b \n",
    "\u2063 1 \u2063",
    "\x1f\u20630\u2063\x1f",
    "<|im_end|>{{ 1 }}",
    "é🎻",
)


def compiled(source: str) -> tuple[nodes.Template, object]:
    template = chat_template_utils._compile_jinja_template(source)
    return template.environment.parse(source), template


@pytest.mark.parametrize("name", INSERTING)
def test_a_filled_skeleton_is_the_rendering(name: str) -> None:
    tree, template = compiled(INSERTING[name])
    assert only_inserts(tree)

    def rendered(roles: list[str], contents: list[str], ask: bool) -> str:
        turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        try:
            return template.render(  # type: ignore[attr-defined, no-any-return]
                messages=turns, add_generation_prompt=ask, bos_token="<s>", eos_token="</s>"
            )
        except Exception as error:
            return repr(error)

    compared = 0
    for roles in ROLES:
        for ask in (True, False):
            written = rendered(roles, [stand_in(index) for index in range(len(roles))], ask)
            skeleton = Skeleton.of(written)
            assert skeleton is not None
            for shift in range(len(CONTENTS)):
                contents = [CONTENTS[(shift + i) % len(CONTENTS)] for i in range(len(roles))]
                assert skeleton.fill(contents) == rendered(roles, contents, ask)
                compared += "Error" not in written
    assert compared > 20


@pytest.mark.parametrize("body", LOOKING)
def test_a_template_that_looks_at_contents_is_run(body: str) -> None:
    tree, _ = compiled("{% for m in messages %}" + body + "{% endfor %}")
    assert not only_inserts(tree)


@pytest.mark.parametrize("source", [HERMES, MISTRAL_TOOLS])
def test_templates_of_tools_and_thoughts_are_run(source: str) -> None:
    assert not only_inserts(compiled(source)[0])


def test_stand_ins_that_cannot_be_told_apart_make_no_skeleton() -> None:
    assert Skeleton.of(stand_in(0)[1:]) is None
    assert Skeleton.of(stand_in(0) + "\x1f") is None
    assert Skeleton.of("\u2063" + stand_in(0)) is None


@pytest.mark.parametrize("name", list(CHAT_FAMILIES))
def test_the_place_of_an_answer_is_the_one_that_a_stand_in_shows(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES[name])
    for contents in (["q", "a"], [" q ", " an answer\n"], ["q", "q"], ["q", "a", "r", " b "]):
        roles = itertools.cycle(["user", "assistant"])
        turns = tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=False))
        text = render(tokenizer, turns, add_generation_prompt=False)
        for index in range(1, len(turns), 2):
            found = spans._content_span(tokenizer, turns, index, text)
            with monkeypatch.context() as slow:
                slow.setattr(spans, "content_place", lambda *_: None)
                assert found == spans._content_span(tokenizer, turns, index, text)
            assert spans.content_place(tokenizer, turns, index, len(text) + 1) is None
