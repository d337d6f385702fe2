"""The explorer on a large split, in a real browser: ``python benchmarks/explorer_scale.py FOLDER``.

A data set of random features with 1,000 classes and 50,000 test pictures is written to FOLDER, with a run of 5,000
concepts whose head is written down and not trained: what is measured is the explorer. Chromium opens it and does what a
person does; a line says how long each step takes from the click until it is seen, the median of some, and the memory of
the server (Linux only). Other sizes: FOLDER CLASSES CONCEPTS PICTURES. Needs the extras ``app`` and ``browser``.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from playwright.sync_api import Page, sync_playwright

from cbm.concepts.bank import Concept, ConceptBank
from cbm.config import TrainConfig, load_card
from cbm.editing import source_card
from cbm.layers import ConceptBottleneck, LinearHead, save_model

DIM, REPEATS = 512, 5


def write(folder: Path, classes: int, concepts: int, pictures: int) -> Path:
    """Write the data and the run; returns the run directory."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((classes, DIM)).astype(np.float32)
    directions = generator.standard_normal((concepts, DIM)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    arrays = {"classes": np.array([f"class {c:04d}" for c in range(classes)], dtype=str)}
    for split, count in (("train", 5 * classes), ("val", 5 * classes), ("test", pictures)):
        y = np.arange(count) % classes
        x = centres[y] + 3.2 * generator.standard_normal((count, DIM)).astype(np.float32)
        arrays[f"X_{split}"], arrays[f"y_{split}"] = x / np.linalg.norm(x, axis=1, keepdims=True), y
    names = np.array([f"concept {k:04d} of the bank" for k in range(concepts)], dtype=str)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "features.npz", **arrays)
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    cfg = OmegaConf.merge(OmegaConf.structured(TrainConfig), {"dataset": load_card("features"), "encoder": None,
                                                              "method": {"name": "posthoc"}})  # fmt: skip
    cfg.dataset.root, cfg.run_dir = str(folder / "features.npz"), str(run)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    (run / "about.json").write_text(json.dumps({"classes": arrays["classes"].tolist(), "dim": DIM, "encoder": None}))
    (run / "metrics.json").write_text("{}")
    bank = ConceptBank("synthetic", "bank.json", tuple(Concept(name) for name in names.tolist()), "x" * 32,
                       torch.from_numpy(directions))  # fmt: skip
    bank.save(run / "bank")
    x = torch.from_numpy(arrays["X_train"])
    inverse = torch.linalg.pinv(torch.from_numpy(directions))  # [D, K]
    head = torch.from_numpy(centres) @ inverse
    kept = head.abs() >= head.abs().topk(30, dim=1).values[:, -1:]
    dense = ConceptBottleneck(torch.from_numpy(directions), LinearHead(20.0 * head, torch.zeros(classes)))
    model = dense.with_weights(20.0 * (head * kept), torch.zeros(classes)).calibrate(x)
    save_model(model, run / "model.safetensors")
    val = torch.from_numpy(arrays["X_val"])
    source_card(val, torch.from_numpy(arrays["y_val"]), classes, 0).save(run / "source_card.safetensors")
    return run


def memory(process: int) -> float:
    """MB of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


def timed(
    page: Page, what: str, act: Callable[[int], None], wait: Callable[[int], None], repeats: int = REPEATS
) -> None:
    """Do something several times and print how long it takes until it is seen."""
    spent = []
    for number in range(repeats):
        begun = time.perf_counter()
        act(number)
        wait(number)
        spent.append(1000 * (time.perf_counter() - begun))
        page.wait_for_timeout(150)
    first = f", first {spent[0]:.0f}" if repeats > 1 else ""
    print(f"{what}: {statistics.median(spent):.0f} ms{first}", flush=True)


def main() -> None:
    """Write, serve, look, and print."""
    folder, *sizes = sys.argv[1:]
    classes, concepts, pictures = (int(size) for size in sizes) if sizes else (1000, 5000, 50_000)
    written = write(Path(folder), classes, concepts, pictures)
    begun = time.perf_counter()
    command = [sys.executable, "-m", "cbm", "app", str(written), "--cache", str(Path(folder) / "cache")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
    print(f"the server answers after {time.perf_counter() - begun:.1f} s, {memory(server.pid):.0f} MB", flush=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(60_000)

            def seen(selector: str, before: str) -> Callable[[int], None]:
                script = "([s, before]) => (document.querySelector(s)?.innerHTML ?? before) !== before"
                return lambda _: page.wait_for_function(script, arg=[selector, before])

            def change(what: str, selector: str, act: Callable[[int], None], repeats: int = REPEATS) -> None:
                spent = []
                for number in range(repeats):
                    before = page.locator(selector).first.inner_html()
                    begun = time.perf_counter()
                    act(number)
                    seen(selector, before)(number)
                    spent.append(1000 * (time.perf_counter() - begun))
                    page.wait_for_timeout(200)
                print(f"{what}: {statistics.median(spent):.0f} ms, first {spent[0]:.0f}", flush=True)

            timed(
                page,
                "first view",
                lambda _: page.goto(address),
                lambda _: page.wait_for_selector("#explanation .bar"),
                1,
            )
            change("another picture", "#verdict", lambda n: page.locator("#gallery .tile").nth(n + 1).click())
            change("hold a concept", "#held", lambda n: page.locator("#explanation .bar").nth(n).click())
            change("next page of pictures", "#gallery", lambda n: page.get_by_role("button", name="Next →").click())
            search = page.locator("#search textarea, #search input").first
            search.press_sequentially("concept 00")
            page.wait_for_selector("#found .bar")
            change("a concept by its words", "#found", lambda n: search.press("Backspace" if n % 2 else "1"))
            page.locator("#explanation .bar").first.click()
            change("set it absent", "#verdict", lambda n: page.get_by_role("button", name=["Absent", "Present"][n % 2],
                                                                           exact=True).click())  # fmt: skip
            change("pictures where it is high", "#gallery",
                   lambda n: page.locator("#held .link", has_text=["high", "low"][n % 2]).click())  # fmt: skip
            change(
                "similar pictures", "#gallery", lambda n: page.get_by_role("button", name="Similar pictures").click(), 1
            )
            fails = page.get_by_role("tab", name="Where it fails")
            timed(page, "where it fails, counted once", lambda _: fails.click(),
                  lambda _: page.wait_for_selector("#fails table"), 1)  # fmt: skip
            timed(page, "a confusion's pictures", lambda _: page.locator("#fails .link").first.click(),
                  lambda _: page.wait_for_selector("#gallery .chip"), 1)  # fmt: skip
            tab = page.get_by_role("tab", name="Map")
            timed(
                page, "the map, placed once", lambda _: tab.click(), lambda _: page.wait_for_selector("#map canvas"), 1
            )
            page.wait_for_timeout(1000)
            frames = []
            for _ in range(10):
                page.locator("#map canvas").press("ArrowLeft")
                page.wait_for_timeout(100)
                frames.append(page.evaluate("window.cbmMap.milliseconds"))
            print(f"a frame of the map: {statistics.median(frames):.0f} ms", flush=True)
            page.get_by_role("tab", name="Classes").click()
            page.wait_for_selector("#class-concepts .bar")
            page.get_by_role("tab", name="Concepts").click()
            change("a concept's page", "#concept-page", lambda n: page.locator("#concept-list .row").nth(n).click())
            page.get_by_role("tab", name="Whole split").click()
            run = page.get_by_role("button", name="Run the edits")
            timed(page, "the edits on the whole split", lambda _: run.click(),
                  lambda _: page.wait_for_selector("#effect .figures"), 1)  # fmt: skip
            print(f"memory of the server: {memory(server.pid):.0f} MB")
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
