"""Answers from an onnx folder with numpy, onnxruntime and tokenizers: no torch, no transformers.

model = OnnxModel("merged/onnx", variant="q4")
prompt = model.prompt([Message("user", "<image>What is on the left?")], {"image": [picture]})
print(model.text(model.greedy(prompt, max_new_tokens=16)))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from imod_core.artifacts import read_json
from imod_core.errors import InputError, MissingFileError
from imod_core.samples import Message
from imod_core.sampling import FrameSampling
from imod_export.onnx.chat import Chat
from imod_export.onnx.frames import QwenFrames
from imod_export.onnx.layout import EMBED
from imod_export.onnx.prompt import Encoding, Prompt
from imod_export.onnx.sessions import Decoding, Graphs


class Inputs(Protocol):
    """What a family of models makes of questions and media."""

    rate: int
    """Hz of sounds."""

    @property
    def sampling(self) -> FrameSampling | QwenFrames:
        """Which frames to decode of a video."""

    def prompt(self, messages: Sequence[Message], media: dict[str, list[Any]]) -> Prompt: ...


class OnnxModel:
    """An onnx folder ready to answer; arguments as of `Graphs`.

    Raises:
        MissingFileError: a file of the folder is missing.
        InputError: a kind of model, or a file, that cannot be used.
    """

    def __init__(self, folder: Path | str, variant: str | None = None, threads: int = 0):
        folder = Path(folder)
        self.graphs = Graphs(folder, variant, threads)
        for name in ("config.json", "processor_config.json"):
            if not (folder / name).is_file():
                raise MissingFileError(f"{folder} has no {name}: copy it from the model folder.")
        self.chat = Chat(folder)
        config = read_json(folder / "config.json")
        self.inputs: Inputs = _inputs_of(config, folder, self.chat)
        self.stops = _stop_ids(folder, config)

    def prompt(self, messages: Sequence[Message], media: dict[str, list[Any]] | None = None) -> Prompt:
        """A conversation with decoded media by kind: pictures, sounds `(n,)`, videos `(T, H, W, 3)`, in tag order."""
        return self.inputs.prompt(messages, media or {})

    def embed(self, prompt: Prompt) -> NDArray[np.float32]:
        """Embeddings `(L, D)` of a prompt, its media in their places.

        Raises:
            InputError: more or fewer placeholders than embeddings.
        """
        ids = np.array(prompt.ids, np.int64)
        embeds = self.graphs.run(EMBED, {"input_ids": ids[None]})[0]
        for encoding in prompt.encodings:
            places, features = ids == encoding.token_id, self.encode(encoding)
            if places.sum() != len(features):
                raise InputError(
                    f"The question has {places.sum()} {encoding.kind} placeholders for {len(features)} embeddings: "
                    f"give one <{encoding.kind}> tag for each medium."
                )
            embeds[places] = features
        return embeds

    def encode(self, encoding: Encoding) -> NDArray[np.float32]:
        """Embeddings `(tokens, D)` of media, in the order of their placeholders."""
        return encoding.arrange(self.graphs.run(encoding.component, encoding.feeds))

    def greedy(self, prompt: Prompt, max_new_tokens: int = 64, suppress: Sequence[int] = ()) -> list[int]:
        """The likeliest token after the other until the end token, which is returned too; never one of `suppress`."""
        cache = self.graphs.cache()
        logits = cache.step(self.embed(prompt), prompt.positions)
        answer: list[int] = []
        while True:
            logits[-1, list(suppress)] = -np.inf
            answer.append(int(logits[-1].argmax()))
            if answer[-1] in self.stops or len(answer) == max_new_tokens:
                return answer
            logits = self._follow(cache, prompt, answer[-1:], len(answer) - 1)

    def logits(self, prompt: Prompt, continuation: Sequence[int], positions: int) -> NDArray[np.float32]:
        """Logits `(positions, V)` at the end of prompt and `continuation`, the latter token by token as in `greedy`."""
        cache = self.graphs.cache()
        keep = min(max(1, positions - len(continuation)), len(prompt.ids))
        rows = [cache.step(self.embed(prompt), prompt.positions, keep)]
        rows += [self._follow(cache, prompt, [token], i) for i, token in enumerate(continuation)]
        return np.concatenate(rows)[-positions:]

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as text."""
        return self.chat.decode(ids)

    def _follow(self, cache: Decoding, prompt: Prompt, tokens: Sequence[int], place: int) -> NDArray[np.float32]:
        """The step of one token of the answer, its place counted from the answer's start."""
        embeds = self.graphs.run(EMBED, {"input_ids": np.array([tokens], np.int64)})[0]
        positions = np.full((*prompt.positions.shape[:-1], 1), prompt.next_position + place, np.int64)
        return cache.step(embeds, positions)


def _inputs_of(config: dict[str, Any], folder: Path, chat: Chat) -> Inputs:
    kind = config.get("model_type")
    if kind == "avt":
        from imod_export.onnx.avt_inputs import AvtInputs

        return AvtInputs(folder, chat)
    if kind in ("qwen2_5_omni", "qwen2_5_omni_thinker"):
        from imod_export.onnx.omni_inputs import OmniInputs

        return OmniInputs(folder, config, chat)
    raise InputError(f"{folder} holds a model of type '{kind}': this runtime knows avt and qwen2_5_omni.")


def _stop_ids(folder: Path, config: dict[str, Any]) -> set[int]:
    path = folder / "generation_config.json"
    found = (read_json(path) if path.is_file() else config.get("text_config", {})).get("eos_token_id")
    return {found} if isinstance(found, int) else set(found or ())
