"""Take the pictures of README.md, docs/explorer.md and docs/guides/test_time_editing.md in a headless Chromium.

    python train.py run_dir=runs/first
    python train.py dataset=birds_spurious method=posthoc run_dir=runs/spurious
    python scripts/screenshots.py runs/first runs/spurious

Needs ``pip install -e '.[app,browser]' -c constraints.txt`` and Chromium (Debian: ``apt-get install chromium``).
"""

import argparse
import io
import queue
import shutil
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from cbm.app import Explorer
from cbm.app.page import launch

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
HABITATS = ("water", "grass", "forest", "sand", "snow", "sky")


def hold(page: Page, concept: str) -> None:
    """Find a concept by its words and take it up."""
    words = page.get_by_label("Find a concept").first
    words.clear()
    words.press_sequentially(concept)
    page.locator(f"#found .bar:has-text('{concept}')").first.click()
    page.wait_for_selector(f"#panel b:has-text('{concept}')")


def save(shown: Page | Locator, name: str) -> None:
    """The window or a part of the page as it is, with a palette: a third of the bytes."""
    shot = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
    shot.quantize(256).save(IMAGES / f"{name}.png", optimize=True)


def settle(page: Page, name: str) -> None:
    """Save the window when everything has appeared."""
    page.wait_for_timeout(500)  # softly
    save(page, name)


def report(page: Page, run: Path) -> None:
    """The first lines of a report, and its first mistake: what put the wrong class ahead of the true one."""
    page.goto((run / "report.html").absolute().as_uri())
    save(page, "report_top")
    save(page.locator("section:has(#mistakes) article.example").first, "report_mistake")


def failures(page: Page) -> None:
    """What is taken for what."""
    page.wait_for_selector("#explanation .bar")
    page.get_by_role("tab", name="Where it fails").click()
    page.wait_for_selector("#fails table")
    settle(page, "explorer_fails")


def chart(page: Page) -> None:
    """The split as a map, a little nearer."""
    page.wait_for_selector("#explanation .bar")
    page.get_by_role("tab", name="Map").click()
    page.wait_for_selector("#map canvas")
    for _ in range(5):
        page.get_by_role("button", name="Zoom in").click()
    page.wait_for_selector("#map-pictures .tile")
    page.get_by_role("button", name="Everything").scroll_into_view_if_needed()
    settle(page, "explorer_map")


def on_a_phone(page: Page) -> None:
    """A concept that is held, and the verdict below it."""
    page.wait_for_selector("#explanation .bar")
    page.locator("#explanation .bar").first.click()
    page.wait_for_selector("#panel b")
    page.locator("#value").scroll_into_view_if_needed()
    settle(page, "explorer_phone")


def explore(page: Page) -> None:
    """Look for what a mistake is due to, take it away everywhere, and see what that does."""
    page.wait_for_selector("#explanation .bar")
    page.get_by_label("Mistakes only").check()
    page.wait_for_selector("#gallery .tile.wrong >> nth=3")
    page.locator("#gallery .tile").nth(3).click()
    page.wait_for_selector("#gallery .tile.held")
    page.locator("#explanation .bar").first.click()
    page.wait_for_selector("#panel b")
    page.get_by_role("button", name="Where is the concept seen?").click()
    page.wait_for_selector(".heat img")
    page.get_by_role("button", name="Absent", exact=True).click()
    page.wait_for_selector("text=Edits: 1")
    settle(page, "explorer_picture")
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector("text=Edits: none")
    page.get_by_role("radio", name="all pictures").check()
    for habitat in HABITATS:
        hold(page, f"{habitat} in background")
        before = page.get_by_text("Edits: ").inner_text()
        page.get_by_role("button", name="Remove with look-alikes").click()
        page.get_by_text(before, exact=True).wait_for(state="detached")
    page.get_by_role("tab", name="Whole split").click()
    page.get_by_role("button", name="Run the edits").click()
    page.wait_for_selector("#effect .figures")
    settle(page, "explorer_split")
    page.get_by_role("tab", name="Concepts").click()
    page.locator("#concept-list .row").first.click()
    page.wait_for_selector("#concept-page h3")
    settle(page, "explorer_concept")


def another_camera(page: Page) -> None:
    """A mistake under another camera, a correction from a few labelled pictures, and what it does."""
    page.wait_for_selector("#explanation .bar")
    page.get_by_label("Mistakes only").check()
    page.wait_for_selector("#gallery .tile.wrong >> nth=3")
    page.locator("#gallery .tile").nth(1).click()
    page.wait_for_selector("#gallery .tile.held")
    settle(page, "another_camera")
    page.get_by_role("tab", name="Another domain").click()
    page.get_by_label("3. What may change").click()
    page.get_by_role("option", name="every concept's mean").click()
    page.get_by_role("button", name="5. Propose a correction").click()
    page.wait_for_selector("#suggestion .figures")
    settle(page, "another_camera_proposal")
    page.get_by_role("button", name="6. Apply the edits").click()
    page.wait_for_selector("text=Edits: 216")
    page.get_by_role("tab", name="Whole split").click()
    page.get_by_role("button", name="Run the edits").click()
    page.wait_for_selector("#effect .figures")
    settle(page, "another_camera_effect")


def served(explorer: Explorer) -> str:
    """The address at which an explorer is open."""
    opened: queue.Queue[str] = queue.Queue()
    threading.Thread(target=launch, args=(explorer,), kwargs={"opened": opened.put}, daemon=True).start()
    return opened.get()


def main() -> None:
    """Open the report of one run, serve the other, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("read", type=Path, help="its report is shown")
    parser.add_argument("explored")
    runs = parser.parse_args()
    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        report(browser.new_page(viewport={"width": 1100, "height": 780}), runs.read)
        address = served(Explorer(runs.explored))
        for show in (explore, failures, chart):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(address)
            show(page)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(address)
        on_a_phone(page)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.goto(served(Explorer(runs.read, dataset="birds_shift")))
        another_camera(page)
        browser.close()


if __name__ == "__main__":
    main()
