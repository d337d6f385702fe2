"""Take the pictures of docs/explorer.md in a headless Chromium.

    python train.py dataset=birds_spurious method=posthoc run_dir=runs/spurious
    python scripts/explorer_screenshots.py runs/spurious

Needs ``uv pip install -e '.[app,browser]' -c constraints.txt`` and Chromium (Debian: ``apt-get install chromium``).
"""

import argparse
import io
import queue
import shutil
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

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


def save(page: Page, name: str) -> None:
    """The window as it is, with a palette: a third of the bytes."""
    page.wait_for_timeout(500)  # pictures appear softly
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.quantize(256).save(IMAGES / f"explorer_{name}.png", optimize=True)


def take(page: Page) -> None:
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
    save(page, "picture")
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
    save(page, "split")
    page.get_by_role("tab", name="Concepts").click()
    page.locator("#concept-list .row").first.click()
    page.wait_for_selector("#concept-page h3")
    save(page, "concept")


def main() -> None:
    """Serve the run, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    explorer = Explorer(parser.parse_args().run)
    opened: queue.Queue[str] = queue.Queue()
    threading.Thread(target=launch, args=(explorer,), kwargs={"opened": opened.put}, daemon=True).start()
    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.goto(opened.get())
        take(page)
        browser.close()


if __name__ == "__main__":
    main()
