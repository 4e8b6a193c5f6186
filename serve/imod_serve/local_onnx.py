"""Answer from an onnx folder in this process, without torch and transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imod_core.media import load_audio, load_image, read_video
from imod_core.samples import Message, check_text
from imod_export.onnx.layout import FOLDER, is_onnx_folder
from imod_serve.client import MAX_TOKENS, Answer
from imod_serve.messages import Media, tagged


def find_onnx(folder: Path, variant: str | None) -> Path | None:
    """The folder with graphs that is meant: `folder`, or with a `variant` named also its `onnx`; None for neither."""
    places = [folder, folder / FOLDER] if variant else [folder]
    return next((place for place in places if is_onnx_folder(place)), None)


class OnnxLocal:
    """An onnx folder in memory, asked in the same words as `Client`."""

    def __init__(self, folder: Path, variant: str | None = None):
        from imod_export.onnx.runtime import OnnxModel

        self.model = OnnxModel(folder, variant)
        self._special = self.model.chat.special_tokens()

    def ask(
        self,
        question: str,
        images: Sequence[Media] = (),
        audios: Sequence[Media] = (),
        videos: Sequence[Media] = (),
        *,
        mute: bool = False,
        max_tokens: int = MAX_TOKENS,
    ) -> Answer:
        """One greedy answer.

        Raises:
            InputError: tags and media do not match, or a special token is spelled.
        """
        content, media = tagged(question, images, audios, videos, mute=mute)
        check_text(content, self._special, "The question")
        prompt = self.model.prompt([Message("user", content)], self._decoded(media))
        answer = self.model.greedy(prompt, max_tokens)
        return Answer(self.model.text(answer), len(prompt.ids), len(answer))

    def _decoded(self, media: dict[str, list[Media]]) -> dict[str, list[Any]]:
        inputs = self.model.inputs
        decoded: dict[str, list[Any]] = {
            "image": [load_image(source) for source in media["<image>"]],
            "audio": [load_audio(source, inputs.rate) for source in media["<audio>"]],
            "video": [read_video(source, inputs.sampling.places) for source in media["<video>"]],
        }
        return {kind: items for kind, items in decoded.items() if items}
