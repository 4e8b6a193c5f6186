"""Answer from a model folder by transformers in this process: the reference that a server must equal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imod_core.errors import InputError
from imod_core.media import load_audio, load_image
from imod_core.samples import Message, Sample, conversation
from imod_core.sampling import load_clip, video_arguments
from imod_serve.artifact import read_artifact
from imod_serve.client import MAX_TOKENS, Answer
from imod_serve.messages import Media, tagged


class LocalModel:
    """A model folder in memory, asked in the same words as `Client`."""

    def __init__(self, folder: Path | str):
        self.artifact = read_artifact(folder)
        if not self.artifact.modalities:
            raise InputError(f"{self.artifact.folder} is a text model: `imod ask --model` wants a multimodal one.")
        import torch
        from safetensors import SafetensorError

        from imod_core.families.load import load_processor, mend, trained_class

        self.processor: Any = load_processor(self.artifact.folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        kind, config = trained_class(self.artifact.folder)
        try:
            model: Any = kind.from_pretrained(self.artifact.folder, config=config, dtype="auto")
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{self.artifact.folder} does not load ({str(error).splitlines()[0]}).") from None
        mend(model)
        self.model = model.to(device).eval()

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
        """One greedy answer."""
        content, media = tagged(question, images, audios, videos, mute=mute)
        return self._answer([Message("user", content)], media, max_tokens)

    def ask_sample(self, sample: Sample, *, max_tokens: int = MAX_TOKENS) -> Answer:
        """The next turn of a sample."""
        turns = sample.messages[:-1] if sample.answer is not None else sample.messages
        media: dict[str, list[Media]] = {
            "<image>": list(sample.images),
            "<audio>": list(sample.audios),
            "<video>": list(sample.videos),
        }
        return self._answer(list(turns), media, max_tokens)

    def inputs(self, turns: list[Message], media: dict[str, list[Media]]) -> Any:
        """What the model's forward takes, for a conversation that waits for its next turn."""
        text = self.processor.apply_chat_template(conversation(turns), add_generation_prompt=True, tokenize=False)
        return self.processor(text=[text], return_tensors="pt", **self._decoded(media)).to(self.model.device)

    def _answer(self, turns: list[Message], media: dict[str, list[Media]], max_tokens: int) -> Answer:
        import torch

        inputs = self.inputs(turns, media)
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)[0, length:]
        return Answer(self.processor.tokenizer.decode(output, skip_special_tokens=True), length, len(output))

    def _decoded(self, media: dict[str, list[Media]]) -> dict[str, list[Any]]:
        frames = self.artifact.frames
        decoded: dict[str, Any] = {
            "images": [load_image(source) for source in media["<image>"]],
            "audio": [load_audio(source) for source in media["<audio>"]],
        }
        if media["<video>"] and frames:
            decoded |= video_arguments(self.processor, [load_clip(source, frames) for source in media["<video>"]])
        return {key: items for key, items in decoded.items() if items != []}
