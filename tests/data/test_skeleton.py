"""Templates that insert contents: the text joined of a skeleton is the one that they render."""

import itertools
from dataclasses import replace

import pytest
from families import CHAT_FAMILIES, QWEN3, make_tokenizer
from jinja2 import nodes
from transformers.utils import chat_template_utils

from luthier.data import spans, template
from luthier.data.looks import Looks, looks_of
from luthier.data.skeleton import Skeleton, stand_in
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
# As Qwen's: the last question is looked for from the end, and an answer may hold a thought.
THINKS = """\
{%- if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% elif messages[0].role == 'system' %}\
{{ messages[0].content ~ '' if tools else messages[0].content + '|' }}{% endif %}\
{% set ns = namespace(more=true, last=messages|length - 1, lead='') %}{% for m in messages[::-1] %}\
{% set index = (messages|length - 1) - loop.index0 %}\
{% if ns.more and m.role == 'user' and m.content is string and not (m.content.startswith('<r>') and \
m.content.endswith('</r>')) %}{% set ns.more = false %}{% set ns.last = index %}{% endif %}{% endfor %}\
{% for m in messages %}{% if m.role in ['user', 'tool'] %}{{ m.role + m.content }}\
{% elif m.role == 'assistant' %}{% set content = m.content %}{% set thought = '' %}\
{% if m.reasoning_content is defined %}{% set thought = m.reasoning_content %}\
{% elif '</t>' in m.content %}{% set content = m.content.split('</t>')[-1] %}{% endif %}\
{% if loop.index0 > ns.last and (loop.last or thought) %}\
{{ '<t>' + thought.strip('\n') + '</t>' + content.lstrip('\n') }}{% else %}{{ content.strip() }}{% endif %}\
{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endif %}\
{% if loop.last or messages[loop.index0 + 1].role != 'user' %}{{ '|' }}{% endif %}{% endfor %}"""
# As Llama 3's: the system prompt is taken off, tools are nothing unless they are given.
TAKES_OFF = """\
{% if not tools is defined %}{% set tools = none %}{% endif %}{% if custom_tools is defined %}\
{{ custom_tools | join }}{% endif %}{% if messages[0]['role'] == 'system' %}\
{% set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}{% else %}\
{% set system = '' %}{% endif %}{{ system if tools is none else tools | tojson }}\
{% for m in messages %}{% if not (m.role == 'ipython' or 'tool_calls' in m.role or m.tool_calls) %}\
{{ m.role + '\n' + m['content'] | trim + '<|e|>' }}{% endif %}{% endfor %}"""
# As DeepSeek's: texts are gathered in a namespace.
GATHERS = """\
{% set ns = namespace(system='', n=0) %}{% for m in messages %}{% if m.role == 'system' %}\
{% set ns.system = ns.system + m.content %}{% endif %}{% endfor %}{{ bos_token + ns.system }}\
{% for m in messages %}{% if m.content is none %}{{ m.content | length }}{% elif m.content and \
m.content is not none and m.role != 'system' %}{{ m.content + eos_token }}{% endif %}{% endfor %}"""
INSERTING = {
    **{name: family.template for name, family in CHAT_FAMILIES.items()},
    "smollm": SMOLLM, "sets": SETS, "qwen3, in short": QWEN3, "thinks": THINKS, "takes off": TAKES_OFF,
    "gathers": GATHERS,
}  # fmt: skip
ASKS = {
    "{% if m.content %}a{% endif %}": Looks(empty=True),
    "{% if 'a' in m.content and b %}a{% endif %}": Looks({"a"}),
    "{% set c = m.content %}{{ 'y' if 'a' not in c else c[0] }}": Looks({"a"}),
    "{{ m.content.strip() }}": Looks(),
    "{{ m.content.rstrip('ab') }}": Looks(edges={"a", "b"}),
    "{% if m.content.startswith('<') or m.x %}{{ m.content[1:] }}{% endif %}": Looks({"<"}),
}

LOOKING = [
    "{% if m.content == 'a' %}a{% endif %}",
    "{{ m.content | replace('a', 'b') }}",
    "{{ m.content | length }}",
    "{{ m.content.lstrip() }}",
    "{{ m.content.strip(m.role).strip() }}",
    "{{ m.content.upper() }}",
    "{{ (m.content + 'a').strip('a') }}",
    "{% if 'a' in m.content + 'a' %}a{% endif %}",
    "{% if m.content in 'abc' %}a{% endif %}",
    "{% if '' in m.content %}a{% endif %}",
    "{% if m.role in m.content %}a{% endif %}",
    "{% if m.content > 'a' %}a{% endif %}",
    "{{ m.content or 'a' }}",
    "{% if (m.content or m.role) == 'a' %}a{% endif %}",
    "{% if not m.content == 'a' %}a{% endif %}",
    "{% if m.content is in ['a'] %}a{% endif %}",
    "{% set a = m.content + 'b' %}{% if 'b' in a %}b{% endif %}",
    "{% set a = m.content %}{% set a = 'b' %}{% if 'b' in a %}b{% endif %}",
    "{% set a = m.content %}{% if a is string %}b{% endif %}",
    "{% set n = namespace(a='') %}{% set n.a = n.a + m.content %}{% if 'b' in n.a %}b{% endif %}",
    "{% set n = namespace(a=1) %}{% set b = n %}{{ b }}",
    "{% set a = messages %}{{ a }}",
    "{% set a = messages[0] %}{{ a }}",
    "{% set a = m %}{% if a.content %}b{% endif %}",
    "{{ messages | map(attribute='content') | join }}",
    "{{ m.items() | list }}",
    "{{ m.get('content') | upper }}",
    "{{ m['content'][0] }}",
    "{% for t in ['a'] %}{% set m = t %}{% endfor %}{{ m.content }}",
    "{% for m in [m.content] %}{{ m }}{% endfor %}",
    "{% for a, b in messages %}{{ a }}{% endfor %}",
    "{% for a in messages[:m.content] %}b{% endfor %}",
    "{{ namespace(a=m.content).a | upper }}",
    "{{ m.content if m.content.isdigit() else 'a' }}",
    "{% set tools = m.content %}{% if tools %}a{% endif %}",
    "{% if bos_token in m.content %}a{% endif %}",
    "{% if lipsum() %}a{% endif %}",
    "{% with a = m.content %}{{ a }}{% endwith %}",
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
    "", "a", "  b \n", "\n\n c", "\u2063 1 \u2063", "\x1f\u20630\u2063\x1f", "<|im_end|>{{ 1 }}", "é🎻",
    "<r>", "<r>a</r>", "\n", "<t>\na</t>\n\nb", "</t>", "r\r\n", "1",
)  # fmt: skip


def compiled(source: str) -> tuple[nodes.Template, object]:
    template = chat_template_utils._compile_jinja_template(source)
    return template.environment.parse(source), template


GIVEN = (*compiled("")[0].environment.globals, "bos_token", "eos_token")  # type: ignore[union-attr]


@pytest.mark.parametrize("name", INSERTING)
def test_a_filled_skeleton_is_the_rendering(name: str) -> None:
    tree, template = compiled(INSERTING[name])
    looks = looks_of(tree, GIVEN)
    assert looks is not None

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
                if all(map(looks.pass_over, contents)):
                    assert skeleton.fill(contents) == rendered(roles, contents, ask)
                    compared += "Error" not in written
    assert compared > 20


def test_what_was_read_wrongly_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first rows are rendered in full, too; where they differ, all are from then on."""
    shown = "{{ m.content if 'x' in m.content else m.content|upper }}"
    source = f"{{% for m in messages %}}[{shown}]{{% endfor %}}"
    tokenizer = make_tokenizer(replace(CHAT_FAMILIES["chatml"], template=source))
    monkeypatch.setattr(template, "looks_of", lambda *_: Looks())
    for _ in range(2):
        for content, written in (("xa", "[xa]"), ("ab", "[AB]")):
            turns = [{"role": "user", "content": content}]
            assert render(tokenizer, turns, add_generation_prompt=False) == written
    assert "run in full" in caplog.text


@pytest.mark.parametrize("body", LOOKING)
def test_a_template_that_looks_at_contents_is_run(body: str) -> None:
    tree, _ = compiled("{% for m in messages %}" + body + "{% endfor %}")
    assert looks_of(tree, GIVEN) is None


@pytest.mark.parametrize("body", ASKS)
def test_what_a_template_asks_of_contents(body: str) -> None:
    tree, _ = compiled("{% for m in messages %}" + body + "{% endfor %}")
    assert looks_of(tree, GIVEN) == ASKS[body]


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
