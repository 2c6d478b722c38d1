"""The board in a browser: Debian's Chromium, real runs, real processes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from boards import CHROMIUM, EVIL, axe_source, board, browser, violations, wait_until

pytest.importorskip("nicegui", reason="the board needs the extra 'board'")
pytest.importorskip("playwright", reason="these tests drive a browser by Playwright")
if not CHROMIUM.is_file():
    pytest.skip("these tests need Debian's chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def address(shown_runs: Path, tiny_model: Path) -> Iterator[str]:
    with board(shown_runs, "--data", shown_runs.parent, "--data", tiny_model) as found:
        yield found.address


@pytest.fixture(scope="module")
def tab(address: str) -> Iterator[Any]:
    with browser() as page:
        page.goto(address)
        page.wait_for_selector(".ag-row")
        page.root = address.partition("/?")[0]
        yield page


def everywhere(root: str) -> dict[str, str]:
    return {
        "runs": f"{root}/",
        "run": f"{root}/run/first",
        "new": f"{root}/new",
        "advise": f"{root}/advise",
        "chat": f"{root}/chat?run=first",
        "comparisons": f"{root}/compare",
        "variants": f"{root}/compare/comparison",
        "approaches": f"{root}/compare/approaches",
        "sweeps": f"{root}/sweep",
        "sweep": f"{root}/sweep/first",
        "begun sweep": f"{root}/sweep/begun",
        "trial": f"{root}/run/first:000",
    }


def settle(tab: Any) -> None:
    tab.wait_for_selector(".title")
    tab.wait_for_timeout(700)


def test_no_request_leaves_this_machine_and_no_script_fails(tab: Any) -> None:
    for where in everywhere(tab.root).values():
        tab.goto(where)
        settle(tab)
    assert tab.seen <= {"127.0.0.1", ""}
    assert tab.errors == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_is_accessible_and_fits(tab: Any, theme: str, width: int) -> None:
    axe = axe_source()
    if axe is None:
        pytest.skip("axe-core cannot be fetched from npm")
    tab.context.add_cookies([{"name": "luthier-theme", "value": theme, "url": tab.root}])
    tab.set_viewport_size({"width": width, "height": 900})
    found = {}
    for name, where in everywhere(tab.root).items():
        tab.goto(where)
        settle(tab)
        assert ("body--dark" in (tab.get_attribute("body", "class") or "")) == (theme == "dark")
        wider = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        found[name] = violations(tab, axe) + ([f"{wider} px too wide"] if wider > 0 else [])
    tab.set_viewport_size({"width": 1280, "height": 900})
    assert found == {name: [] for name in found}


def test_names_rows_and_answers_are_text(tab: Any) -> None:
    tab.goto(tab.root)
    tab.wait_for_selector(".ag-row")
    assert tab.get_by_text(EVIL, exact=True).count() > 0
    tab.locator(".ag-selection-checkbox input, .ag-checkbox-input").first.click()  # its curves too
    settle(tab)
    tab.goto(f"{tab.root}/run/{quote(EVIL, safe='')}")
    settle(tab)
    for details in tab.locator("details").all():
        details.evaluate("node => { node.open = true }")
    tab.wait_for_timeout(500)
    text = tab.inner_text("body")
    for part in (EVIL, "<script>alert(2)</script>", "${alert(3)}", "{{alert(5)}}"):
        assert part in text
    tab.goto(f"{tab.root}/chat?run={quote(EVIL, safe='')}")
    settle(tab)
    for where in everywhere(tab.root).values():
        tab.goto(where)
        settle(tab)
        for details in tab.locator("details").all():
            details.evaluate("node => { node.open = true }")
        assert tab.evaluate("document.querySelectorAll('.content img, img[src=x]').length") == 0
    tab.goto(f"{tab.root}/compare/approaches")
    assert tab.get_by_text(EVIL).count() > 0
    assert tab.dialogs == []


def test_the_verdict_is_seen_before_any_figure(tab: Any) -> None:
    tab.goto(f"{tab.root}/sweep")
    tab.get_by_role("link", name="first", exact=True).click()
    tab.wait_for_url("**/sweep/first")
    first = tab.locator(".answer").first
    assert first.locator(".pill").first.inner_text().endswith("better")
    picture = first.locator(".axis.better")
    assert "trial 12 against the recipe as it was given: -0.598" in str(
        picture.get_attribute("aria-label")
    )
    # Better is right of the middle, though a better loss is lower.
    middle = picture.bounding_box()
    mark = picture.locator("b").bounding_box()
    assert mark["x"] > middle["x"] + middle["width"] / 2
    tab.get_by_role("link", name="trial 0", exact=True).click()
    tab.wait_for_url("**/run/first:000")
    tab.get_by_text("Is it better at the task?").wait_for()
    tab.get_by_text("Files", exact=True).click()
    with tab.expect_navigation():
        tab.get_by_role("link", name="recipe.yaml").click()
    assert "model:" in tab.inner_text("body")


def test_runs_that_are_selected_are_compared(tab: Any) -> None:
    tab.goto(tab.root)
    boxes = tab.locator(
        ".ag-center-cols-container input[type=checkbox], .ag-pinned-left-cols-container input"
    )
    boxes.nth(1).wait_for()
    boxes.nth(0).click()
    boxes.nth(1).click()
    tab.get_by_text("Which of them is better").wait_for()
    tab.get_by_text("rows that all of them answered").wait_for()
    assert tab.locator(".forest .axis.no-evidence").count() > 0


def test_the_filter_finds_and_tags_are_kept(tab: Any, shown_runs: Path) -> None:
    tab.goto(tab.root)
    tab.wait_for_selector(".ag-row")
    tab.get_by_label("Filter the runs").fill("good")
    tab.wait_for_function(
        "document.querySelectorAll('.ag-center-cols-container .ag-row').length === 1"
    )
    tab.locator(".ag-center-cols-container input[type=checkbox]").first.click()
    tab.get_by_label("Tag", exact=True).fill("best")
    tab.get_by_role("button", name="Add to selected").click()
    wait_until(lambda: "best" in (shown_runs / ".board/tags.json").read_text(), "the tag is kept")


def test_advice_is_a_path_that_ends_in_a_recipe(tab: Any) -> None:
    tab.goto(f"{tab.root}/advise")
    for answer in ("yes", "yes", "one task, or closely related ones", "no, tried and measured"):
        tab.get_by_role("button", name=answer, exact=True).click()
        tab.wait_for_timeout(200)
    tab.get_by_role("checkbox", name="a fixed output format").click()
    tab.get_by_role("button", name="Next").click()
    for text in ("2000",):
        tab.get_by_label("Your answer").fill(text)
        tab.get_by_role("button", name="Next").click()
    tab.get_by_role("button", name="yes", exact=True).click()
    for text in ("smollm2-135m", "0"):
        tab.get_by_label("Your answer").fill(text)
        tab.get_by_role("button", name="Next").click()
        tab.wait_for_timeout(200)
    tab.get_by_role("button", name="a balance of quality, time and memory").click()
    tab.get_by_text("The advice: fine-tune (lora)").wait_for()
    tab.get_by_role("button", name="Go on to a new run").click()
    tab.wait_for_url("**/new?draft=*")
    assert tab.get_by_label("Model", exact=True).input_value() == "smollm2-135m"
