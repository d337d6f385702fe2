"""The page that opens from disk: all there, nothing loaded, nothing that names could do."""

import json
import re
import shutil
from pathlib import Path

import pytest
from explored_run import explored, explored_labels, trained

from cbm.app.filters import Filter, find_rows
from cbm.app.static import chosen_rows, for_script, write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_mistakes_first_then_others_at_even_distances():
    explorer = explored()
    wrong = find_rows(explorer, Filter(kind="mistakes")).tolist()
    assert chosen_rows(explorer, 2) == wrong[:2]
    some = chosen_rows(explorer, len(wrong) + 10)
    assert set(wrong) <= set(some)
    assert len(some) == len(wrong) + 10
    assert chosen_rows(explorer, 10**6) == list(range(len(explorer.split)))


@pytest.mark.parametrize("open_", [explored, explored_labels])
def test_everything_is_in_the_file(open_, tmp_path: Path):
    explorer, file = open_(), tmp_path / "page.html"
    count = write_page(explorer, file, 30)
    page = file.read_text()
    data = data_of(page)
    assert count == 30 == len(data["rows"]) == len(data["views"]["pictures"])
    named = set(re.findall(r'data-image="(\w+)"', json.dumps(data["views"]).replace("\\", "")))
    assert named == set(data["images"])  # every picture is there, and once
    for address, found in data["addresses"].items():
        assert set(found["rows"]) <= set(data["rows"])
        assert found["count"] >= len(found["rows"]), address
    assert str(explorer.model.path) not in page
    assert not re.search(r'(?:src|href)="(?!data:)[^"{]', page)
    assert "http" not in re.sub(r"data:image/[^\"]+", "", page).replace("http-equiv", "").replace("https://", "")


def test_a_name_cannot_end_the_script():
    written = for_script({"</script><script>x": "<!--", "line": "\u2028"})
    assert "<" not in written
    assert "\u2028" not in written
    assert json.loads(written) == {"</script><script>x": "<!--", "line": "\u2028"}


def test_the_command(module, tmp_path: Path):
    run, cache = str(trained("labo")), str(explored().cache)
    status, said, errors = module("app", run, "--cache", cache, "--static", "page.html", "--pictures", "5")
    assert status == 0, errors
    assert "5 pictures" in said
    for more, expected in (
        (("--port", "7999"), "without --port"),
        (("--pictures", "0"), "expected 1 or more"),
        ((), "page.html"),
    ):
        status, _, errors = module("app", run, "--cache", cache, "--static", "page.html", *more)
        assert status == 2
        assert expected in errors.splitlines()[-1]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_it_works_from_disk(tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser driver (the extra browser)")
    explorer, file = explored(), tmp_path / "page.html"
    write_page(explorer, file, 40)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page, asked, failed = browser.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(file.as_uri())
        assert page.locator("#tiles .tile").count() == 40
        page.locator("#tiles .tile").nth(3).click()
        row = page.locator("#tiles .tile").nth(3).get_attribute("data-key")
        assert page.url.endswith(f"#picture={row}")
        page.get_by_role("tab", name="Where it fails").click()
        assert not page.locator("#pictures").is_visible()
        page.locator("#fails button[data-key]").first.click()
        assert "are on this page" in page.inner_text("#which")
        page.get_by_role("tab", name="Concepts").click()
        page.wait_for_selector("#concept-page .histogram")
        page.get_by_role("tab", name="Classes").click()
        page.select_option("#a-class", index=2)
        page.wait_for_selector("#class-page .figures")
        assert page.evaluate("[...document.images].filter((i) => i.offsetParent && !i.naturalWidth).length") == 0
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert failed == []
