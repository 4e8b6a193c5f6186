"""What comes back for a question: an answer, whole or piece by piece."""

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from imod_core.errors import ImodError


@dataclass(frozen=True)
class Answer:
    """What came back for one question."""

    text: str
    prompt_tokens: int
    """Tokens of the question, media placeholders included."""
    completion_tokens: int
    logprobs: tuple[tuple[str, float], ...] | None = None
    """Token and natural logarithm of its probability, if asked for."""
    prompt_ids: tuple[int, ...] | None = None
    """The question's token ids, each medium as a run of its placeholder, from servers that tell them (vLLM)."""
    first_token_seconds: float | None = None
    """From sending the request to the first piece; streamed answers alone."""
    seconds: float | None = None
    """From sending the request to the last piece; streamed answers alone."""


class Stream:
    """An answer while it is made: iterate over its text, piece by piece; then `answer` has the whole.

    Ends early on `close`, which makes the server stop too. Also a context manager that closes.

    Args:
        send: sends the request and returns the openai package's stream of chunks.
        explained: turns the openai package's exceptions into sentences.
    """

    def __init__(self, send: Callable[[], Any], explained: Callable[[], AbstractContextManager[None]]):
        self._explained = explained
        self._started = time.monotonic()
        with explained():
            self._chunks = send()
        self._pieces = self._read(self._chunks)
        self._answer: Answer | None = None
        self._closed = self._ended = False

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def answer(self) -> Answer:
        """The answer as far as it has come; the server's token counts come with its end."""
        return self._answer or Answer("", 0, 0)

    def close(self) -> None:
        """End the request, from any thread; the server stops generating."""
        self._closed = True
        if not self._ended:
            self._hang_up()
        self._chunks.close()

    def _hang_up(self) -> None:
        """Shut the socket: closing it alone wakes no thread that reads from it, and till then tells no server."""
        network = self._chunks.response.extensions.get("network_stream")
        connection = network.get_extra_info("socket") if network else None
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def _read(self, chunks: Iterable[Any]) -> Iterator[str]:
        try:
            yield from self._pieces_of(chunks)
        except ImodError:
            if not self._closed:
                raise
        finally:
            self._ended = True

    def _pieces_of(self, chunks: Iterable[Any]) -> Iterator[str]:
        text, tokens, first, usage, ids, finished = "", 0, None, None, None, False
        with self._explained():
            for chunk in chunks:
                usage = chunk.usage or usage
                ids = getattr(chunk, "prompt_token_ids", None) or ids
                choice = chunk.choices[0] if chunk.choices else None
                piece = (choice.delta.content if choice else None) or ""
                finished = finished or bool(choice and choice.finish_reason)
                if piece:
                    first = first or time.monotonic() - self._started
                    text, tokens = text + piece, tokens + 1
                self._answer = Answer(
                    text=text,
                    prompt_tokens=usage.prompt_tokens if usage else len(ids or ()),
                    completion_tokens=usage.completion_tokens if usage else tokens,
                    prompt_ids=tuple(ids) if ids else None,
                    first_token_seconds=first,
                    seconds=time.monotonic() - self._started,
                )
                if piece:
                    yield piece
        if not finished and not self._closed:
            raise ImodError("The server broke off its answer: it may have been stopped; ask again.")
