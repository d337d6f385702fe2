"""What the page shows, as JSON; and the page inside a notebook."""

import json
import math
import re

import pytest
from explored_run import explored, explored_labels
from served_page import ask

import cbm
from cbm.app.api import ANSWERS, answer, as_json
from cbm.app.decision import decide
from cbm.app.fails import where_it_fails
from cbm.app.filters import Filter, find_rows
from cbm.app.session import Session
from cbm.errors import UserError

pytest.importorskip("gradio", reason="the explorer is not installed (the extra app)")


@pytest.fixture(scope="module")
def notebook():
    from cbm.app.notebook import Explored

    shown = Explored(explored())
    yield shown
    shown.close()


def told(address: str, path: str, **headers: str) -> tuple[int, dict]:
    status, _, body = ask(address, path, **headers)
    return status, json.loads(body)


def test_pictures_and_decisions_are_those_of_the_page(notebook):
    explorer = explored()
    status, found = told(notebook.address, "/api/pictures?" + Filter(kind="mistakes").address)
    rows = find_rows(explorer, Filter(kind="mistakes")).tolist()
    assert (status, found["count"]) == (200, len(rows))
    assert [tile["row"] for tile in found["tiles"]] == rows[: len(found["tiles"])]
    assert all("uri" not in tile["picture"] for tile in found["tiles"])
    assert told(notebook.address, "/api/pictures?thumbnails=1")[1]["tiles"][0]["picture"]["uri"].startswith("data:")
    tab = Session(explorer)
    tab.look_at(explorer.picture(rows[0]))
    one = told(notebook.address, f"/api/picture?row={rows[0]}")[1]
    assert {key: one[key] for key in ("called", "true", "total")} == {
        key: getattr(decide(tab), key) for key in ("called", "true", "total")
    }
    named = told(notebook.address, f"/api/picture?row=0&why={explorer.classes[7]}")[1]
    assert named["explained"] == explorer.classes[7]


def test_the_rest(notebook):
    explorer = explored()
    about = told(notebook.address, "/api")[1]
    assert about["classes"] == explorer.classes
    assert about["accuracy"] == explorer.headline[1]
    assert str(explorer.model.path.parent) not in json.dumps(about)
    concepts = told(notebook.address, "/api/concepts?words=yellow")[1]
    assert all("yellow" in each["text"] for each in concepts["concepts"])
    text = concepts["concepts"][0]["text"].replace(" ", "%20")
    assert told(notebook.address, f"/api/concept?name={text}")[1]["column"] == concepts["concepts"][0]["column"]
    assert told(notebook.address, f"/api/class?name={explorer.classes[1]}")[1]["name"] == explorer.classes[1]
    fails = told(notebook.address, "/api/fails")[1]
    assert fails["wrong"] == where_it_fails(explorer).wrong


def test_what_there_is_not_is_one_line(notebook):
    for path in ("/api/picture?row=120", "/api/pictures?of=nobody", "/api/concept?name=x", "/api/class", "/api/nothing",
                 "/api/picture?row=x", "/api/pictures?page=-1", "/api/pictures?" + "a=1&" * 300):  # fmt: skip
        status, found = told(notebook.address, path)
        assert status == 400, path
        assert "\n" not in found["error"]
    assert ask(notebook.address, "/api/fails", "POST", b"{}")[0] == 405
    assert ask(notebook.address, "/api/../config")[0] == 403
    assert ask(notebook.address, "/api/x/y")[0] == 403


def test_only_this_computer_is_answered(notebook):
    assert ask(notebook.address, "/api", Host="evil.test")[0] == 403
    assert ask(notebook.address, "/api", Origin="http://evil.test")[0] == 403
    assert ask(notebook.address, "/api", Sec_Fetch_Site="cross-site")[0] == 403


def test_a_notebook_of_this_computer_may_show_it_and_nobody_else(notebook):
    _, headers, _ = ask(notebook.address, "/")
    said = {key.lower(): value for key, value in headers.items()}
    assert "frame-ancestors http://localhost:* http://127.0.0.1:*" in said["content-security-policy"]
    assert "x-frame-options" not in said
    shown = notebook._repr_html_()
    assert f'<iframe src="{notebook.address}"' in shown
    assert re.fullmatch(r"<explorer at http://127\.0\.0\.1:\d+/; close\(\) ends it>", repr(notebook))


def test_it_ends():
    shown = cbm.explore(explored().model.path, cache=explored().cache)
    assert ask(shown.address, "/")[0] == 200
    shown.close()
    with pytest.raises(ConnectionRefusedError):
        ask(shown.address, "/")


def test_numbers_that_are_none_are_null():
    assert as_json([math.nan, math.inf, 1.5, None, True]) == [None, None, 1.5, None, True]


@pytest.mark.parametrize("open_", [explored, explored_labels])
@pytest.mark.parametrize("what", ["", "pictures", "picture", "concepts", "fails"])
def test_everything_is_json(open_, what: str):
    json.dumps(answer(open_(), what, ""), allow_nan=False)


def test_every_answer_is_named():
    assert set(ANSWERS) == {"", "pictures", "picture", "concepts", "concept", "class", "fails"}
    with pytest.raises(UserError, match="did you mean 'picture"):
        answer(explored(), "picturs", "")
