"""The explorer in a real browser, end to end, by keyboard where a mouse is not needed; skipped without one."""

import queue
import re
import shutil
import threading
from pathlib import Path

import pytest
from birds_run import shared_folder
from explored_run import copied, explored, explored_values

from cbm.app import Explorer
from cbm.app.effect import effect_on_split
from cbm.app.filters import HAVE
from cbm.app.session import Session
from cbm.data.concept_answers import read_concept_answers

pytest.importorskip("gradio", reason="the explorer is not installed (the extra app)")
playwright = pytest.importorskip("playwright.sync_api", reason="no browser driver (the extra browser)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


def serve(explorer: Explorer) -> str:
    """The explorer of a small run, served as the command serves it; returns its address."""
    from cbm.app.page import launch

    opened: queue.Queue[str] = queue.Queue()
    threading.Thread(target=launch, args=(explorer,), kwargs={"opened": opened.put}, daemon=True).start()
    return opened.get(timeout=1200)


@pytest.fixture(scope="module")
def address() -> str:
    return serve(explored())


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address: str):
    """A tab of its own; nothing it loads comes from elsewhere, and nothing fails in it."""
    context = browser.new_context(viewport={"width": 1360, "height": 1000})
    page, asked, failed = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.set_default_timeout(600_000)
    page.goto(address)
    page.wait_for_selector("#explanation .bar")
    yield page
    kept = page.evaluate("[...Object.keys(localStorage), ...Object.keys(sessionStorage), document.cookie].join()")
    context.close()
    assert "history" not in kept
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert failed == []


def press(page, name: str) -> None:
    """Reach a button by the keyboard and press it."""
    button = page.get_by_role("button", name=name, exact=True)
    button.focus()
    page.keyboard.press("Enter")


def test_why_change_it_and_see(page, address: str, browser):
    """Explain, hold a concept, move its value: probabilities follow; another tab knows nothing of it; undo."""
    first = page.locator("#explanation .bar").first
    text = first.locator(".name").inner_text()
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#panel b:has-text('{text}')")
    assert page.evaluate("document.activeElement.dataset.key") is not None  # drawn again, still where the hand was
    before = page.locator("#verdict .number").first.inner_text()
    page.locator("#value input[type=range]").focus()
    for _ in range(4):
        page.keyboard.press("PageDown")
    page.wait_for_selector("#explanation .bar.edited")
    page.wait_for_function(f"document.querySelector('#verdict .number').innerText !== '{before}'")
    page.wait_for_selector("text=Edits: 1")

    other = browser.new_page()
    other.goto(address)
    other.wait_for_selector("text=Edits: none", timeout=600_000)
    other.close()

    press(page, "Undo")
    page.wait_for_selector("text=Edits: none")
    page.wait_for_function(f"document.querySelector('#verdict .number').innerText === '{before}'")
    press(page, "Undo")
    page.wait_for_selector("text=there is no edit to undo")


def test_remove_run_over_the_split_and_save(page):
    explorer = explored()
    page.locator("#explanation .bar").first.click()
    page.wait_for_selector("#panel b")
    page.get_by_role("radio", name="all pictures").check()
    press(page, "Remove")
    page.wait_for_selector("text=Edits: 1")
    page.get_by_role("tab", name="Whole split").click()
    press(page, "Run the edits over the split")
    page.wait_for_selector("#effect .figures")
    shown = page.locator("#effect .figures b").all_inner_texts()
    press(page, "Save edits")
    saved = Path(page.locator(".saved-at code").first.inner_text())
    assert saved.parent == explorer.model.path
    tab = Session(explorer)
    tab.read(saved.name)
    saved.unlink()
    effect = effect_on_split(tab)
    assert [int(number) for number in shown[-3:]] == [effect.gained, effect.lost, effect.flipped]
    assert shown[1] == f"{100 * effect.shown[0][1]:.2f}%"
    assert tab.edits.edits[0].op == "remove"


def test_dropped_files(page, tmp_path: Path):
    (tmp_path / "page.png").write_text("<script>window.hurt = true</script>")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "page.png")
    page.wait_for_selector("text='page.png' is no picture that can be read")
    explored().picture(3).image.save(tmp_path / "<b>bird.png")
    page.reload()
    page.wait_for_selector("#explanation .bar")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "<b>bird.png")
    page.wait_for_selector("text=true class not known")
    (tmp_path / "<img src=x onerror='window.hurt = 1'>.png").write_text("no picture")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "<img src=x onerror='window.hurt = 1'>.png")
    page.wait_for_selector("text=is no picture that can be read")
    assert page.evaluate("window.hurt") is None


def test_where_which_class_which_concept(page):
    """Search, heat map, classes, concepts, and back to a picture from a tile."""
    explorer = explored()
    page.get_by_label("Find a concept").first.press_sequentially("yellow belly")
    page.wait_for_selector("#found .bar")
    page.locator("#found .bar").first.click()
    page.wait_for_selector("#panel b")
    press(page, "Where is the concept seen?")
    page.wait_for_selector(".heat img")
    page.get_by_role("tab", name="Classes").click()
    page.wait_for_selector("#class-concepts .bar")
    assert re.search(r"pictures\s+6", page.locator("#class-page").inner_text())
    page.get_by_role("tab", name="Concepts").click()
    page.locator("#concept-list .row").first.click()
    page.wait_for_selector(f"#concept-page h3:has-text('{explorer.bank.texts[0]}')")
    tile = page.locator("#concept-page .tile").first
    row = int(tile.get_attribute("data-key"))
    tile.click()
    page.wait_for_selector(f"#picture img[alt='{explorer.images.names[row]}']")


def test_is_it_true_by_keys_and_by_buttons(page):
    table = explored().model.path / "labels.csv"
    table.unlink(missing_ok=True)
    page.get_by_role("tab", name="Is it true?").click()
    page.wait_for_selector("#truth img")
    page.keyboard.press("y")
    page.wait_for_selector("#truth :text('1 answers about 1 classes')")
    press_answer = page.locator("#truth button[data-key=no]")
    press_answer.click()
    page.wait_for_selector("#truth :text('2 answers about 2 classes')")
    assert [answer.shown for answer in read_concept_answers(table)] == [True, False]
    page.keyboard.press("u")
    page.wait_for_selector("#truth :text('1 answers about 1 classes')")
    table.unlink()


def test_units_are_looked_for_and_named(browser):
    """Unnamed ones only, their pictures, another name in the run directory, and back."""
    explorer = Explorer(copied(), shared_folder() / "cache")
    page = browser.new_page(viewport={"width": 1360, "height": 1000})
    page.set_default_timeout(600_000)
    page.goto(serve(explorer))
    page.wait_for_selector("#explanation .bar")
    page.get_by_role("tab", name="Concepts").click()
    page.get_by_label("unnamed", exact=True).check()
    unnamed = sum(text.startswith("unnamed") for text in explorer.bank.texts)
    page.wait_for_selector(f"#concept-list p:has-text('{unnamed} concepts')")
    first = page.locator("#concept-list .row.unnamed").first
    text = first.inner_text()
    first.click()
    page.wait_for_selector(f"#concept-page h3.unnamed:has-text('{text}')")
    page.locator("#new-name textarea, #new-name input").first.fill("odd tail")
    press(page, "Rename")
    page.wait_for_selector("#concept-page h3:has-text('odd tail')")
    assert f"It was called {text}" in page.locator("#concept-page").inner_text()
    assert "odd tail" in (explorer.model.path / "bank" / "bank.json").read_text()
    press(page, "Take the name back")
    page.wait_for_selector(f"#concept-page h3.unnamed:has-text('{text}')")
    page.close()


def test_labels_and_values(browser):
    """A label is filtered, a value of several chosen, a number moved in its unit; nothing can be done before a
    concept is held."""
    explorer = explored_values()
    page = browser.new_page(viewport={"width": 1360, "height": 1000})
    failed: list[str] = []
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    page.set_default_timeout(600_000)
    page.goto(serve(explorer))
    page.wait_for_selector("#explanation .bar")
    for name in ("Present", "Absent", "Mask", "Remove", "Save edits"):
        assert page.get_by_role("button", name=name, exact=True).is_disabled()
    assert page.locator("#value input[type=range]").is_disabled()
    assert page.locator("#verdict .tick").count() == 2
    page.locator("#explanation .bar", has_text="hue: red").click()
    page.locator("#one-of").get_by_label("blue", exact=True).check()
    page.wait_for_selector("#panel b:has-text('hue: blue')")
    page.wait_for_selector("text=Edits: 3")
    page.locator("#explanation .bar", has_text="glow").click()
    page.wait_for_selector("#panel p:has-text('value in cd')")
    assert page.get_by_role("button", name="Present", exact=True).is_disabled()
    assert page.get_by_role("button", name="Mask", exact=True).is_enabled()
    assert page.locator("#one-of").count() == 0 or page.locator("#one-of").is_hidden()
    page.locator("#value input[type=range]").focus()
    page.keyboard.press("PageUp")
    page.wait_for_selector("text=Edits: 4")
    page.locator("#kinds input").click()
    page.get_by_role("option", name=HAVE, exact=True).click()
    expected = int((explorer.split.y == 1).any(dim=1).sum())
    page.wait_for_selector(f"#gallery p:has-text('{expected} pictures')")
    page.get_by_role("tab", name="Labels").click()
    page.wait_for_selector("#class-page :text('left alone')")
    page.close()
    assert failed == []


def test_why_it_fails_and_what_repairs_it(page, address: str, browser):
    """The newcomer's path: a confusion, its pictures, a concept, out with it, before and after; and its address."""
    explorer = explored()
    page.get_by_role("tab", name="Where it fails").click()
    page.locator("#fails td.off button").first.click()
    page.wait_for_selector("#gallery .chip")
    chip = page.locator("#gallery .chip").first.inner_text()
    name = next(name for name in explorer.classes if f"taken for {name}" in chip)
    assert {title.split("said: ")[1] for title in page.locator("#gallery .tile").evaluate_all(
        "tiles => tiles.map((tile) => tile.title)")} == {name}  # fmt: skip
    page.locator("#explanation .bar").first.click()
    page.wait_for_selector("#held .link")
    page.wait_for_function("location.hash.includes('concept=') && location.hash.includes('said=')")
    seen = page.url
    other = browser.new_page()
    other.goto(seen)
    other.wait_for_selector("#gallery .chip")
    assert other.locator("#gallery .chip").first.inner_text() == chip
    other.wait_for_selector("#panel b")
    assert other.locator("#panel b").first.inner_text() == page.locator("#panel b").first.inner_text()
    other.close()
    page.locator("#held .link", has_text="high").click()
    page.wait_for_function("location.hash.includes('high=')")
    page.go_back()
    page.wait_for_function("location.hash.includes('said=')")
    page.wait_for_selector(f"#gallery .chip:has-text('taken for {name}')")
    page.locator("#gallery .chip").first.click()
    page.wait_for_selector("#gallery .chip", state="detached")
    page.locator("#words textarea, #words input").first.fill("yellow belly -black tail")
    page.keyboard.press("Enter")
    page.wait_for_selector("#gallery .chip:has-text('yellow belly')")
    press(page, "Similar pictures")
    page.wait_for_selector("#gallery .chip:has-text('like picture')")
    page.get_by_role("radio", name="all pictures").check()
    press(page, "Remove")
    page.wait_for_selector("text=Edits: 1")
    page.get_by_role("tab", name="Whole split").click()
    press(page, "Run the edits over the split")
    page.wait_for_selector("#timeline tr.now")
    page.locator("#timeline .link").first.click()
    page.wait_for_selector("text=Edits: none")


def test_a_part_of_the_picture(page):
    box = page.locator("#picture .whole img").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.9 * box["height"], steps=4)
    page.wait_for_selector("#picture .drawn")
    page.mouse.up()
    page.wait_for_selector("#picture figcaption:has-text('(20%, 30%, 80%, 90%)')")
    page.wait_for_selector("text=true class not known")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(browser, address: str, scheme: str):
    """No serious violation of the rules that axe checks (names of controls, contrast, order, roles), on any tab."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe (the extra browser)").Axe()
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    page, found = context.new_page(), []
    page.set_default_timeout(600_000)
    page.goto(address)
    page.wait_for_selector("#gallery .tile")
    page.locator("#explanation .bar").first.click()
    page.wait_for_selector("#panel b")
    shown = {
        "Picture": "#gallery .tile",
        "Where it fails": "#fails table",
        "Map": "#map canvas",
        "Whole split": "#effect",
        "Classes": "#class-page .figures",
        "Concepts": "#concept-list .row",
        "Is it true?": "#truth img",
        "Another domain": "#suggestion",
    }
    for tab, seen in shown.items():
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_selector(seen, state="attached")
        if tab == "Concepts":
            page.locator("#concept-list .row").first.click()
            page.wait_for_selector("#concept-page .histogram")
        page.wait_for_function("!document.querySelector('.pending, .generating')")
        page.wait_for_timeout(500)  # what fades in has its colours
        for each in axe.run(page).response["violations"]:
            if each["impact"] in ("serious", "critical"):
                found.append((tab, each["id"], [node["html"][:200] for node in each["nodes"][:3]]))
    context.close()
    assert found == []


def test_the_map(page):
    """By keyboard and mouse: nearer, its pictures, those in view as a filter, a click on one."""
    page.get_by_role("tab", name="Map").click()
    page.wait_for_selector("#map canvas")
    page.wait_for_selector("#map .said:has-text('120 of 120 pictures in view')")
    canvas = page.locator("#map canvas")
    canvas.focus()
    for _ in range(12):
        page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("!document.querySelector('#map .said').textContent.startsWith('120 of')")
    press(page, "Everything")
    page.wait_for_selector("#map .said:has-text('120 of 120')")
    while int(page.locator("#map .said").inner_text().split()[0]) > 60:
        press(page, "Zoom in")
        page.wait_for_timeout(400)
    inside = int(page.locator("#map .said").inner_text().split()[0])
    if inside:
        page.wait_for_selector("#map-pictures .tile")
        assert page.locator("#map-pictures .tile").count() == inside
        press(page, "Look at the pictures in view")
        page.wait_for_selector(f"#gallery .chip:has-text('{inside} picked')")
        assert "picked=" in page.url or page.wait_for_function("location.hash.includes('picked=')")
    page.get_by_role("tab", name="Map").click()
    page.get_by_label("Coloured by").click()
    page.get_by_role("option", name="right or wrong").click()
    page.wait_for_selector("#map .map[data-scale=two]")


def test_what_is_deleted_is_looked_for_no_more(page):
    """Letters that are taken away, or pasted, count like those that are typed."""
    search = page.get_by_label("Find a concept").first
    search.press_sequentially("black ta")
    page.wait_for_function("[...document.querySelectorAll('#found .name')].every((n) => /ta/.test(n.textContent))")
    page.wait_for_selector("#found .bar")
    few = page.locator("#found .bar").count()
    search.press("Backspace")
    search.press("Backspace")
    page.wait_for_function("(few) => document.querySelectorAll('#found .bar').length > few", arg=few)
    search.fill("yellow belly")
    page.wait_for_selector("#found .bar:has-text('yellow belly')")
