"""A chat template from a stranger: no way out of the sandbox, and bounds on what it takes."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from families import CHAT_FAMILIES, CHATML, make_tokenizer

from luthier.data import bounded
from luthier.data.template import TemplateRejects, render

MESSAGES = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(CHAT_FAMILIES["chatml"])


def rendered(tokenizer: Any, template: str) -> str:
    tokenizer.chat_template = template
    return render(tokenizer, MESSAGES, add_generation_prompt=False)


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0].__class__.__base__ }}",
        "{{ (lipsum.__globals__)['os'] }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
        "{{ self._TemplateReference__context.name }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    ],
)
def test_no_way_out_of_the_sandbox(tokenizer: Any, template: str) -> None:
    try:
        text = rendered(tokenizer, template)
    except TemplateRejects:
        return
    # Jinja makes some of these an undefined value, which prints as nothing.
    assert "uid=" not in text
    assert "root:" not in text
    assert "<class" not in text
    assert "module" not in text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'x' * 99999999999 }}", "repeats something"),
        ("{{ 99999999 * [1] }}", "repeats something"),
        ("{{ 10 ** 10 ** 10 }}", "computes a power"),
        ("{% set n = 99999 * 99999 * 99999 * 99999 * 99999 * 99999 %}{{ n }}", "large numbers"),
        ("{{ '%1000000000d' % 1 }}", "too much memory"),
        ("{{ 'x'.center(9999999999) }}", "too much memory"),
        (
            "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}"
            "{% endfor %}{{ ns.s }}",
            "too much memory",
        ),
        ("{% for i in range(9999999) %}x{% endfor %}", "Range too big"),
    ],
)
def test_bombs_end_at_once(tokenizer: Any, template: str, reason: str) -> None:
    with pytest.raises(TemplateRejects, match=reason):
        rendered(tokenizer, template)


def test_an_endless_loop_ends(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 0.3)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateRejects, match="it ran for over"):
        rendered(tokenizer, loops)


def test_nothing_of_the_bounds_stays(tokenizer: Any) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    assert "<|im_start|>user\na" in rendered(tokenizer, CHATML)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_other_threads_render_without_signals(tokenizer: Any) -> None:
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(rendered(tokenizer, CHATML)))
    thread.start()
    thread.join()
    assert "<|im_start|>user\na" in said[0]


def test_a_template_bomb_is_one_clear_error(
    tokenizer: Any, make_recipe: Any, train: Any, tmp_path: Path
) -> None:
    from luthier.errors import UserError

    bomb = tmp_path / "bomb.jinja"
    bomb.write_text(CHATML + "{{ 'x' * 99999999999 }}")
    with pytest.raises(UserError, match="rows cannot be used"):
        train(make_recipe(f"data.template={bomb}"))
