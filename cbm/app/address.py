"""The address of what a tab looks at: what stands after the # in the browser, so that it can be kept and sent.

It says the tab of the page, the picture, the concept that is held, the class whose decision is explained, and the
filter (``cbm.app.filters``). It never leaves the browser by itself: what stands after a # is not sent to any server.
Edits are not in it; they are saved in a file.
"""

from urllib.parse import quote, urlencode

from cbm.app.filters import filter_of
from cbm.app.inputs import is_number, parts_of_address
from cbm.app.render import script
from cbm.app.session import Session
from cbm.errors import UserError, did_you_mean

LOCATE = script("locate")
"""In the browser: what the tab looks at is written after the #; an address opened or gone back to is visited."""


def address_of(tab: Session) -> str:
    """The address of what a tab looks at, without the tab of the page."""
    parts = []
    if tab.picture.row:
        parts.append(("picture", str(tab.picture.row)))
    if tab.concept is not None:
        parts.append(("concept", tab.explorer.bank.texts[tab.concept]))
    if tab.why is not None:
        parts.append(("why", tab.why))
    if tab.page:
        parts.append(("page", str(tab.page + 1)))
    return "&".join(filter(None, (urlencode(parts, quote_via=quote), tab.wanted.address)))


def visit(tab: Session, address: str) -> str:
    """Look at what an address says; nothing is changed if it says what there is not.

    Args:
        tab: the tab.
        address: what stands after the #.

    Returns:
        Name of the tab of the page; empty if it says none.

    Raises:
        UserError: there is no such picture, concept, class, group or page.
    """
    explorer, said = tab.explorer, dict(parts_of_address(address))
    wanted = filter_of(explorer, address)
    row, page, concept = said.get("picture", "0"), said.get("page", "1"), said.get("concept")
    for name, value in (("picture", row), ("page", page)):
        if not is_number(value):
            raise UserError(f"{name}={value[:40]}: expected a number")
    if concept is not None and concept not in (explorer.bank.texts if explorer.has_concepts else []):
        known = explorer.bank.texts if explorer.has_concepts else []
        raise UserError(f"no concept '{concept[:100]}' in this model: {did_you_mean(concept[:100], known)}")
    if "picture" in said or tab.picture.row is None:
        tab.look_at(explorer.picture(int(row)))
    if concept is not None:
        tab.hold(explorer.bank.texts.index(concept))
    if "why" in said:
        tab.explain(said["why"][:300])
    tab.wanted, tab.page = wanted, max(int(page) - 1, 0)
    return said.get("tab", "")[:100]
