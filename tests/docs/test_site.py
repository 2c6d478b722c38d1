"""The site builds strictly, asks nobody for anything, and can be read, searched and used by everyone."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from boards import CHROMIUM, axe_source, browser, violations

ROOT = Path(__file__).parents[2]
SHOWN = (
    *("index", "guides/methods", "examples/extraction", "how-to/from-axolotl", "concepts/run"),
    *("reference/api", "notebooks/train-and-prove"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it, where nothing outside can be reached."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            **nowhere,
            "NO_MKDOCS_2_WARNING": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return folder


class _Fetched(HTMLParser):
    """What a page makes a browser fetch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.found.append(given.get("src") or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "icon", "preload"):
            self.found.append(given.get("href") or "")


def test_no_page_fetches_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        parser = _Fetched()
        parser.feed(page.read_text("utf-8"))
        assert [place for place in parser.found if re.match(r"(\w+:)?//", place)] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\((['\"]?)(https?:)?//", sheet.read_text("utf-8")), sheet


def test_every_command_and_every_name_of_the_door_has_its_place(site: Path) -> None:
    import luthier

    commands = (site / "reference/commands.html").read_text("utf-8")
    listed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, 'tools'); import docs_site, typer\n"
            "from luthier.cli import main\nfrom luthier.cli.app import app\n"
            "for name, _ in docs_site.leaves(typer.main.get_command(app), 'luthier'): print(name)",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(listed) > 25
    for name in listed:
        assert f'<h2 id="{name.replace(" ", "-")}">' in commands, name
    api = (site / "reference/api.html").read_text("utf-8")
    for name in set(luthier.__all__) - {"__version__"}:
        assert re.search(rf'<h2 id="luthier\.\w+\.{name}"', api), name


def test_formulas_are_drawn_by_the_browser(site: Path) -> None:
    page = (site / "guides/methods.html").read_text("utf-8")
    assert page.count('<math tabindex="0"') >= 6
    assert "arithmatex" not in page and "$" not in re.sub(
        r"<script.*?</script>", "", page, flags=re.S
    )


@pytest.fixture(scope="module")
def tab(site: Path) -> Iterator[Any]:
    pytest.importorskip("playwright", reason="these tests drive a browser by Playwright")
    if not CHROMIUM.is_file():
        pytest.skip("these tests need Debian's chromium")
    with browser() as page:
        yield page


def test_the_search_works_from_the_disk(site: Path, tab: Any) -> None:
    tab.goto((site / "index.html").as_uri())
    tab.locator("input.md-search__input").click()
    tab.keyboard.type("early_stopping_patience")
    tab.wait_for_selector(".md-search-result__link[href*='recipe.html']", state="attached")
    assert tab.seen <= {None, ""} and tab.errors == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_pages_are_accessible_and_fit(site: Path, tab: Any, scheme: str, width: int) -> None:
    axe = axe_source()
    if axe is None:
        pytest.skip("axe-core cannot be fetched from npm")
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 900})
    found = {}
    for name in SHOWN:
        tab.goto((site / f"{name}.html").as_uri())
        tab.wait_for_function(
            "document.querySelectorAll('.md-code__nav:not([aria-label])').length == 0"
        )
        shown = tab.get_attribute("body", "data-md-color-scheme")
        assert shown == ("slate" if scheme == "dark" else "default")
        wider = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        found[name] = violations(tab, axe) + ([f"{wider} px too wide"] if wider > 0 else [])
    assert found == {name: [] for name in found}
    assert tab.seen <= {None, ""} and tab.errors == []
