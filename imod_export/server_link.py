"""A running server as a link of the chain: the whole way of a request, chat template and media decoding included.

Any server will do that speaks OpenAI's chat protocol and tells log probabilities with token ids, as vLLM does. It tells
its twenty best tokens; media travel without loss: pictures as PNG, sounds as WAV of floats, frames as FFV1.
"""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from imod_core.console import track
from imod_core.errors import CheckFailed
from imod_core.families.load import load_processor
from imod_core.media import Clip
from imod_core.samples import MEDIA_KEYS
from imod_core.sampling import DRAWN_FPS
from imod_export.compare import common_prefix
from imod_export.links import Question, Reply
from imod_export.probes import Probe
from imod_export.subject import NEW_TOKENS, placeholder_ids, read_config, sampling
from imod_export.tolerances import ARITHMETIC
from imod_export.vllm_link import as_tensors

SUPPORT = 20
"""Log probabilities a position; OpenAI's protocol has no more."""
TIMEOUT = 300.0
"""Seconds for one answer; the first of a cold server takes long."""


class ServerLink:
    """A server at `url` that serves `folder`, in whatever dtype it was started with."""

    weaves = False
    """Servers do not weave unless a request may say so, which few allow."""

    def __init__(self, url: str, folder: Path, stored: str):
        self.url, self.folder, self.name = url.rstrip("/").removesuffix("/v1"), folder, url
        self.arithmetic = stored
        self.tolerance = ARITHMETIC[stored]

    def ask(self, questions: list[Question]) -> dict[str, Reply]:
        """Replies with the server's best log probabilities.

        Raises:
            CheckFailed: no server answers, it refuses a request, or it does not tell token ids.
        """
        from imod_serve.key import read_api_key

        key = read_api_key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        processor = load_processor(self.folder)
        tokenizer, rate = getattr(processor, "tokenizer", processor), sampling(processor)[1]
        suppressed = placeholder_ids(read_config(self.folder)) or []
        with httpx.Client(headers=headers, timeout=TIMEOUT, trust_env=False) as client:
            listed = self._call(client, "GET", "models")["data"]
            model = min(listed, key=lambda one: not one.get("parent"))["id"]  # an adapter before its base
            settings = {
                "model": model, "temperature": 0, "max_tokens": NEW_TOKENS, "logprobs": True, "top_logprobs": SUPPORT,
                "return_tokens_as_token_ids": True, "logit_bias": {str(i): -100 for i in suppressed},
                "repetition_penalty": 1.0,  # the folder's generation_config.json may name another
            }  # fmt: skip
            replies = {}
            for question in track(questions, f"Server at {self.url} on probes"):
                asked = settings | {"messages": messages(question.probe, rate)}
                answer = self._call(client, "POST", "chat/completions", asked)
                replies[question.probe.name] = self._reply(question, answer, tokenizer)
        return replies

    def _call(self, client: httpx.Client, method: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            response = client.request(method, f"{self.url}/v1/{path}", json=body)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise CheckFailed(f"No server answers at {self.url} ({reason}): start one with imod serve.") from None
        if response.status_code != 200:
            told = f"HTTP {response.status_code}, {response.text[:200]}"
            raise CheckFailed(f"The server at {self.url} refuses a probe ({told}).")
        return response.json()

    def _reply(self, question: Question, answer: dict[str, Any], tokenizer: Any) -> Reply:
        told = (answer["choices"][0].get("logprobs") or {}).get("content") or []
        if not told or not told[0]["token"].startswith("token_id:"):
            raise CheckFailed(f"The server at {self.url} tells no token ids with its log probabilities: vLLM does.")
        greedy = [_token(entry) for entry in told]
        rows = [[[_token(best), best["logprob"]] for best in entry["top_logprobs"]] for entry in told]
        values, ids = as_tensors(rows[: common_prefix(question.answer, greedy) + 1])
        return Reply(None, greedy, tokenizer.decode(greedy, skip_special_tokens=True), 0, values, ids)


def messages(probe: Probe, rate: int) -> list[dict[str, Any]]:
    """A probe as OpenAI's chat messages, its media where its tags are."""
    from imod_serve.messages import content_parts

    files = {f"<{kind}>": [_file(kind, item, rate) for item in items] for kind, items in probe.media.items()}
    media: dict[str, list[Any]] = {tag: files.get(tag, []) for tag in MEDIA_KEYS}
    return [{"role": message.role, "content": content_parts(message.content, media)} for message in probe.messages]


def _file(kind: str, item: Any, rate: int) -> bytes:
    """A medium as a file's bytes that decode to it."""
    file = io.BytesIO()
    if kind == "video":
        return _content(item.source) if isinstance(item, Clip) and item.source else lossless(np.asarray(item))
    if kind == "image":
        item.save(file, "PNG")
    else:
        import soundfile

        soundfile.write(file, item, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _content(source: Any) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def lossless(frames: NDArray[np.uint8]) -> bytes:
    """Frames `(T, H, W, 3)` as a Matroska file that gives the same frames back."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=Fraction(DRAWN_FPS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def _token(entry: dict[str, Any]) -> int:
    return int(entry["token"].removeprefix("token_id:"))
