"""What mattered? The same question with the sound muted, the picture blanked, and both.

For each condition: what the model answers then, and by how much the probability of its first answer changed
(log-probability of that answer under the condition less that under the media as they are, in nats).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from imod_core.errors import ImodError
from imod_demo.blank import without
from imod_demo.conversation import Conversation
from imod_demo.talk import Target

CONDITIONS = {
    "muted": ("Sound muted", False, True),
    "blanked": ("Picture blanked", True, False),
    "both": ("Both", True, True),
}
"""By name: what the page calls it, whether pictures are blanked, whether sounds are muted."""
UNCHANGED = 0.1
"""Nats: a tenth more or less probable is no news."""
FULL_BAR = 3.0
"""Nats that the longest bar shows at least; e³ is twenty times."""


@dataclass(frozen=True)
class Finding:
    """One condition's outcome."""

    condition: str
    answer: str | None = None
    change: float | None = None
    """Nats; None while it is awaited and where the server cannot tell."""
    trouble: str = ""


def conditions(conversation: Conversation) -> list[str]:
    """Those that can make a difference: nothing is muted where nothing sounds."""
    heard = any(medium.sounding for medium in conversation.media)
    seen = any(medium.kind != "audio" for medium in conversation.media)
    return [name for name, there in (("muted", heard), ("blanked", seen), ("both", heard and seen)) if there]


def findings(target: Target, conversation: Conversation, max_tokens: int) -> Iterator[list[Finding]]:
    """What has been found so far, each time it is more. Greedy, so that only the media differ."""
    assert conversation.answer is not None
    found = [Finding(name) for name in conditions(conversation)]
    yield list(found)
    turns, said = conversation.turns, conversation.answer.text
    try:
        before = target.client.score(turns, said) if said.strip() else None
    except ImodError as error:
        yield [Finding(one.condition, trouble=str(error)) for one in found]
        return
    for index, one in enumerate(found):
        _, picture, sound = CONDITIONS[one.condition]
        try:
            changed = [without(turn, picture=picture, sound=sound) for turn in turns]
            answer = target.client.chat(changed, max_tokens=max_tokens).text
            after = None if before is None else target.client.score(changed, said)
            change = None if before is None or after is None else after - before
            found[index] = Finding(one.condition, answer, change)
        except ImodError as error:
            found[index] = Finding(one.condition, trouble=str(error))
        yield list(found)


def matter_html(conversation: Conversation, found: list[Finding]) -> str:
    """Answers side by side, with a bar each."""
    if not found:
        return '<p class="quiet">Nothing to mute or blank: this conversation has no picture, sound or clip yet.</p>'
    answer = conversation.answer.text if conversation.answer else ""
    scale = max([FULL_BAR, *(abs(one.change) for one in found if one.change is not None)])
    rows = "".join(_row(one, answer, scale) for one in found)
    original = f'<li class="as-is"><h3>As it is</h3><p class="said">{_said(answer)}</p></li>'
    return f'<h2>What mattered?</h2>{_verdict(found)}<ol class="matter">{original}{rows}</ol>'


def verdict(found: list[Finding]) -> str:
    """One sentence on what the answer rests on; empty until all is known."""
    changes = {one.condition: one.change for one in found}
    if any(change is None for change in changes.values()):
        return ""
    lost = {name: -(change or 0.0) for name, change in changes.items()}
    if max(lost.values()) < UNCHANGED:
        return "Neither picture nor sound made this answer more likely: the words alone lead to it."
    if "both" not in lost:
        what = "sound" if "muted" in lost else "picture"
        return f"The answer rests on the {what}."
    heard, seen = lost["muted"] >= UNCHANGED, lost["blanked"] >= UNCHANGED
    if heard and seen:
        more = "sound" if lost["muted"] > lost["blanked"] else "picture"
        return f"The answer rests on both, on the {more} more."
    if heard or seen:
        one, other = ("sound", "picture") if heard else ("picture", "sound")
        return f"The answer rests on the {one}; the {other} did not support it."
    return "Picture or sound alone suffices; without both the answer is less likely."


def _verdict(found: list[Finding]) -> str:
    sentence = verdict(found)
    return f'<p class="verdict">{sentence}</p>' if sentence else ""


def _row(one: Finding, original: str, scale: float) -> str:
    title = CONDITIONS[one.condition][0]
    if one.trouble:
        body = f'<p class="trouble">{escape(one.trouble)}</p>'
    elif one.answer is None:
        body = '<p class="waiting">asking …</p>'
    else:
        same = one.answer.strip() == original.strip()
        mark = '<span class="mark">same answer</span>' if same else '<span class="mark changed">another answer</span>'
        body = f'<p class="said">{_said(one.answer)} {mark}</p>{_bar(one.change, scale)}'
    return f'<li class="{one.condition}"><h3>{title}</h3>{body}</li>'


def _said(text: str) -> str:
    return escape(text.strip()) or '<span class="quiet">(no words)</span>'


def _bar(change: float | None, scale: float) -> str:
    """From the middle to the left for less likely, to the right for more."""
    if change is None:
        return '<p class="quiet">This server does not tell how likely an answer is.</p>'
    width = 50 * min(1.0, abs(change) / scale)
    side = f"right:50%;width:{width:.1f}%" if change < 0 else f"left:50%;width:{width:.1f}%"
    words, number = in_words(change), f"{round(change, 2) + 0.0:+.2f}"  # no negative zero
    label = f"Change of the first answer's log-probability: {number} nats. {words}"
    return (
        f'<div class="bar" role="img" aria-label="{escape(label)}"><i style="{side}"></i></div>'
        f'<p class="change">{words} <span><b>{number}</b> nats</span></p>'
    )


def in_words(change: float) -> str:
    """`the first answer became 20 times less likely`."""
    if abs(change) < UNCHANGED:
        return "as likely as before"
    times = math.exp(min(abs(change), 20.0))
    number = f"{times:.1f}" if times < 10 else f"{times:,.0f}"
    return f"the first answer became {number} times {'less' if change < 0 else 'more'} likely"
