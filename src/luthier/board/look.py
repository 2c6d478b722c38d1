"""One visual language: the colours of the report, the frame of every page, its small parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

from nicegui import ui
from starlette.requests import Request

from luthier import __version__
from luthier.board.colours import DARK, LIGHT, Palette

_THEME = "luthier-theme"  # the cookie that keeps the choice

_PAGES = (
    ("/", "Runs", "list"),
    ("/new", "New run", "add_circle_outline"),
    ("/compare", "Compare", "balance"),
    ("/sweep", "Sweep", "scatter_plot"),
    ("/advise", "Advise", "alt_route"),
    ("/chat", "Chat", "forum"),
)

# Before anything is drawn: what the person's system prefers, until he chooses.
_FIRST_THEME = f"""<script>
if (!document.cookie.includes('{_THEME}=')) {{
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  document.cookie = '{_THEME}=' + (dark ? 'dark' : 'light') + ';path=/;samesite=strict;max-age=31536000';
  if (dark && document.cookie.includes('{_THEME}=')) location.reload();
}}
</script>"""


def prepare() -> None:
    """What every page has in its head; once."""
    style = files("luthier.board").joinpath("style.css").read_text("utf-8")
    ui.add_head_html(f"<style>{style}</style>{_FIRST_THEME}", shared=True)


def palette(request: Request) -> Palette:
    """The colours of the page that was asked for."""
    return DARK if is_dark(request) else LIGHT


def is_dark(request: Request) -> bool:
    return request.cookies.get(_THEME) == "dark"


@contextmanager
def frame(request: Request, title: str, active: str = "") -> Iterator[None]:
    """A page: its bar, its heading, and what is built inside the block.

    Args:
        title: of the page; text, whatever it says.
        active: the path of the page in the bar.
    """
    dark = is_dark(request)
    ui.dark_mode(dark)
    # Text on the page, and white text on a button, each with enough contrast.
    primary, negative = ("#8ab6e6", "#ff9d94") if dark else ("#2a62a1", "#b3261e")
    ui.colors(primary=primary, negative=negative, filled="#2a62a1")
    ui.page_title(f"{title} · Luthier")
    with ui.header().classes("bar"):
        ui.link("Luthier", "/").classes("brand")
        with ui.element("nav").props('aria-label="Pages"').classes("pages"):
            for path, name, icon in _PAGES:
                link = ui.link(target=path).classes("page-link")
                link.props(f'aria-label="{name}"')
                if path == active:
                    link.props('aria-current="page"')
                with link:
                    ui.icon(icon).props('aria-hidden="true"')
                    ui.label(name).classes("page-name")
        other = "light" if dark else "dark"
        button = ui.button(icon=f"{other}_mode", on_click=lambda: _choose(other))
        button.props(f'flat round dense aria-label="Use {other} colours"').classes("theme")
    with ui.column().classes("content") as content:
        ui.skip_link("Skip to the content", target=content)
        ui.label(title).classes("title").props('role="heading" aria-level="1"')
        yield
        ui.label(f"Luthier {__version__}").classes("soft small foot")


def _choose(theme: str) -> None:
    ui.run_javascript(
        f"document.cookie = '{_THEME}={theme};path=/;samesite=strict;max-age=31536000'; location.reload()"
    )


@contextmanager
def card(title: str, about: str = "") -> Iterator[None]:
    """A part of a page under a heading of its own."""
    with ui.element("section").classes("part"):
        heading(title)
        if about:
            ui.label(about).classes("soft small")
        yield


def heading(text: str, level: int = 2) -> None:
    """A heading inside a page."""
    ui.label(text).classes(f"h{level}").props(f'role="heading" aria-level="{level}"')


SIGNS = {
    "better": "trending_up",
    "worse": "trending_down",
    "mixed": "swap_vert",
    "no evidence": "help_outline",
    "kept": "verified",
    "some forgetting": "warning_amber",
    "forgot": "report",
    "running": "autorenew",
    "finished": "check_circle_outline",
    "stopped": "pause_circle_outline",
    "failed": "error_outline",
    "error": "error_outline",
    "warning": "warning_amber",
    "info": "info_outline",
    "clean": "check_circle_outline",
    "confirmed": "verified",
    "contradicted": "report",
    "undecided": "help_outline",
    "pruned": "content_cut",
    "best": "star_outline",
    "default": "flag",
}
SAID = {"no evidence": "not enough evidence"}


def pill(word: str) -> None:
    """A verdict or a state: a word, its colour and its sign, so that colour is not all."""
    with ui.element("span").classes(f"pill {word.replace(' ', '-')}"):
        ui.icon(SIGNS.get(word, "circle")).props('aria-hidden="true"')
        ui.label(SAID.get(word, word))


def failure(error: Exception) -> None:
    """A mistake in a sentence, where it happened."""
    with ui.element("div").classes("failure").props('role="alert"'):
        ui.icon("error_outline").props('aria-hidden="true"')
        ui.label(str(error)).classes("wrap")


def duration(seconds: float | None) -> str:
    """``95`` as ``1 min 35 s``."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def gigabytes(size: float | None) -> str:
    """Bytes as GiB, or as MiB where two digits of GiB would say little."""
    if size is None:
        return "–"
    return f"{size / 2**30:.2f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:.1f} MiB"
