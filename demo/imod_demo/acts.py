"""What happens on the page, in the order in which visitors meet it. `page` says what sets it off."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from imod_core.errors import ImodError
from imod_demo.conversation import Conversation
from imod_demo.desk import Desk
from imod_demo.matter import findings, matter_html
from imod_demo.medium import Medium, take
from imod_demo.saw import figures_html, saw_html
from imod_demo.talk import THREADS, Manner, Target, answers
from imod_demo.view import notice_html, tray_html

NOBODY = "nobody"
MOST_MEDIA = 6
"""With one question."""
COLUMNS = 2
Waiting = tuple[Medium, ...]


class Acts:
    """Handlers of the page's events."""

    def __init__(self, desk: Desk):
        self.desk = desk

    # Files come in and go.

    def receive(self, waiting: Waiting, talk: Conversation, event: gr.EventData, request: gr.Request) -> list[Any]:
        """Check the files that the browser has sent and lay them into the tray."""
        folder, troubles = self.desk.shelf.folder(request.session_hash or ""), []
        for sent in event._data["files"]:
            try:
                if len(waiting) >= MOST_MEDIA:
                    raise ImodError(f"At most {MOST_MEDIA} files go with one question: take one out first.")
                path = self.desk.shelf.upload(request.session_hash or "", str(sent["path"]))
                waiting = (*waiting, take(path, Path(str(sent["name"])).name or path.name, folder))
            except ImodError as error:
                troubles.append(str(error))
        return [waiting, tray_html(waiting, talk.media), notice_html(" ".join(troubles))]

    def take_out(self, waiting: Waiting, talk: Conversation, event: gr.EventData) -> list[Any]:
        """Remove one medium that waits for the next question."""
        left = tuple(medium for index, medium in enumerate(waiting) if index != event._data["index"])
        return [left, tray_html(left, talk.media), ""]

    def try_example(self, event: gr.EventData) -> list[Any]:
        """A new conversation with an example's media and question."""
        example = self.desk.examples[int(event._data["index"])]
        return [*_cleared(), *_tray(example.media), example.question]

    def start_anew(self) -> list[Any]:
        """An empty page."""
        return [*_cleared(), *_tray(()), ""]

    def change_models(self, model: str, beside: str, one: Conversation, other: Conversation) -> list[Any]:
        """Other columns; the conversation starts anew with the media it had."""
        targets = self.desk.chosen(model, beside)
        boxes = []
        for index in range(COLUMNS):
            shown = index < len(targets)
            label = targets[index].label if shown else "Compared"
            boxes += [gr.update(visible=shown), gr.update(label=label)]
        return [*boxes, *_cleared(), *_tray(one.media)]

    # A question is asked.

    def begin(
        self,
        question: str,
        waiting: Waiting,
        busy: bool,
        model: str,
        beside: str,
        one: Conversation,
        other: Conversation,
    ) -> list[Any]:
        """Put the question and the waiting media into every conversation."""
        _check_free(busy)
        if not question.strip():
            raise _sentence("Type a question first.")
        asked = [one.asked(question.strip(), waiting), other.asked(question.strip(), waiting)]
        count = len(self.desk.chosen(model, beside))
        asked[count:] = [Conversation()] * (COLUMNS - count)
        return [*_started(asked), gr.skip(), *_running(), *_tray((), asked[0].media), ""]

    def begin_again(self, busy: bool, one: Conversation, other: Conversation) -> list[Any]:
        """Take the last answers back, to ask again."""
        _check_free(busy)
        if not one.said:
            raise _sentence("There is no question yet to ask again.")
        return [*_started([talk.unanswered() for talk in (one, other)]), gr.skip(), *_running()]

    async def answer(
        self, max_tokens: int, temperature: float, model: str, beside: str, one: Conversation, other: Conversation
    ) -> AsyncIterator[list[Any]]:
        """Answers as they come, one or two at a time."""
        targets, talks, troubles = self.desk.chosen(model, beside), [one, other], ["", ""]
        steps = answers(targets, [talk for talk in talks if talk.awaits], Manner(int(max_tokens), float(temperature)))
        async with aclosing(steps):
            async for step in steps:
                talks[step.column], troubles[step.column] = step.conversation, step.trouble
                yield self._shown(targets, talks, troubles)

    def look(self, model: str, talk: Conversation) -> str:
        """What the first model sees and hears of the conversation."""
        try:
            return saw_html(talk.media, self.desk.chosen(model, NOBODY)[0].frames)
        except ImodError as error:
            return notice_html(str(error))

    def end(self) -> list[Any]:
        """Nothing is running any more."""
        return [gr.update(interactive=False), False]

    # What mattered.

    async def find_out(
        self, wanted: bool, max_tokens: int, model: str, beside: str, one: Conversation, other: Conversation
    ) -> AsyncIterator[list[Any]]:
        """Ask anew with media muted and blanked, for every column that has an answer."""
        shown = ["", ""]
        if not wanted:
            yield shown
            return
        targets = self.desk.chosen(model, beside)
        answered = [talk for talk in (one, other)[: len(targets)] if talk.answer is not None and not talk.awaits]
        rounds = [findings(target, talk, int(max_tokens)) for target, talk in zip(targets, answered, strict=False)]
        loop, more = asyncio.get_running_loop(), True
        while more:
            found = await asyncio.gather(*(loop.run_in_executor(THREADS, next, each, None) for each in rounds))
            more = any(each is not None for each in found)
            for index, (talk, each) in enumerate(zip(answered, found, strict=True)):
                shown[index] = shown[index] if each is None else matter_html(talk, each)
            yield list(shown)

    # The visitor leaves.

    def leave(self, request: gr.Request) -> None:
        """Delete the visitor's files."""
        self.desk.shelf.leave(request.session_hash or "")

    def _shown(self, targets: Sequence[Target], talks: Sequence[Conversation], troubles: Sequence[str]) -> list[Any]:
        parts: list[Any] = []
        for index, (talk, trouble) in enumerate(zip(talks, troubles, strict=True)):
            placeholders = targets[index].placeholders if index < len(targets) else None
            parts += [talk, talk.bubbles(), notice_html(trouble), figures_html(talk.answer, talk.kinds, placeholders)]
        return parts


def _started(talks: Sequence[Conversation]) -> list[Any]:
    """Columns with a question that waits for its answer, and nothing found out yet."""
    return [*(part for talk in talks for part in (talk, talk.bubbles(), "", "")), "", ""]


def _cleared() -> list[Any]:
    return [*_started([Conversation()] * COLUMNS), saw_html((), None), gr.update(interactive=False), False]


def _running() -> list[Any]:
    return [gr.update(interactive=True), True]


def _tray(waiting: Waiting, told: Waiting = ()) -> list[Any]:
    return [waiting, tray_html(waiting, told), ""]


def _check_free(busy: bool) -> None:
    if busy:
        raise _sentence("The answer is still coming: wait for it, or press Stop.")


def _sentence(text: str) -> gr.Error:
    return gr.Error(text, duration=6, title="Not yet", print_exception=False)
