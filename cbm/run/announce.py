"""Show the results of a run on the terminal: the verdict, six numbers in plain words, and the rest on request."""

import logging
import shutil
import sys
import textwrap

from rich.text import Text
from torch import Tensor

from cbm.config import report_form
from cbm.report.headline import INTERVALS, Headline, headline
from cbm.report.result import RunResult
from cbm.report.verdict import verdict

log = logging.getLogger("cbm")

COLUMN = 54
"""Where the meaning of a number begins."""


def announce(result: RunResult) -> None:
    """Log the verdict on a run, its main numbers and the address of its report; with ``report=full`` all numbers."""
    metrics, cfg, found = result.metrics, result.cfg, verdict(result)
    say_first(f"{cfg.method.name} on {cfg.dataset.name}: {found.sentence}", found.good)
    say_headline(headline(metrics, result.data.test.y, integrity=result.integrity, baselines=result.baselines))
    form = report_form(cfg.report)
    if form == "full":
        say_everything(result)
    page, numbers = result.path / "report.html", result.path / "metrics.json"
    log.info("all numbers: %s%s", numbers, "" if form == "full" else " (report=full shows them here)")
    log.info("done in %.1f s: %s", metrics["time/total_s"], page if form != "none" and page.is_file() else numbers)


def print_metrics(title: str, metrics: dict[str, float], labels: Tensor, split: str) -> None:
    """Log a title and the main numbers of an evaluation.

    Args:
        title: title.
        metrics: metrics by key.
        labels: class indices ``[N]`` of the images that were measured, or their labels ``[N, L]``.
        split: name of their split.
    """
    say_first(title)
    say_headline(headline(metrics, labels, split=split))


def say_first(sentence: str, good: bool | None = None) -> None:
    """Log a sentence in bold, where the terminal can: green if it is good news, red if it is not."""
    style = {True: "bold green", False: "bold red", None: "bold"}[good]
    log.info("%s", sentence, extra={"highlighter": lambda text: Text(str(text), style)})


def say_headline(numbers: list[Headline]) -> None:
    """Log numbers, one a line: name, value, interval, meaning, which is wrapped where a terminal is narrow."""
    width = shutil.get_terminal_size().columns - COLUMN if sys.stderr.isatty() else 1000
    for each in numbers:
        span = each.range and f"({each.range})"
        first = f"  {each.name:<25} {each.value:>6}  {span:<16}"
        lines = textwrap.wrap(each.meaning, max(width, 20))
        log.info("%s", "\n".join(f"{start:<{COLUMN}}{line}" for start, line in zip([first, *[""] * len(lines)], lines)))
    if any(each.interval for each in numbers):
        log.info("  in brackets: the %s", INTERVALS)


def say_everything(result: RunResult) -> None:
    """Log every metric of the test split and of the model, with the certificates of the re-solved heads."""
    metrics, many = result.metrics, result.data.many
    main, what = ("auroc_macro", "AUROC") if many else ("accuracy", "accuracy")
    log.info("all metrics of the test split:")
    for key, value in metrics.items():
        if key.startswith(("test/", "model/")):
            log.info("  %-32s %.4f", key, value)
    for head in {head.nec: head for head in result.heads}.values():  # a path that ends early is one head for several
        log.info(
            "  re-solved with %.4g concepts per %s: test %s %.4f (duality gap %.0e, KKT residual %.0e)",
            head.nec,
            "label" if many else "class",
            what,
            metrics[f"test/{main}_nec{head.target}_resolved"],
            head.gap,
            head.kkt,
        )
    for name, values in result.baselines.items():
        log.info("  %-32s %.4f", f"{name} {what}", values[f"test/{main}"])
