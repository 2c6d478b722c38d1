"""The board in a browser: Debian's Chromium, real runs, real processes."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from boards import CHROMIUM, EVIL, axe_source, board, browser, violations, wait_until
from families import CHAT_FAMILIES, make_tokenizer
from transformers import LlamaConfig

pytest.importorskip("nicegui", reason="the board needs the extra 'board'")
pytest.importorskip("playwright", reason="these tests drive a browser by Playwright")
if not CHROMIUM.is_file():
    pytest.skip("these tests need Debian's chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder without weights of a model whose full training needs 12.5 GiB, by two blocks alone."""
    folder = tmp_path_factory.mktemp("wide")
    LlamaConfig(
        vocab_size=49152,
        hidden_size=4096,
        intermediate_size=16384,
        num_hidden_layers=2,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    make_tokenizer(CHAT_FAMILIES["chatml"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address(shown_runs: Path, tiny_model: Path, wide_model: Path) -> Iterator[str]:
    folders = [("--data", folder) for folder in (shown_runs.parent, tiny_model, wide_model)]
    with board(shown_runs, *chain.from_iterable(folders)) as found:
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


# Resolves once nothing on the page has changed for a quarter of a second.
_STILL = """new Promise(done => {
    let timer = 0
    const observer = new MutationObserver(() => later())
    const later = () => {
        clearTimeout(timer)
        timer = setTimeout(() => { observer.disconnect(); done() }, 250)
    }
    observer.observe(document, {subtree: true, childList: true, attributes: true, characterData: true})
    later()
})"""


def settle(tab: Any) -> None:
    tab.wait_for_selector(".title")
    tab.evaluate(_STILL)


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_every_page_is_accessible_fits_and_shows_no_strangers_elements(
    tab: Any, theme: str, width: int
) -> None:
    axe = axe_source()
    tab.context.add_cookies([{"name": "luthier-theme", "value": theme, "url": tab.root}])
    tab.set_viewport_size({"width": width, "height": 900})
    found = {}
    for name, where in everywhere(tab.root).items():
        tab.goto(where)
        settle(tab)
        assert ("body--dark" in (tab.get_attribute("body", "class") or "")) == (theme == "dark")
        wider = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        found[name] = (violations(tab, axe) if axe else []) + (
            [f"{wider} px too wide"] if wider > 0 else []
        )
        for details in tab.locator("details").all():
            details.evaluate("node => { node.open = true }")
        made = tab.evaluate("document.querySelectorAll('.content img, img[src=x]').length")
        found[name] += [f"{made} elements of a hostile text"] if made else []
    tab.set_viewport_size({"width": 1280, "height": 900})
    assert found == {name: [] for name in found}
    assert tab.dialogs == [] and tab.errors == []
    assert tab.seen <= {"127.0.0.1", ""}
    if axe is None:
        pytest.skip("all but what axe-core looks at, which cannot be fetched from npm")


def test_names_rows_and_answers_are_text_and_no_request_leaves_this_machine(tab: Any) -> None:
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
    assert tab.evaluate("document.querySelectorAll('.content img, img[src=x]').length") == 0
    tab.goto(f"{tab.root}/compare/approaches")
    settle(tab)
    assert tab.get_by_text(EVIL).count() > 0
    assert tab.dialogs == [] and tab.errors == []
    assert tab.seen <= {"127.0.0.1", ""}


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


def test_data_are_uploaded_and_a_plan_is_made_to_fit(
    tab: Any, wide_model: Path, shown_runs: Path
) -> None:
    tab.goto(f"{tab.root}/new")
    for name, option in (("method.name", "full"), ("Device", "RTX 3060 12GB")):
        tab.get_by_role("combobox", name=name).click()
        tab.get_by_role("option", name=option).click()
    tab.get_by_label("Model", exact=True).fill(str(wide_model))
    tab.locator("input[type=file]").set_input_files(shown_runs.parent / "rows.jsonl")
    path = tab.get_by_label("Path, several with commas")
    kept = shown_runs / ".board/uploads/rows.jsonl"
    wait_until(lambda: path.input_value() == str(kept), "the path of the upload is filled in")
    assert kept.read_bytes() == (shown_runs.parent / "rows.jsonl").read_bytes()
    tab.get_by_text("of 11.82 GiB: it does not fit").wait_for()
    # More than the device has is drawn beyond its mark.
    width, limit = (
        tab.locator(".stack").evaluate(f"e => {of}")
        for of in (
            "e.lastElementChild.previousElementSibling.getBoundingClientRect().right",
            "e.lastElementChild.getBoundingClientRect().left",
        )
    )
    assert width > limit
    tab.get_by_role("button", name="Make it fit").click()
    tab.get_by_text("of 11.82 GiB: it fits").wait_for()
    # Small micro-batches would save under 1% here, with rows so short: they are left as they were.
    optim, batch = (
        tab.get_by_label(f"train.{name}", exact=True)
        for name in ("optim", "per_device_train_batch_size")
    )
    assert optim.input_value() == "paged_adamw_8bit"
    assert batch.input_value() == ""


def test_several_runs_answer_and_a_thumb_is_a_row(tab: Any, shown_runs: Path) -> None:
    tab.goto(f"{tab.root}/chat?run=first")
    tab.get_by_label("Temperature").fill(
        "2"
    )  # first, so that it is there in time; no two answers are the same
    tab.get_by_label("Longest answer, in tokens").fill("32")
    tab.get_by_role("combobox", name="Runs").click()
    tab.get_by_role("option", name=EVIL).click()
    tab.keyboard.press("Escape")
    scale = tab.get_by_role("slider", name="Scale of the adapter")
    for _ in range(5):
        scale.locator("[tabindex]").press("ArrowRight")
    wait_until(lambda: scale.get_attribute("aria-valuenow") == "1.5", "the slider moves by keys")
    tab.get_by_label("Your question").fill("Repeat the number 3")
    tab.get_by_role("button", name="Ask").click()
    tab.get_by_role("button", name="Tuned answer 3 is best").wait_for()
    shown = [answer.strip() for answer in tab.locator(".turn .text").all_inner_texts()]
    assert len(set(shown)) == 3
    tab.get_by_role("button", name="Tuned answer 2 is best").click()
    tab.get_by_text("first is preferred: 2 kept").wait_for()
    lines = (shown_runs / ".board/preferences.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row, rejected in zip(rows, (shown[0], shown[2]), strict=True):
        assert row["prompt"] == [{"role": "user", "content": "Repeat the number 3"}]
        assert row["chosen"][0]["content"].split() == shown[1].split()
        assert row["rejected"][0]["content"].split() == rejected.split()


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
