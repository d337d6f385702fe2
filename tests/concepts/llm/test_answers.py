"""What is read of answers that are thinking, talk, or nearly JSON."""

import json

import pytest

pytest.importorskip("openai")
pytest.importorskip("pydantic")

from cbm.concepts.llm.answers import MARKUP, Unparsable, first_word, parse_answer, read_answer, read_plain
from cbm.concepts.llm.thinking import said, spoken

THOUGHTS = "Okay, the user wants features of a bird.\n- a long curved beak?\nI should avoid {its} name [really].\n"
PHRASES = ["yellow beak", "long thin legs", "grey wings"]
ANSWER = json.dumps({"concepts": PHRASES})

FINISHED = {
    "template opened it": f"{THOUGHTS}</think>\n\n",
    "think": f"<think>\n{THOUGHTS}</think>\n",
    "empty": "<think>\n\n</think>\n\n",
    "thinking": f"<thinking>{THOUGHTS}</thinking>",
    "thought": f"<thought>{THOUGHTS}</thought>",
    "reasoning": f"<reasoning>{THOUGHTS}</reasoning>",
    "named": f"<seed:think>{THOUGHTS}</seed:think>",
    "upper case": f"<THINK>{THOUGHTS}</THINK>",
    "attributes": f'<think time="3">{THOUGHTS}</think>',
    "prefix": f"<antThinking>{THOUGHTS}</antThinking>",
    "brackets": f"[THINK]{THOUGHTS}[/THINK]",
    "tokens": f"<|START_THINKING|>{THOUGHTS}<|END_THINKING|><|START_RESPONSE|>",
    "begin and end": f"<|begin_of_thought|>{THOUGHTS}<|end_of_thought|>\n<|begin_of_solution|>",
    "triangles": f"◁think▷{THOUGHTS}◁/think▷",
    "channels": f"<|channel|>analysis<|message|>{THOUGHTS}<|end|><|start|>assistant<|channel|>final<|message|>",
    "channels without marks": f"analysis{THOUGHTS[:-1]}assistantfinal",
    "details": f'<details type="reasoning" done="true">\n<summary>Thought for 3 s</summary>\n{THOUGHTS}</details>\n',
    "fence": f"```thinking\n{THOUGHTS}```\n",
    "heading": f"Here is my thought process:\n{THOUGHTS}\nHere is my response:\n",
    "ollama": f"Thinking...\n{THOUGHTS}...done thinking.\n\n",
    "two": f"<think>{THOUGHTS}</think><think>{THOUGHTS}</think>",
    "a mark is mentioned": f"<think>{THOUGHTS} so I close with <think>: {ANSWER[:30]}</think>",
    "a draft": '<think>perhaps {"concepts": ["a red draft"]} or so</think>',
    "answer tag": f"<think>{THOUGHTS}</think><answer>",
}
CUT = [
    name for name in FINISHED if name not in ("template opened it", "empty", "two", "a mark is mentioned", "answer tag")
]


@pytest.mark.parametrize("name", FINISHED)
@pytest.mark.parametrize("cut", [False, True])
def test_finished_thinking_is_not_the_answer(name: str, cut: bool):
    for answer in (ANSWER, f"```json\n{ANSWER}\n```", json.dumps({"concepts": PHRASES}, indent=2)):
        items, status = read_answer(FINISHED[name] + answer, "concepts", cut=cut)
        assert ([item.text for item in items], status) == (PHRASES, "ok")
    items, _ = read_answer(FINISHED[name] + "- yellow beak\n- long thin legs\n- grey wings", "concepts")
    assert [item.text for item in items] == PHRASES
    assert first_word(FINISHED[name] + " Yes.") == "yes"


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("cut", [False, True])
def test_thinking_that_never_ends_is_no_answer(name: str, cut: bool):
    text = FINISHED[name]
    half = text[: text.find("really") if "really" in text else text.find(" or so")]
    with pytest.raises(Unparsable):
        read_answer(half, "concepts", cut=cut)
    with pytest.raises(Unparsable):
        read_answer(THOUGHTS.strip(), "concepts", cut=True)  # no mark at all: the template has opened it


@pytest.mark.parametrize("tail", ["</think>", "</think>\n\n", "<|END_THINKING|>", "[/THINK]"])
def test_thinking_and_nothing_else_is_no_answer(tail: str):
    with pytest.raises(Unparsable, match="thinking"):
        read_answer(f"{THOUGHTS}{ANSWER}{tail}", "concepts")


def test_an_answer_before_more_thinking():
    assert spoken(f"{ANSWER}<think>was that right?") == ANSWER


@pytest.mark.parametrize(
    "text",
    [
        f"Sure! Here it is:\n{ANSWER}", f"{ANSWER}\nAnything else?", f"Sure [as asked]: {{so}} {ANSWER} :-}}",
        "Here:\n" + json.dumps({"concepts": PHRASES}, indent=2) + "\nThese are {three}.",
        f"The form is {{\"concepts\": [\"...\", \"...\"]}}.\n{ANSWER}",
        f'{{"answer": {ANSWER}}}', f"{{{ANSWER}}}",
        "{'concepts': ['yellow beak', 'long thin legs', 'grey wings']}",
        '{"concepts": ["yellow beak", "long thin legs", "grey wings",],}',
        '{concepts: ["yellow beak" "long thin legs"\n"grey wings"]}',
        '{"concepts": ["yellow beak", // the beak\n "long thin legs", "grey wings"]}',
        '{“concepts”: [“yellow beak”, “long thin legs”, “grey wings”]}',
        '{"concepts": ["yellow beak", "long thin legs", "grey wings"}',
        '{"concepts": ["yellow beak", "long\nthin legs", "grey wings"]}',
    ],
)  # fmt: skip
def test_the_first_json_of_the_schema_is_found(text: str):
    assert [item.text for item in parse_answer(text, "concepts")] == PHRASES


def test_quotes_inside_phrases():
    found = parse_answer("{'concepts': ['bird's wing', 'a \"hooked\" beak', 'caf\\u00e9 brown']}", "concepts")
    assert [item.text for item in found] == ["bird's wing", 'a "hooked" beak', "café brown"]


def test_other_json_with_talk_around_it():
    for text in (
        'Sure: ["yellow beak", "long thin legs", "grey wings"] :)',
        '{"phrases": "yellow beak; long thin legs; grey wings"}',
    ):
        assert [item.text for item in read_plain(text, "concepts")] == PHRASES


@pytest.mark.parametrize("kind", ["concepts", "groups", "split"])
@pytest.mark.parametrize(
    "text",
    [
        'concepts": [', '{"concepts": [1, 2', "| beak | yellow |\n|---|---|", "<li>red wing</li>\n<li>long tail</li>",
        "[INST] red wing", "<|im_start|>red wing", "{{red wing}}", '{"a": {"b": ["x < y"]}}',
    ],
)  # fmt: skip
def test_no_phrase_with_markup_is_read_by_rules(text: str, kind: str):
    try:
        items = read_answer(text, kind)[0]
    except Unparsable:
        return
    assert not [item for item in items if MARKUP.search(item.text)]


def test_the_words_of_a_message_in_parts():
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "red"}]
    assert (said(parts), said("red"), said(None), said(3)) == ("red", "red", "", "")


def test_odd_text_ends_soon():
    for text in ("{" * 50_000, "[" * 50_000, '{"a":' * 20_000, "<think" * 20_000, '"' * 20_000 + "{", "{'" * 20_000):
        with pytest.raises(Unparsable):
            read_answer(text, "concepts")


def test_every_line_is_json():
    lines = "\n".join(json.dumps({"concept": phrase}) for phrase in PHRASES)
    assert [item.text for item in read_answer(lines, "concepts")[0]] == PHRASES


def test_what_announces_phrases_is_none():
    text = "Here are some features of the bird\n" + "\n".join(PHRASES)
    assert [item.text for item in read_answer(text, "concepts")[0]] == PHRASES
    with pytest.raises(Unparsable):
        read_answer("N/A", "concepts")
