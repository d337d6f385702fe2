"""What a model says, without what it says to itself: the thinking of all families of models, finished or not.

Models mark their thinking with ``<think>``, ``<thinking>``, ``<thought>``, ``<reasoning>``, ``<seed:think>``,
``[THINK]``, ``<|START_THINKING|>``, ``<|begin_of_thought|>``, ``◁think▷``, channels (``<|channel|>analysis``), blocks
of code (```` ```thinking ````) or a heading ("Here is my thought process:"). Often only the end arrives, because the
server's template has opened the thinking already; of an answer that was cut off, only the beginning.
"""

import re

_WORD = r"(?:think|thought|reason|reflect|analys|scratch|deliberat|monologue|ponder|cot\b|plan\b|planning)"
MARK = re.compile(
    rf"""
    <\|?\s*(?P<end>/|end[_ ]?(?:of[_ ]?)?|stop[_ ])?\s*(?:begin[_ ]?(?:of[_ ]?)?|start[_ ]?(?:of[_ ]?)?)?
        [\w:.|-]{{0,30}}?(?:chain[ ]of[ ]|inner[ ]|internal[ ])?{_WORD}[^<>]{{0,80}}>
    | \[\s*(?P<end2>/)?\s*(?:THINK|THOUGHT|REASON|ANALYSIS|REFLECT)\w*\s*\]
    | [◁⟨〈＜【「]\s*(?P<end3>/)?\s*{_WORD}\w*\s*[▷⟩〉＞】」]
    | <unused(?:94|(?P<end4>95))>
    """,
    re.I | re.X,
)
"""Where thinking begins, or ends (one of the groups ``end``)."""

_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]{0,60}<\|message\|>", re.I)
_DETAILS = re.compile(r"(?is)<details[^>]*\b(?:reason|think|thought)[^>]*>.*?(?:</details>|\Z)")
_FENCED = re.compile(r"(?is)(```|~~~)[ ]?(?:think|thought|reason|analysis|scratch)\w*[ ]*\n.*?(?:\n\1|\Z)")
_BARE_CHANNEL = re.compile(r"\A\s*(?:assistant)?(?:analysis|commentary)(?=[A-Z\n])")
_HEADING = re.compile(
    r"\A\W{0,6}(?:(?:here(?:'s| is)|this is)\s+(?:my|a|the)\s+)?"
    r"(?:chain[ ]of[ ]thoughts?|thought\s+process|thinking(?:\s+process)?|thoughts"
    r"|reasoning(?:\s+process)?|analysis|internal\s+monologue)\s*\W{0,3}(?::|\.\.\.|…|\n)",
    re.I,
)
_HEADED_ANSWER = re.compile(
    r"(?im)^\W{0,6}(?:here(?:'s| is)\s+(?:my|the)\s+(?:final\s+)?(?:response|answer|output)"
    r"|(?:my\s+|the\s+)?(?:final\s+)?(?:response|answer|output)|done\s+thinking)\b\W{0,6}?(?:[:.…]|$)[*_ ]*"
)
_ANSWER = re.compile(r"(?i)<(answer|response|output|solution|final|final_answer|result)>")
_TOKEN = re.compile(r"<\|[^<>|]{1,40}\|>|<\uff5c[^<>\uff5c]{1,60}\uff5c>|</?s>|<end_of_turn>|<eos>")

TALKS_TO_ITSELF = re.compile(
    r"\b(?:I|I'm|I'll|I've|I'd|I’m|I’ll|I’ve|I’d)\b(?!\.)"
    r"|(?i:\b(?:let me|let's|let’s|the user|the question|the prompt|my answer)\b)"
    r"|(?i:\bwe (?:need|should|must|can|could|have|want)\b)"
    r"|(?i:^\W*(?:okay|ok|so|hmm+|wait|alright|first|now|next|maybe|actually)\b\s*,)"
)
"""A line that speaks of who writes or who asks."""


def spoken(text: str) -> str:
    """The answer without thinking and without a model's own tokens; empty if the thinking never ends.

    An end without a beginning ends thinking that the server's template began: nothing before it is the answer.

    >>> spoken("Okay, the user wants birds.</think> red cap")
    'red cap'
    >>> spoken("<think>Okay, the user wants")
    ''
    """
    text = _FENCED.sub("\n", _DETAILS.sub("\n", _said_in_channels(text)))
    text = _outside_marks(text)
    if _HEADING.match(text):
        parts = _HEADED_ANSWER.split(text)
        text = parts[-1] if len(parts) > 1 else _last_json(text)
    if found := list(_ANSWER.finditer(text)):
        text = re.split(rf"(?i)</{found[-1][1]}>", text[found[-1].end() :])[0]
    return _TOKEN.sub(" ", text).strip()


def said(content: object) -> str:
    """The words of a message's content: text, or the text among its parts (a model's thinking is a part of its own)."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part for part in content if isinstance(part, dict) and part.get("type") in ("text", "output_text")]
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _said_in_channels(text: str) -> str:
    """The final channel of an answer that has channels, also where the server took the channels' marks away."""
    if channels := list(_CHANNEL.finditer(text)):
        final = [mark for mark in channels if mark[1].lower() in ("final", "answer", "response")]
        return re.split(r"<\|(?:end|return|start|call)\|>", text[final[-1].end() :])[0] if final else ""
    if _BARE_CHANNEL.match(text):
        parts = re.split(r"(?:assistant)\s*final(?=\W|[A-Z]|\Z)", text)
        return parts[-1] if len(parts) > 1 else ""
    return text


def _outside_marks(text: str) -> str:
    """What stands outside the marks of thinking."""
    kept, place, inside = [], 0, False
    for mark in MARK.finditer(text):
        between, place = text[place : mark.start()], mark.end()
        if not inside:
            kept.append(between)
        if any(mark.group(name) for name in ("end", "end2", "end3", "end4")):
            kept = kept if inside else []
            inside = False
        else:
            inside = True
    return "".join(kept) if inside else "".join([*kept, text[place:]])


def _last_json(text: str, longest: int = 5000) -> str:
    """JSON that ends the text, or nothing."""
    found = re.search(r"(?s)(?:```\w*\s*)?([{\[](?:(?!\n\s*\n).)*[}\]])\s*(?:```)?\s*\Z", text[-longest:])
    return found[1] if found else ""
