"""Ask a server: files or bytes in, an answer out. Any server will do that speaks OpenAI's chat protocol."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from imod_core.errors import ImodError, InputError, MissingExtraError
from imod_core.samples import Sample
from imod_serve.messages import Media, question_messages, sample_messages, tagged

TIMEOUT = 120.0
"""Seconds for one answer."""
RETRIES = 2
"""Times that a request is sent again after a dropped connection or a busy server, with growing pauses."""
MAX_TOKENS = 64
LOOPBACK = re.compile(r"https?://(localhost|127\.[\d.]+|\[::1\])(:|/|$)")


@dataclass(frozen=True)
class Answer:
    """What came back for one question."""

    text: str
    prompt_tokens: int
    """Tokens of the question, media placeholders included."""
    completion_tokens: int
    logprobs: tuple[tuple[str, float], ...] | None = None
    """Token and natural logarithm of its probability, if asked for."""


class Client:
    """A connection to one model of one server.

    Args:
        url: the server's root, as `http://127.0.0.1:8000`; a trailing `/v1` is understood.
        model: the model's name there, by default the first that the server lists.
        api_key: by default the environment's IMOD_API_KEY.
        timeout: seconds for one answer.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None, timeout: float = TIMEOUT):
        try:
            import openai
        except ImportError:
            raise MissingExtraError("openai", "client") from None
        if not url.startswith(("http://", "https://")):
            raise InputError(f"The server's address is {url!r}: expected one like http://127.0.0.1:8000.")
        self.url, self.timeout, self._model = url.rstrip("/").removesuffix("/v1"), timeout, model
        self._openai = openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=api_key or os.environ.get("IMOD_API_KEY") or "none",
            timeout=timeout,
            max_retries=RETRIES,
            # A proxy set in the environment cannot reach this machine's own loopback.
            http_client=openai.DefaultHttpxClient(trust_env=False) if LOOPBACK.match(url) else None,
        )

    @property
    def model(self) -> str:
        """The model's name at the server."""
        if self._model is None:
            with self._explained():
                models = list(self._openai.models.list())
            if not models:
                raise InputError(f"The server at {self.url} lists no model: name one.")
            self._model = models[0].id
        return self._model

    def ask(
        self,
        question: str,
        images: Sequence[Media] = (),
        audios: Sequence[Media] = (),
        videos: Sequence[Media] = (),
        *,
        mute: bool = False,
        max_tokens: int = MAX_TOKENS,
        temperature: float = 0.0,
        logprobs: bool = False,
    ) -> Answer:
        """One question about any number of media; paths or bytes.

        The media stand before the question: pictures, videos, sounds, or where `<image>`, `<video>`,
        `<audio>` in the question say. A video is followed by its sound track unless `mute`. Raises InputError
        for a medium that cannot be read and for a request that the server refuses, ImodError where no server
        answers.
        """
        messages = question_messages(*tagged(question, images, audios, videos, mute=mute))
        return self._complete(messages, max_tokens, temperature, logprobs)

    def ask_sample(
        self,
        sample: Sample,
        *,
        max_tokens: int = MAX_TOKENS,
        temperature: float = 0.0,
        logprobs: bool = False,
    ) -> Answer:
        """The next turn of a sample from a JSONL file, whose media stand where its tags are."""
        return self._complete(sample_messages(sample), max_tokens, temperature, logprobs)

    def stream(
        self,
        question: str,
        images: Sequence[Media] = (),
        audios: Sequence[Media] = (),
        videos: Sequence[Media] = (),
        *,
        mute: bool = False,
        max_tokens: int = MAX_TOKENS,
        temperature: float = 0.0,
    ) -> Iterator[str]:
        """As `ask`, but yields the answer's text piece by piece as it is made."""
        messages = question_messages(*tagged(question, images, audios, videos, mute=mute))
        with self._explained():
            for chunk in self._create(messages, max_tokens, temperature, stream=True):
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content

    def _complete(self, messages: list[Any], max_tokens: int, temperature: float, logprobs: bool) -> Answer:
        with self._explained():
            reply = self._create(messages, max_tokens, temperature, logprobs=logprobs)
        choice, usage = reply.choices[0], reply.usage
        found = choice.logprobs.content if choice.logprobs else None
        return Answer(
            text=choice.message.content or "",
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            logprobs=tuple((entry.token, entry.logprob) for entry in found) if found is not None else None,
        )

    def _create(self, messages: list[Any], max_tokens: int, temperature: float, **options: Any) -> Any:
        return self._openai.chat.completions.create(
            model=self.model, messages=messages, max_tokens=max_tokens, temperature=temperature, **options
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the openai package's exceptions into sentences."""
        import openai

        try:
            yield
        except openai.APITimeoutError:
            raise ImodError(f"The server at {self.url} did not answer within {self.timeout:.0f} s.") from None
        except openai.APIConnectionError as error:
            reason = error.__cause__ or error
            raise ImodError(f"No server answers at {self.url} ({reason}): start one with `imod serve DIR`.") from None
        except openai.AuthenticationError:
            raise InputError(f"The server at {self.url} wants another API key: set IMOD_API_KEY.") from None
        except openai.APIStatusError as error:
            kind = InputError if error.status_code < 500 else ImodError
            raise kind(
                f"The server at {self.url} refused the request (HTTP {error.status_code}): {_reason(error)}"
            ) from None
        except openai.APIError as error:
            raise ImodError(f"The server at {self.url} broke off its answer: {error.message}") from None


def _reason(error: Any) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message)
