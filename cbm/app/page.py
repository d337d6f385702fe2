"""The page: Gradio components over ``Session``. Nothing is computed here, and nothing else knows of Gradio."""

import functools
import inspect
import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
os.environ["GRADIO_RUN_HISTORY"] = (
    "False"  # inputs would be kept in the browser, with a button that sends them to a hub
)

import gradio as gr

from cbm.app.adapt import EDITORS, suggest
from cbm.app.address import LOCATE, address_of, visit
from cbm.app.api import answer
from cbm.app.classes import describe_class
from cbm.app.concepts import ALL, NAMED, UNNAMED, describe_concept, find_concepts, pictures_by
from cbm.app.decision import ClassShare, choices, decide, reach, search_bars
from cbm.app.effect import effect_on_split
from cbm.app.explorer import Explorer, Picture
from cbm.app.fails import where_it_fails
from cbm.app.filters import EVERY, MISTAKES, Filter, filter_of, groups, kinds, rows_of
from cbm.app.gallery import find_pictures, tile
from cbm.app.guard import HEADERS, framed_by_notebooks, guarding
from cbm.app.inputs import (
    LONGEST,
    LONGEST_ADDRESS,
    LONGEST_WHY,
    box_of,
    is_number,
    key_of,
    number,
    one_of,
    sent_with,
    switch,
    text,
    whole,
)
from cbm.app.label import KEYS
from cbm.app.map import draw, ways_to_colour, ways_to_place
from cbm.app.render import TEMPLATES, page_header, render, script
from cbm.app.repair import fit_again, timeline
from cbm.app.session import ALL_CLASSES, EVERYWHERE, HERE, Session
from cbm.app.uploads import EACH, Uploads, own_uploads
from cbm.concepts.units import units_of
from cbm.errors import UserError, did_you_mean
from cbm.files.inert import for_element
from cbm.files.shipped import script_command
from cbm.report.thumbnails import data_uri

log = logging.getLogger("cbm")

PICTURE, FAILS, CONCEPTS = "Picture", "Where it fails", "Concepts"
PICTURES_ON_MAP = 60
ALL_PICTURES = "all"  # what a button says that takes the last part of a filter away
ANY_CLASS, ANY_LABEL, ANY_GROUP = "any class", "any label", "any group"
ANY_FLIP, EXPLAINED = "any other class", "the label that is explained"
LISTED = 40  # concepts of a list
AUTOMATIC = "automatic"
METHODS = ("covering", "positions")
GUARDS = ("lenient", "default", "strict")
SHOWN = 12  # look-alikes in a message
MOST_SHOTS = 10_000
TABS = 200
"""Tabs that are remembered, those that were used last."""
CHOOSE = script("choose")
"""A click on a button with a key selects it; a view that is drawn again gives the focus back to it."""


DRAW = script("draw")
"""A box that is drawn on the picture selects that part of it."""


def answered(handler: Callable) -> Callable:
    """Whatever goes wrong becomes a message in the page, one line long; a tab does one thing at a time.

    A handler whose first parameter is called ``tab`` is not called for a tab that was forgotten.
    """
    of_tab = next(iter(inspect.signature(handler).parameters), "") == "tab"

    @functools.wraps(handler)
    def answer(*arguments: Any) -> Any:
        try:
            if not of_tab:
                return handler(*arguments)
            tab = arguments[0]
            if not isinstance(tab, Session):
                raise UserError("this tab was forgotten, edits that were not saved too: reload the page")
            with tab.lock:
                return handler(*arguments)
        except gr.Error:
            raise
        except UserError as error:
            raise not_done(str(error)) from error
        except OSError as error:
            raise not_done(f"'{error.filename}': {error.strerror}" if error.filename else str(error)) from error
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.warning("the page: %s in %s, line %s", type(error).__name__, place.name, place.lineno)
            log.debug("the page", exc_info=error)
            raise not_done(f"something unexpected happened ({type(error).__name__}); the tab goes on") from error

    return answer


def not_done(line: str) -> gr.Error:
    """The message that says why something was not done; names in it are text, and no HTML."""
    return gr.Error(for_element(line), duration=10, title="Not done", print_exception=False)


def choice(value: str = "", **settings: Any) -> gr.HTML:
    """A view whose buttons can be chosen."""
    return gr.HTML(value, js_on_load=CHOOSE, **settings)


async def left_there(url_or_file_path: Any) -> str | None:
    """Where a dropped picture is read from: where it was put. Gradio would copy it to a place of its own."""
    return None if url_or_file_path is None else str(url_or_file_path)


class Page:
    """The page of one explorer.

    Args:
        explorer: what all tabs look at.
        uploads: where dropped pictures are, until they are decoded; by default those of this process.

    Attributes:
        blocks: the Gradio application.
    """

    def __init__(self, explorer: Explorer, uploads: Uploads | None = None):
        self.explorer = explorer
        self.uploads = own_uploads() if uploads is None else uploads
        self.editable = explorer.has_concepts
        self.linear = explorer.bottleneck is not None
        self.many = explorer.many
        self.any_class, self.any_flip = (ANY_LABEL, EXPLAINED) if self.many else (ANY_CLASS, ANY_FLIP)
        self.groups = [ANY_GROUP, *groups(explorer)]
        self.places: list[str] = []
        with gr.Blocks(
            title=f"cbm: {explorer.model.path.name}", analytics_enabled=False, fill_width=True
        ) as self.blocks:
            self.session = gr.State(None)
            self.location = gr.HTML(js_on_load=LOCATE, elem_id="location")
            gr.HTML(page_header(explorer, str(explorer.model.path), editable=self.editable))
            if self.editable:
                self._edits_bar()
            with gr.Tabs() as self.tabs:
                with self._tab(PICTURE):
                    self._picture_tab()
                with self._tab(FAILS) as self.fails_tab:
                    self.fails = choice("<p class='quiet'>Counting …</p>", elem_id="fails")
                with self._tab("Map") as self.map_tab:
                    self._map_tab()
                if self.editable:
                    with self._tab("Whole split"):
                        self._effect_tab()
                with self._tab("Labels" if self.many else "Classes") as self.class_tab:
                    self._classes_tab()
                if self.editable:
                    with self._tab(CONCEPTS):
                        self._concepts_tab()
                if self.linear and not self.many:
                    with self._tab("Is it true?") as self.truth_tab:
                        self.truth = gr.HTML(js_on_load=KEYS, elem_id="truth")
                    with self._tab("Another domain"):
                        self._domain_tab()
            self._connect()

    # --------------------------------------------------------------------------------------------------------- layout

    def _tab(self, name: str) -> gr.Tab:
        """A tab of the page, which addresses name."""
        self.places.append(name)
        return gr.Tab(name, id=name)

    def _edits_bar(self) -> None:
        with gr.Accordion("Edits: none", open=False) as self.edits_title:
            self.edits_list = gr.HTML()
            with gr.Row():
                self.saved = gr.Dropdown([], label="Edits saved with the run", scale=3)
                self.load_saved = gr.Button("Add these edits", scale=1)
        with gr.Row(elem_classes="toolbar"):
            self.undo = gr.Button("Undo", size="sm", min_width=80)
            self.redo = gr.Button("Redo", size="sm", min_width=80)
            self.save = gr.Button(
                "Save edits", size="sm", min_width=80, interactive=False, visible=not self.explorer.shared
            )
            self.saved_at = gr.HTML(elem_classes="saved-at")

    def _picture_tab(self) -> None:
        with gr.Row():
            with gr.Column(scale=3, min_width=260, elem_id="choose"):
                self.drop = gr.File(label="Drop a picture here", show_label=False, type="filepath", height=120)
                vars(self.drop)["async_move_resource_to_block_cache"] = left_there
                self.words = gr.Textbox(
                    label="Find pictures",
                    show_label=False,
                    container=False,
                    placeholder="Find pictures: a red bird -water",
                    max_lines=1,
                    max_length=LONGEST,
                    elem_id="words",
                )
                with gr.Row():
                    self.of_class = gr.Dropdown(
                        [self.any_class, *self.explorer.classes],
                        value=self.any_class,
                        label="Label" if self.many else "Class",
                    )
                    if self.many:
                        self.kind: gr.Dropdown | gr.Checkbox = gr.Dropdown(
                            kinds(self.explorer), value=EVERY, label="Pictures that", elem_id="kinds"
                        )
                    else:
                        self.kind = gr.Checkbox(label="Mistakes only")
                self.group = gr.Dropdown(
                    self.groups, value=ANY_GROUP, label="Group", visible=len(self.groups) > 1, elem_id="group"
                )
                self.gallery = choice(elem_id="gallery")
                with gr.Row():
                    self.previous = gr.Button("← Previous", size="sm", min_width=60)
                    self.next = gr.Button("Next →", size="sm", min_width=60)
            with gr.Column(scale=3, min_width=280, elem_id="look"):
                self.picture = gr.HTML(js_on_load=DRAW, elem_id="picture")
                self.verdict = choice(elem_id="verdict")
                self.similar = gr.Button("Similar pictures", size="sm", min_width=120)
                if self.editable:
                    with gr.Row():
                        self.methods = [AUTOMATIC, *METHODS] if self.linear else [METHODS[0]]
                        self.where_how = gr.Dropdown(
                            self.methods, value=self.methods[0], label="Heat map by", min_width=120
                        )
                        self.where = gr.Button("Where is the concept seen?", size="sm", min_width=120)
            with gr.Column(scale=4, min_width=340, elem_id="why"):
                if self.editable:
                    self.search = gr.Textbox(
                        label="Find a concept",
                        show_label=False,
                        container=False,
                        placeholder="Find a concept: any words of it",
                        elem_id="search",
                        max_length=LONGEST,
                    )
                    self.found = choice(elem_id="found")
                    self._editor_panel()
                self.explanation = choice(elem_id="explanation")
                if self.editable:
                    self._repair_panel()

    def _editor_panel(self) -> None:
        with gr.Group(elem_id="panel"):
            self.held = choice(padding=True, elem_id="held")
            self.value = gr.Slider(
                -4, 4, value=0, step=0.01, label="Value", interactive=False, buttons=[], elem_id="value"
            )
            self.one_of = gr.Radio([], label="One of", visible=False, elem_id="one-of")
            with gr.Row():
                self.scope = gr.Radio([HERE, EVERYWHERE], value=HERE, label="For", min_width=160)
                self.told = gr.Dropdown(
                    [("all labels" if self.many else ALL_CLASSES, ALL_CLASSES), *self.explorer.classes],
                    value=ALL_CLASSES,
                    label="As read by",
                    min_width=160,
                    visible=self.linear,
                )
        self.because = gr.Textbox(
            label="Why",
            container=False,
            placeholder="why (kept with the edit)",
            max_lines=1,
            max_length=LONGEST_WHY,
        )
        with gr.Row():
            wide: dict[str, Any] = {"size": "sm", "min_width": 56, "interactive": False}
            self.present, self.absent = gr.Button("Present", **wide), gr.Button("Absent", **wide)
            self.mask = gr.Button("Mask", **wide)
            self.remove = gr.Button("Remove", visible=self.linear, **wide)
            self.remove_alike = gr.Button("Remove with look-alikes", visible=self.linear, **(wide | {"min_width": 160}))

    def _repair_panel(self) -> None:
        with gr.Accordion("Make it right", open=False):
            gr.HTML(render("operations", linear=self.linear))
            if self.linear:
                self.wanted = gr.Dropdown(
                    [self.any_flip, *self.explorer.classes],
                    value=self.any_flip,
                    label="Say the opposite of" if self.many else "It should be",
                )
                with gr.Row():
                    self.correct = gr.Button("Reweight the held concept", size="sm", min_width=120)
                    self.flip = gr.Button("Smallest change of concepts", size="sm", min_width=120)
            else:
                self.follow = gr.Button("What follows from what is told?", size="sm")
            self.proposed = gr.HTML()
            self.accept = gr.Button("Apply these edits", size="sm", variant="primary", visible=False)

    def _map_tab(self) -> None:
        with gr.Row():
            placed, coloured = ways_to_place(self.explorer), ways_to_colour(self.explorer)
            self.placed = gr.Dropdown(placed, value=placed[0], label="Placed by", elem_id="placed")
            self.coloured = gr.Dropdown(coloured, value=coloured[0], label="Coloured by", elem_id="coloured")
        self.map = gr.HTML(js_on_load=script("map"), elem_id="map")
        self.map_pictures = gr.HTML(js_on_load=script("map_pictures"), elem_id="map-pictures")

    def _effect_tab(self) -> None:
        which = f"all {len(self.explorer.split):,} pictures of the {self.explorer.name} split"
        gr.HTML(f"<p class='quiet'>The edits of this tab, on {which}.</p>")
        self.run = gr.Button("Run the edits over the split", variant="primary")
        self.timeline = choice(elem_id="timeline")
        self.effect = choice(elem_id="effect")
        if self.linear and not self.many:
            gr.HTML(render("rebalance"))
            self.again = gr.Button("Fit the head again without what is removed")
            self.repaired = gr.HTML(elem_id="repaired")

    def _classes_tab(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                what = "label" if self.many else "class"
                self.a_class = gr.Dropdown(
                    self.explorer.classes, value=self.explorer.classes[0], label=what.capitalize()
                )
                if self.linear:
                    self.weight = gr.Number(label=f"Weight of the chosen concept in this {what}", value=0.0, step=0.1)
                    with gr.Row():
                        self.reweight = gr.Button("Give it this weight", size="sm", min_width=100)
                        self.forget = gr.Button(f"Remove it from this {what}", size="sm", min_width=100)
                self.class_concepts = choice(elem_id="class-concepts")
            with gr.Column(scale=3, min_width=300):
                self.class_page = choice(elem_id="class-page")

    def _concepts_tab(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=260):
                self.concept_words = gr.Textbox(
                    label="Find a concept", placeholder="any words of it", max_length=LONGEST
                )
                self.concept_kind = gr.Radio(
                    [ALL, NAMED, UNNAMED], value=ALL, label="Units", visible=self.explorer.units, elem_id="kind"
                )
                self.concept_list = choice(elem_id="concept-list")
            with gr.Column(scale=4, min_width=340):
                with gr.Row(visible=self.explorer.units and not self.explorer.shared):
                    self.new_name = gr.Textbox(
                        show_label=False,
                        placeholder="another name for the chosen unit",
                        max_lines=1,
                        scale=3,
                        container=False,
                        elem_id="new-name",
                    )
                    self.rename = gr.Button("Rename", size="sm", min_width=80)
                    self.name_back = gr.Button("Take the name back", size="sm", min_width=120)
                self.concept_page = choice("<p class='quiet'>Choose a concept on the left.</p>", elem_id="concept-page")

    def _domain_tab(self) -> None:
        gr.HTML(render("domain", domain=self.explorer.domain, home=str(self.explorer.model.config.dataset.name)))
        with gr.Row():
            self.shots = gr.Number(label="1. Labelled pictures per class", value=4, minimum=1, precision=0)
            self.support = gr.Textbox(
                label="2. A folder of them, a folder per class",
                placeholder="empty: drawn from the split; the rest is tested",
                scale=2,
                visible=not self.explorer.shared,
            )
            self.editor = gr.Dropdown(
                [
                    ("a few concepts", "test_time"),
                    ("every concept's mean", "recentre"),
                    ("the best of several", "combined"),
                ],
                value="test_time",
                label="3. What may change",
            )
            self.guard = gr.Dropdown(list(GUARDS), value="default", label="4. How careful (few)")
        self.suggest = gr.Button("5. Propose a correction", variant="primary")
        self.suggestion = gr.HTML(elem_id="suggestion")
        self.take = gr.Button("6. Apply the edits", visible=False)

    # -------------------------------------------------------------------------------------------------- what is shown

    def _dropped(self, file: Any) -> Picture:
        """A picture that was dropped; its file is removed."""
        try:
            with self.uploads.reading(
                text(file.get("path") if isinstance(file, dict) else "", "picture", 4096)
            ) as path:
                return self.explorer.read(path)
        except FileNotFoundError as error:
            raise UserError("this file was not dropped here, or it was read before: drop it again") from error

    def _picture(self, session: Session) -> dict:
        """Everything about the picture that is looked at, and the edits."""
        decision, picture, heat = decide(session), session.picture, session.heat
        uri, tiny = (None, False) if picture.image is None else data_uri(picture.image.copy())
        held = session.held if heat is not None else ""
        heat_uri = "" if heat is None else data_uri(heat.overlay())[0]
        shown = {
            self.location: render("location", address=address_of(session)),
            self.picture: render(
                "picture", name=picture.name, uri=uri, tiny=tiny, heat=heat, held=held, heat_uri=heat_uri
            ),
            self.verdict: render("decision", decision=decision, many=self.many),
            self.explanation: render(
                "explanation",
                decision=decision,
                concepts=self.editable,
                energies=self.explorer.energies is not None,
                gated=self.explorer.gated,
                many=self.many,
            ),
        }
        return shown | (self._panel(session) | self._edits(session) if self.editable else {})

    def _panel(self, session: Session) -> dict:
        some = session.concept is not None
        alive, dead = gr.update(interactive=some), gr.update(interactive=False)
        held: dict = dict.fromkeys([self.present, self.absent, self.mask, self.remove, self.remove_alike], alive)
        held |= {
            self.held: render("held", text=None, unit="", pictures=[]),
            self.value: dead,
            self.one_of: gr.update(visible=False),
        }
        if some:
            place, values = reach(session), choices(session)
            held[self.held] = render(
                "held", text=session.held, unit=place.unit, pictures=pictures_by(self.explorer, session.held)
            )
            held[self.value] = gr.update(
                minimum=place.low, maximum=place.high, value=round(place.now, 2), interactive=True
            )
            if place.number:
                held |= {self.present: dead, self.absent: dead}
            if values is not None:
                held[self.one_of] = gr.update(
                    choices=values.values, value=values.values[values.now], label=values.name, visible=True
                )
        proposed = render("edits", edits=session.proposed.edits, empty="") if len(session.proposed) else ""
        return held | {self.proposed: proposed, self.accept: gr.update(visible=bool(len(session.proposed)))}

    def _edits(self, session: Session) -> dict:
        edits = session.edits.edits
        return {
            self.edits_list: render("edits", edits=edits, empty="Nothing is edited yet."),
            self.edits_title: gr.update(label=f"Edits: {len(edits) or 'none'}"),
            self.save: gr.update(interactive=bool(edits), variant="primary" if edits else "secondary"),
            self.saved: gr.update(choices=[path.name for path in session.saved_files()]),
            self.effect: gr.skip() if session.compared == session.edits else "",
            self.timeline: gr.skip() if session.compared == session.edits else "",
        }

    def _gallery(self, session: Session) -> dict:
        """The pictures to choose from, and the address."""
        page = find_pictures(self.explorer, session.wanted, session.page)
        session.page = page.number
        shown = render("gallery", page=page, chosen=session.picture.row, rest=session.wanted.beyond_controls)
        return {self.gallery: shown, self.location: render("location", address=address_of(session))}

    def _controls(self, session: Session) -> dict:
        """What the controls beside the gallery say of the filter."""
        wanted = session.wanted
        return {
            self.of_class: wanted.of or self.any_class,
            self.kind: wanted.kind if self.many else wanted.kind == MISTAKES,
            self.group: wanted.group or ANY_GROUP,
            self.words: wanted.words,
        }

    def _class(self, session: Session, name: str) -> dict:
        page = describe_class(session, name)
        shown: dict = {
            self.class_page: render("class", page=page, edited=bool(len(session.edits))),
            self.class_concepts: render(
                "class_concepts",
                page=page,
                held=session.concept,
                concepts=self.editable,
                energies=self.explorer.energies is not None,
            ),
        }
        now = [concept.after for concept in page.concepts if concept.column == session.concept]
        return shown | ({self.weight: round(now[0], 3)} if now and self.linear else {})

    def _concept(self, session: Session, words: Any = "", kind: Any = ALL) -> dict:
        """The page of the concept that is held, beside the list."""
        assert session.concept is not None
        edits = [edit for edit in session.edits.edits if edit.concept == session.held]
        facts = render("concept", facts=describe_concept(self.explorer, session.concept), edits=edits)
        return {self.concept_page: facts, self.concept_list: self._concept_list(session, words, kind)}

    def _concept_list(self, session: Session, words: Any, kind: Any = ALL) -> str:
        bank = self.explorer.bank
        words, kind = text(words, "Find a concept"), one_of(kind, (ALL, NAMED, UNNAMED), "Units")
        columns, units = find_concepts(bank, words, kind), units_of(bank)
        texts = [(k, bank.texts[k], units is None or units[k].named) for k in columns[:LISTED]]
        return render("concept_list", texts=texts, count=len(columns), words=words, held=session.concept)

    # --------------------------------------------------------------------------------------------------- connections

    def _on(self, listener: Callable, handler: Callable, inputs: Any, outputs: Any, **settings: Any) -> None:
        """Connect an event. It is no part of an API, and what the browser sends is checked by the handler alone."""
        listener(handler, inputs, outputs, api_visibility="private", preprocess=False, **settings)

    def _asked(self, session: Session, of: Any, kind: Any, group: Any, words: Any) -> None:
        """Look for the pictures that the controls ask for."""
        one_of(of, [self.any_class, *self.explorer.classes], "Label" if self.many else "Class")
        if self.many:
            one_of(kind, kinds(self.explorer), "Pictures that")
        else:
            kind = MISTAKES if switch(kind, "Mistakes only") else EVERY
        one_of(group, self.groups, "Group")
        session.wanted = replace(
            session.wanted,
            of=None if of == self.any_class else of,
            kind=kind,
            group=None if group == ANY_GROUP else group,
            words=text(words, "Find pictures").strip(),
        )
        session.page = 0

    def _connect(self) -> None:
        session = self.session
        panel = []
        if self.editable:
            buttons = [self.present, self.absent, self.mask, self.remove, self.remove_alike]
            panel = [self.held, self.value, self.one_of, *buttons, self.proposed, self.accept]
        edits = (
            [self.edits_list, self.edits_title, self.save, self.saved, self.effect, self.timeline]
            if self.editable
            else []
        )
        seen = [self.location, self.picture, self.verdict, self.explanation, *panel, *edits]
        chooser = [self.of_class, self.kind, self.group, self.words]

        @answered
        def begin() -> dict:
            fresh = Session(self.explorer)
            listed = {self.concept_list: self._concept_list(fresh, "")} if self.editable else {}
            gallery, looked = self._gallery(fresh), self._picture(fresh)
            return {session: fresh} | gallery | looked | self._class(fresh, self.explorer.classes[0]) | listed

        classes = [self.class_page, self.class_concepts] + ([self.weight] if self.linear else [])
        start = [session, self.gallery, *seen, *classes]
        self._on(self.blocks.load, begin, None, start + ([self.concept_list] if self.editable else []))
        self._connect_pictures(seen, chooser)
        self._connect_classes(classes, seen)
        if self.editable:
            self._connect_editor(seen, panel, edits)
            self._connect_concepts(seen)
        if self.linear and not self.many:
            self._connect_domain(seen)
            self._connect_truth()

    def _connect_pictures(self, seen: list, chooser: list) -> None:
        session = self.session

        everything = [self.gallery, *chooser, *seen, self.tabs]
        if self.editable:
            everything += [self.concept_page, self.concept_list]

        def shown(tab: Session, place: str = "") -> dict:
            """Everything that an address can change."""
            found = self._gallery(tab) | self._controls(tab) | self._picture(tab)
            if place:
                found[self.tabs] = gr.Tabs(selected=place)
            if place == CONCEPTS and tab.concept is not None:
                found |= self._concept(tab)
            return found

        @answered
        def follow(tab: Session, event: gr.EventData) -> dict:
            """A picture is chosen, or an address of pictures."""
            key = sent_with(event, "key", LONGEST_ADDRESS)
            if is_number(key):
                tab.look_at(self.explorer.picture(int(key)))
                return shown(tab)
            wanted = Filter() if key == ALL_PICTURES else filter_of(self.explorer, key)
            if key != ALL_PICTURES and not wanted.address:
                raise UserError(f"'{key[:LONGEST]}' stands for nothing here")
            tab.wanted, tab.page = wanted, 0
            return shown(tab)

        @answered
        def lead(tab: Session, event: gr.EventData) -> dict:
            """The same from another tab of the page."""
            return follow(tab, event) | {self.tabs: gr.Tabs(selected=PICTURE)}

        @answered
        def go(tab: Session, event: gr.EventData) -> dict:
            place = visit(tab, sent_with(event, "key", LONGEST_ADDRESS))
            if place and place not in self.places:
                raise UserError(f"no tab '{place}' here: {did_you_mean(place, self.places)}")
            return shown(tab, place or PICTURE)

        def turn(step: int) -> Callable:
            @answered
            def turned(tab: Session) -> dict:
                tab.page = max(tab.page + step, 0)
                return self._gallery(tab)

            return turned

        @answered
        def ask(tab: Session, of: Any, kind: Any, group: Any, words: Any) -> dict:
            before = tab.wanted, tab.page
            self._asked(tab, of, kind, group, words)
            try:
                return self._gallery(tab)
            except UserError:
                tab.wanted, tab.page = before
                raise

        @answered
        def similar(tab: Session) -> dict:
            if tab.picture.row is None:
                raise UserError("a dropped picture is not in the split: choose one of the split")
            tab.wanted, tab.page = Filter(like=tab.picture.row), 0
            return shown(tab)

        @answered
        def cut(tab: Session, event: gr.EventData) -> dict:
            tab.look_at(self.explorer.part(tab.picture, box_of(event)))
            return self._gallery(tab) | self._picture(tab)

        @answered
        def drop(tab: Session, file: Any) -> dict:
            if file is not None:
                tab.look_at(self._dropped(file))
            return self._gallery(tab) | self._picture(tab) | {self.drop: None}

        @answered
        def explain(tab: Session, event: gr.EventData) -> dict:
            tab.explain(sent_with(event, "key"))
            return self._picture(tab)

        @answered
        def on_map(tab: Session, event: gr.EventData) -> dict:
            """Pictures in view are shown small; one that is clicked, or that are chosen, are opened."""
            if wanted := sent_with(event, "rows", LONGEST_ADDRESS):
                rows = [row for row in rows_of(wanted.replace(",", ".")) if row < len(self.explorer.split)]
                tiles = [tile(self.explorer, row) for row in rows[:PICTURES_ON_MAP]]
                return {self.map_pictures: render("map_pictures", tiles_in_view=tiles)}
            return lead(tab, event)

        @answered
        def the_map(tab: Session, placed: Any, coloured: Any) -> str:
            by = one_of(placed, ways_to_place(self.explorer), "Placed by")
            return render("map", map=draw(tab, by, one_of(coloured, ways_to_colour(self.explorer), "Coloured by")))

        @answered
        def failures(tab: Session) -> str:
            return render("fails", found=where_it_fails(self.explorer), many=self.many)

        quick: dict[str, Any] = {"show_progress": "hidden"}
        listed = [self.gallery, self.location]
        self._on(self.location.select, go, session, everything, **quick)
        for view in [self.gallery, *((self.held,) if self.editable else ())]:
            self._on(view.select, follow, session, everything, **quick)
        for view in [self.fails, self.class_page, *((self.effect, self.concept_page) if self.editable else ())]:
            self._on(view.select, lead, session, everything, **quick)
        for button, step in ((self.previous, -1), (self.next, 1)):
            self._on(button.click, turn(step), session, listed, **quick)
        for control in (self.of_class, self.kind, self.group):
            self._on(control.input, ask, [session, *chooser], listed, **quick)
        self._on(self.words.submit, ask, [session, *chooser], listed)
        self._on(self.picture.select, cut, session, [self.gallery, *seen], **quick)
        self._on(self.similar.click, similar, session, everything, **quick)
        self._on(self.drop.upload, drop, [session, self.drop], [self.gallery, *seen, self.drop])
        self._on(self.verdict.select, explain, session, seen, **quick)
        self._on(self.fails_tab.select, failures, session, self.fails)
        asked = [session, self.placed, self.coloured]
        self._on(self.map_tab.select, the_map, asked, self.map)
        for control in (self.placed, self.coloured):
            self._on(control.input, the_map, asked, self.map)
        self._on(self.map.select, on_map, session, [*everything, self.map_pictures], **quick)
        self._on(self.map_pictures.select, lead, session, everything, **quick)

    def _connect_editor(self, seen: list, panel: list, edits: list) -> None:
        session, place = self.session, [self.session, self.scope, self.told, self.because]
        flips = [self.any_flip, *self.explorer.classes]

        @answered
        def hold(tab: Session, event: gr.EventData) -> dict:
            tab.hold(key_of(event))
            return self._picture(tab)

        @answered
        def find(tab: Session, words: Any) -> str:
            words = text(words, "Find a concept")
            bars = search_bars(tab, words)
            largest = max([abs(bar.after) for bar in bars] + [1e-12])
            return render("found", words=words, bars=bars, largest=largest, energies=not self.linear)

        @answered
        def drag(tab: Session, value: Any, scope: str, told: str, why: Any) -> dict:
            given = reach(tab).activation(number(value, "Value"))
            tab.edit("set", given, scope=scope, classes=told, why=text(why, "Why", LONGEST_WHY))
            shown = self._picture(tab)
            del shown[self.value]  # the hand is on it
            return shown

        @answered
        def choose(tab: Session, value: Any, scope: str, told: str, why: Any) -> dict:
            found = choices(tab)
            if found is None:
                raise UserError("this concept is no value of an attribute")
            text_of, set_to = found.concepts[found.values.index(one_of(value, found.values, "One of"))]
            tab.hold(self.explorer.bank.index(text_of))
            tab.edit("set", set_to, scope=scope, classes=told, why=text(why, "Why", LONGEST_WHY))
            return self._picture(tab)

        def operation(op: str, value: str | None = None) -> Callable:
            @answered
            def operate(tab: Session, scope: str, told: str, why: Any) -> dict:
                tab.edit(op, value, scope=scope, classes=told, why=text(why, "Why", LONGEST_WHY))
                return self._picture(tab)

            return operate

        @answered
        def remove_alike(tab: Session, scope: str, told: str, why: Any) -> dict:
            gone = tab.remove_alike(scope=scope, classes=told, why=text(why, "Why", LONGEST_WHY))
            shown = ", ".join(f"'{each}'" for each in gone[:SHOWN]) + (" and others" if len(gone) > SHOWN else "")
            gr.Info(for_element(f"removed: {shown}. Undo takes all of them back."))
            return self._picture(tab)

        def act(do: Callable[[Session], Any]) -> Callable:
            @answered
            def acted(tab: Session) -> dict:
                do(tab)
                return self._picture(tab)

            return acted

        @answered
        def save(tab: Session) -> dict:
            path, left_out = tab.save()
            return {
                self.saved_at: render(
                    "saved",
                    command=script_command("eval"),
                    path=str(path),
                    run=str(tab.explorer.model.path),
                    left_out=left_out,
                    note=tab.note,
                ),
                **self._edits(tab),
            }

        @answered
        def add_saved(tab: Session, file: Any) -> dict:
            if not (name := text(file, "Edits saved with the run")):
                raise UserError("choose a file of edits first")
            tab.read(name)
            return self._picture(tab)

        def shares(tab: Session, wanted: str) -> ClassShare:
            """What is said of a label, by default of the one that is explained."""
            if wanted != EXPLAINED:
                tab.explain(wanted)
            return next(share for share in decide(tab).classes if share.explained)

        @answered
        def correct(tab: Session, wanted: Any) -> dict:
            if self.many:
                share = shares(tab, one_of(wanted, flips, "Say the opposite of"))
                tab.correct(share.name, present=not share.decided)
                return self._picture(tab)
            if one_of(wanted, flips, "It should be") == ANY_FLIP:
                raise UserError("say which class it should be")
            tab.correct(wanted)
            return self._picture(tab)

        @answered
        def flip(tab: Session, wanted: Any) -> dict:
            if self.many:
                tab.smallest_flip(shares(tab, one_of(wanted, flips, "Say the opposite of")).name)
            else:
                tab.smallest_flip(None if one_of(wanted, flips, "It should be") == ANY_FLIP else wanted)
            return self._panel(tab)

        @answered
        def follow(tab: Session) -> dict:
            tab.follow()
            if not len(tab.proposed):
                raise UserError("nothing else follows: no other concept changes")
            return self._panel(tab)

        @answered
        def where(tab: Session, how: Any) -> dict:
            one_of(how, self.methods, "Heat map by")
            tab.look_for(None if how == AUTOMATIC else how)
            return self._picture(tab)

        @answered
        def run(tab: Session) -> dict:
            found = effect_on_split(tab)
            tab.compared = tab.edits
            return {
                self.effect: render("effect", effect=found),
                self.timeline: render("timeline", steps=timeline(tab), many=self.many),
            }

        @answered
        def step(tab: Session, event: gr.EventData) -> dict:
            tab.go_to(key_of(event))
            shown = self._picture(tab)
            return shown | run(tab)

        @answered
        def again(tab: Session) -> str:
            found = fit_again(tab)
            return render("repaired", found=found, worst=any(row.worst is not None for row in found.rows.values()))

        quick: dict[str, Any] = {"show_progress": "hidden"}
        for view in (self.explanation, self.found):
            self._on(view.select, hold, session, seen, **quick)
        # Gradio's "input" is a key that was pressed: it knows nothing of what was deleted or pasted
        self._on(self.search.change, find, [session, self.search], self.found, trigger_mode="always_last", **quick)
        still = [component for component in seen if component is not self.value]
        self._on(
            self.value.input,
            drag,
            [session, self.value, self.scope, self.told, self.because],
            still,
            trigger_mode="always_last",
            **quick,
        )
        self._on(self.one_of.input, choose, [session, self.one_of, self.scope, self.told, self.because], seen, **quick)
        for button, op, value in (
            (self.present, "set", "present"),
            (self.absent, "set", "absent"),
            (self.mask, "mask", None),
            (self.remove, "remove", None),
        ):
            self._on(button.click, operation(op, value), place, seen, **quick)
        self._on(self.remove_alike.click, remove_alike, place, seen, **quick)
        self._on(self.undo.click, act(Session.undo), session, seen, **quick)
        self._on(self.redo.click, act(Session.redo), session, seen, **quick)
        self._on(self.accept.click, act(Session.accept), session, seen, **quick)
        self._on(self.save.click, save, session, [self.saved_at, *edits])
        self._on(self.load_saved.click, add_saved, [session, self.saved], seen)
        if self.linear:
            self._on(self.correct.click, correct, [session, self.wanted], seen)
            self._on(self.flip.click, flip, [session, self.wanted], panel)
        else:
            self._on(self.follow.click, follow, session, panel)
        self._on(self.where.click, where, [session, self.where_how], seen)
        self._on(self.run.click, run, session, [self.effect, self.timeline])
        self._on(self.timeline.select, step, session, [*seen, self.timeline])
        if self.linear and not self.many:
            self._on(self.again.click, again, session, self.repaired)

    def _connect_classes(self, classes: list, seen: list) -> None:
        session = self.session

        @answered
        def show(tab: Session, name: Any) -> dict:
            return self._class(tab, text(name, "Class"))

        self._on(self.a_class.input, show, [session, self.a_class], classes)
        self._on(self.class_tab.select, show, [session, self.a_class], classes, show_progress="hidden")
        if not self.editable:
            return

        @answered
        def hold(tab: Session, name: Any, event: gr.EventData) -> dict:
            tab.hold(key_of(event))
            return self._class(tab, text(name, "Class")) | self._picture(tab)

        both = [*classes, *seen]
        self._on(self.class_concepts.select, hold, [session, self.a_class], both, show_progress="hidden")
        if not self.linear:
            return

        @answered
        def reweight(tab: Session, name: Any, weight: Any) -> dict:
            one_of(name, self.explorer.classes, "Class")
            tab.edit("reweight", number(weight, "Weight"), scope=EVERYWHERE, classes=name)
            return self._class(tab, name) | self._picture(tab)

        @answered
        def forget(tab: Session, name: Any) -> dict:
            one_of(name, self.explorer.classes, "Class")
            tab.edit("remove", scope=EVERYWHERE, classes=name)
            return self._class(tab, name) | self._picture(tab)

        self._on(self.reweight.click, reweight, [session, self.a_class, self.weight], both)
        self._on(self.forget.click, forget, [session, self.a_class], both)

    def _connect_concepts(self, seen: list) -> None:
        session = self.session

        looked_for = [session, self.concept_words, self.concept_kind]
        views = [self.concept_page, self.concept_list, *seen]

        def shown(tab: Session, words: Any, kind: Any) -> dict:
            _ = tab.held  # says so if none is
            return self._concept(tab, words, kind) | self._picture(tab)

        @answered
        def find(tab: Session, words: Any, kind: Any) -> str:
            return self._concept_list(tab, words, kind)

        @answered
        def show(tab: Session, words: Any, kind: Any, event: gr.EventData) -> dict:
            tab.hold(key_of(event))
            return shown(tab, words, kind)

        @answered
        def rename(tab: Session, words: Any, kind: Any, new: Any) -> dict:
            tab.rename(text(new, "the new name"))
            if tab.note:
                gr.Warning(for_element(tab.note))
            return shown(tab, words, kind) | {self.new_name: ""}

        @answered
        def name_back(tab: Session, words: Any, kind: Any) -> dict:
            tab.rename(None)
            return shown(tab, words, kind)

        always: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}
        for event in (self.concept_words.change, self.concept_kind.input):
            self._on(event, find, looked_for, self.concept_list, **always)
        self._on(self.concept_list.select, show, looked_for, views)
        if self.explorer.units:
            for event in (self.rename.click, self.new_name.submit):
                self._on(event, rename, [*looked_for, self.new_name], [*views, self.new_name])
            self._on(self.name_back.click, name_back, looked_for, views)

    def _connect_domain(self, seen: list) -> None:
        session = self.session

        @answered
        def propose(tab: Session, shots: Any, support: Any, editor: Any, guard: Any) -> dict:
            folder = text(support, "A folder", 4096).strip()
            if folder and self.explorer.shared:
                raise UserError("this page is shared: no other folders of this computer are opened")
            few = whole(shots, "Labelled pictures per class", 1, MOST_SHOTS)
            careful, chosen = one_of(guard, GUARDS, "How careful"), one_of(editor, EDITORS, "What may change")
            found = suggest(self.explorer, shots=few, support=folder, guard=careful, editor=chosen)
            tab.propose(found.edits)
            some = gr.update(visible=bool(len(found.edits)))
            return {self.suggestion: render("suggestion", s=found), self.take: some}

        @answered
        def take(tab: Session) -> dict:
            tab.accept()
            return self._picture(tab) | {self.take: gr.update(visible=False)}

        asked = [session, self.shots, self.support, self.editor, self.guard]
        self._on(self.suggest.click, propose, asked, [self.suggestion, self.take])
        self._on(self.take.click, take, session, [*seen, self.take])

    def _connect_truth(self) -> None:
        session = self.session

        @answered
        def ask(tab: Session) -> str:
            return tab.labelling.view()

        @answered
        def answer(tab: Session, event: gr.EventData) -> str:
            tab.labelling.press(sent_with(event, "key"), sent_with(event, "row"))
            if tab.labelling.note:
                gr.Warning(for_element(tab.labelling.note))
            return tab.labelling.view()

        self._on(self.truth_tab.select, ask, session, self.truth, show_progress="hidden")
        self._on(self.truth.select, answer, session, self.truth, show_progress="hidden")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """A process that is asked to end cleans up before, and ends as if it had not."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def serving(
    explorer: Explorer, port: int | None = None, *, share: bool = False, framed: bool = False
) -> Iterator[tuple[gr.Blocks, str]]:
    """The page, served on this computer only while this is open: the application, and its address.

    Args:
        explorer: the run.
        port: by default the first that is free from 7860 on.
        share: make a public address too, through Gradio's server; then nothing is written into the run.
        framed: let notebooks of this computer show the page inline.

    Raises:
        UserError: the port is taken.
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    explorer.shared = share
    page = Page(explorer)
    blocks = page.blocks
    blocks.queue(default_concurrency_limit=4)
    guard = guarding(
        page.uploads,
        functools.partial(answer, explorer),
        lambda: blocks.share_url,
        framed_by_notebooks() if framed else HEADERS,
    )
    try:
        _, address, public = blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=EACH,
            theme=theme,
            css_paths=[TEMPLATES / "style.css"],
            footer_links=[],
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            state_session_capacity=TABS,
            inline=False,
            blocked_paths=[str(explorer.model.path.resolve())],
            app_kwargs={"lifespan": guard},
        )
    except OSError as error:
        raise UserError(f"cannot serve on port {port}: {error}") from error
    blocks.share = False  # Gradio's page for public addresses loads its scripts from another host
    try:
        yield blocks, public or address
    finally:
        blocks.close(verbose=False)


def launch(
    explorer: Explorer, port: int | None = None, *, share: bool = False, opened: Callable[[str], object] | None = None
) -> None:
    """Serve the page, on this computer only, until the process is interrupted.

    Args:
        explorer: the run.
        port: by default the first that is free from 7860 on.
        share: make a public address too, through Gradio's server; then nothing is written into the run.
        opened: told the address.

    Raises:
        UserError: the port is taken.
    """
    with ended_by_signals(), serving(explorer, port, share=share) as (blocks, address):
        if opened is not None:
            opened(address)
        blocks.block_thread()
