"""Asking: one question goes to one or two models at once, and their answers come back piece by piece."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from imod_core.errors import ImodError, MissingFileError
from imod_core.sampling import FrameSampling
from imod_demo.conversation import Conversation
from imod_serve.answer import Answer, Stream
from imod_serve.client import Client

THREADS = ThreadPoolExecutor(64, "answers")
"""Each reads one answer; asyncio's own pool has a handful on a small machine."""
GONE = "A file of this conversation is no longer here: start a new conversation and give it again."


@dataclass(frozen=True)
class Target:
    """A model of a server, as the page offers it."""

    label: str
    client: Client
    frames: FrameSampling | None = None
    """Which frames of a clip the model is known to see."""
    placeholders: dict[str, tuple[int, ...]] | None = None
    """Token ids that stand for media, by modality, where they are known."""


@dataclass(frozen=True)
class Manner:
    """How to answer."""

    max_tokens: int
    temperature: float


class Step(NamedTuple):
    """Where one column has got to."""

    column: int
    conversation: Conversation
    trouble: str = ""
    """A sentence, if something went wrong."""
    done: bool = False


async def answers(
    targets: Sequence[Target], conversations: Sequence[Conversation], manner: Manner
) -> AsyncGenerator[Step, None]:
    """Steps of all columns as they happen. Closing this closes the requests, and the servers stop."""
    steps: asyncio.Queue[Step] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    columns = [
        _Column(index, target, conversation, manner, lambda step: loop.call_soon_threadsafe(steps.put_nowait, step))
        for index, (target, conversation) in enumerate(zip(targets, conversations, strict=False))
    ]
    for column in columns:
        loop.run_in_executor(THREADS, column.run)
    try:
        left = len(columns)
        while left:
            step = await steps.get()
            left -= step.done
            yield step
    finally:
        for column in columns:
            column.stop()


class _Column:
    """One request, read in a thread of its own."""

    def __init__(
        self,
        index: int,
        target: Target,
        conversation: Conversation,
        manner: Manner,
        tell: Callable[[Step], Any],
    ):
        self.index, self.target, self.conversation, self.manner, self.tell = index, target, conversation, manner, tell
        self.stream: Stream | None = None
        self.stopped = False

    def run(self) -> None:
        trouble = ""
        try:
            for answer in self._read():
                self.conversation = self.conversation.answered(answer)
                self.tell(Step(self.index, self.conversation))
        except MissingFileError:
            trouble = GONE
        except ImodError as error:
            trouble = str(error)
        except Exception as error:
            trouble = f"Something went wrong here ({type(error).__name__}): ask again, or start a new conversation."
            if not self.stopped:
                raise
        finally:
            self.tell(Step(self.index, self.conversation, "" if self.stopped else trouble, done=True))

    def _read(self) -> Iterator[Answer]:
        manner = self.manner
        with self.target.client.stream(
            self.conversation.turns, max_tokens=manner.max_tokens, temperature=manner.temperature
        ) as stream:
            self.stream = stream
            for _ in stream:
                if self.stopped:
                    return
                yield stream.answer
            if not self.stopped:
                yield stream.answer

    def stop(self) -> None:
        self.stopped = True
        if self.stream is not None:
            with contextlib.suppress(Exception):
                self.stream.close()
