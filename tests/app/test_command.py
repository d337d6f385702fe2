"""``python -m cbm app``: what it opens, and what it says when it cannot."""

import importlib.util

import pytest
from birds_run import shared_folder
from explored_run import trained

from cbm.files.shipped import install_command

CACHE = ("--cache", str(shared_folder() / "cache"))


@pytest.mark.parametrize("prefix", ["", "run="])
def test_opens_a_run(prefix: str, module, monkeypatch: pytest.MonkeyPatch):
    gradio = pytest.importorskip("gradio")
    launched = {}
    monkeypatch.setattr(
        gradio.Blocks, "launch", lambda self, **how: launched.update(how) or (None, "http://here/", None)
    )
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda self: None)
    status, shown, errors = module("app", f"{prefix}{trained('labo')}", *CACHE)
    assert status == 0, errors
    assert "is open at http://here/" in shown
    assert (launched["server_name"], launched["share"]) == ("127.0.0.1", False)


def test_the_port_is_taken(module, monkeypatch: pytest.MonkeyPatch):
    gradio = pytest.importorskip("gradio")

    def taken(self, **how):
        raise OSError("Cannot find empty port in range: 7860-7860")

    monkeypatch.setattr(gradio.Blocks, "launch", taken)
    status, _, errors = module("app", str(trained("labo")), "--port", "7860", *CACHE)
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: cannot serve on port 7860")


def test_no_such_run(module):
    status, _, errors = module("app", str(trained("labo").with_name("explored-lab")))
    assert status == 2
    assert "did you mean 'explored-labo'" in errors.splitlines()[-1]


def test_without_gradio(module, monkeypatch: pytest.MonkeyPatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else original(name, *rest)
    )
    status, _, errors = module("app", str(trained("labo")))
    assert status == 2
    assert errors.splitlines()[-1] == f"error: the explorer needs Gradio: {install_command('app')}"
