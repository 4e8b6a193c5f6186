"""Ask a server: files or bytes in, an answer out. Any server will do that speaks OpenAI's chat protocol."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from imod_core.errors import ImodError, InputError, MissingExtraError
from imod_core.samples import Sample
from imod_serve.answer import Answer, Stream
from imod_serve.key import checked_key, read_api_key
from imod_serve.messages import Media, Turn, sample_messages, turn_messages

TIMEOUT = 120.0
"""Seconds for one answer, or between two pieces of a streamed one."""
CONNECT_SECONDS = 5.0
RETRIES = 2
"""Times that a request is sent again after a dropped connection or a busy server, with growing pauses."""
MAX_TOKENS = 64
LOOPBACK = re.compile(r"https?://(localhost|127\.[\d.]+|\[::1\])(:|/|$)")
TOLD_IDS = {"return_token_ids": True}
"""vLLM's addition to the protocol; others may refuse a field that they do not know."""


class Client:
    """A connection to one model of one server.

    Args:
        url: the server's root, as `http://127.0.0.1:8000`; a trailing `/v1` is understood.
        model: the model's name there, by default the first that the server lists.
        api_key: by default the environment's IMOD_API_KEY.
        timeout: seconds for one answer.
        retries: times that a failed request is sent again.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
    ):
        try:
            import openai
        except ImportError:
            raise MissingExtraError("openai", "client") from None
        if not url.startswith(("http://", "https://")):
            raise InputError(f"The server's address is {url!r}: expected one like http://127.0.0.1:8000.")
        self.url, self.timeout, self._model = url.rstrip("/").removesuffix("/v1"), timeout, model
        self._openai = openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=checked_key(api_key, "the argument api_key") or read_api_key() or "none",
            timeout=openai.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            max_retries=retries,
            # A proxy set in the environment cannot reach this machine's own loopback.
            http_client=openai.DefaultHttpxClient(trust_env=False) if LOOPBACK.match(url) else None,
        )

    @cached_property
    def models(self) -> dict[str, str]:
        """Who owns each model that the server lists, by the model's name; vLLM's adapters before their base."""
        with self._explained():
            listed = sorted(self._openai.models.list(), key=lambda model: not getattr(model, "parent", None))
        return {model.id: model.owned_by for model in listed}

    @property
    def model(self) -> str:
        """The model's name at the server."""
        if self._model is None:
            if not self.models:
                raise InputError(f"The server at {self.url} lists no model: name one.")
            self._model = next(iter(self.models))
        return self._model

    @property
    def is_vllm(self) -> bool:
        """Whether the server understands what vLLM adds to the protocol."""
        return "vllm" in self.models.values()

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
        turn = Turn("user", question, tuple(images), tuple(audios), tuple(videos), mute)
        return self.chat([turn], max_tokens=max_tokens, temperature=temperature, logprobs=logprobs)

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

    def chat(
        self,
        turns: Sequence[Turn],
        *,
        max_tokens: int = MAX_TOKENS,
        temperature: float = 0.0,
        logprobs: bool = False,
    ) -> Answer:
        """The next turn of a conversation. Raises as `ask`."""
        return self._complete(turn_messages(turns), max_tokens, temperature, logprobs)

    def stream(self, turns: Sequence[Turn], *, max_tokens: int = MAX_TOKENS, temperature: float = 0.0) -> Stream:
        """As `chat`, but the answer's text comes piece by piece as it is made. Raises as `ask`, here or in between."""
        messages = turn_messages(turns)
        told = TOLD_IDS if self.is_vllm else {}
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "extra_body": told}
        return Stream(lambda: self._create(messages, max_tokens, temperature, **options), self._explained)

    def score(self, turns: Sequence[Turn], answer: str) -> float | None:
        """Natural logarithm of the probability of `answer` as the next turn, its end token left out.

        None from a server that is not vLLM, and where a chat template does not simply put the answer after the
        question. Raises as `ask`.
        """
        if not self.is_vllm:
            return None
        question = self._raw(turn_messages(turns), add_generation_prompt=True)
        whole = self._raw(
            turn_messages([*turns, Turn("assistant", answer)]),
            add_generation_prompt=False,
            continue_final_message=True,
            prompt_logprobs=0,
        )
        before, ids = question.prompt_token_ids, whole.prompt_token_ids
        if not before or ids[: len(before)] != before:
            return None
        # An entry is keyed by token id; beyond the chosen token it may hold the best one.
        entries = zip(ids[len(before) :], whole.prompt_logprobs[len(before) :], strict=True)
        return sum(entry[str(token)]["logprob"] for token, entry in entries)

    def _raw(self, messages: list[Any], **options: Any) -> Any:
        """A reply of one token with all that vLLM tells of its prompt."""
        with self._explained():
            return self._create(messages, 1, 0.0, extra_body=TOLD_IDS | options)

    def _complete(self, messages: list[Any], max_tokens: int, temperature: float, logprobs: bool) -> Answer:
        with self._explained():
            told = TOLD_IDS if self.is_vllm else {}
            reply = self._create(messages, max_tokens, temperature, logprobs=logprobs, extra_body=told)
        choice, usage = reply.choices[0], reply.usage
        found = choice.logprobs.content if choice.logprobs else None
        ids = getattr(reply, "prompt_token_ids", None)
        return Answer(
            text=choice.message.content or "",
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            logprobs=tuple((entry.token, entry.logprob) for entry in found) if found is not None else None,
            prompt_ids=tuple(ids) if ids else None,
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
