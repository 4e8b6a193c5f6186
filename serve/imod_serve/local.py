"""Answer from a model folder by transformers in this process: the reference that a server must equal."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from imod_core.errors import InputError
from imod_core.media import load_audio, load_image
from imod_core.media.blank import blank_medium
from imod_core.samples import KINDS, MEDIA_KEYS, Message, Sample, check_text, conversation
from imod_core.sampling import load_clip, video_arguments
from imod_serve.artifact import read_artifact
from imod_serve.client import MAX_TOKENS, Answer
from imod_serve.messages import Media, asked, tagged


class LocalModel:
    """A model folder in memory, asked in the same words as `Client`.

    Args:
        folder: a merged model, or a base.
        dtype: precision of the weights and products, by default the folder's.
    """

    def __init__(self, folder: Path | str, dtype: str = "auto"):
        self.artifact = read_artifact(folder)
        if not self.artifact.modalities:
            raise InputError(f"{self.artifact.folder} is a text model: --model wants a multimodal one.")
        import torch
        from safetensors import SafetensorError

        from imod_core.avt.prompts import special_tokens
        from imod_core.families.load import load_processor, mend, trained_class

        self.processor: Any = load_processor(self.artifact.folder)
        self._special = special_tokens(self.processor)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        kind, config = trained_class(self.artifact.folder)
        try:
            model: Any = kind.from_pretrained(self.artifact.folder, config=config, dtype=dtype)
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
        """One greedy answer; a model that takes no sounds gets videos without theirs.

        Raises:
            InputError: tags and media do not match, the model does not take such media, or a special token is spelled.
        """
        mute = mute or "audio" not in self.artifact.modalities
        content, media = tagged(question, images, audios, videos, mute=mute)
        return self._answer([Message("user", content)], media, max_tokens)

    def ask_sample(self, sample: Sample, *, blanked: Collection[str] = (), max_tokens: int = MAX_TOKENS) -> Answer:
        """The next turn of a sample, media of the kinds `blanked` (image, audio, video) without their contents.

        Raises:
            InputError: as `ask`.
        """
        return self._answer(*asked(sample), max_tokens, blanked)

    def check(self, turns: Sequence[Message], media: dict[str, list[Media]], what: str = "The question") -> None:
        """Refuse a conversation that the model cannot take; raises as `ask`."""
        takes = self.artifact.modalities
        for tag, given in media.items():
            if given and KINDS[tag] not in takes:
                raise InputError(f"{what} has {MEDIA_KEYS[tag]}; this model takes {', '.join(takes)} alone.")
        for turn in turns:
            check_text(turn.content, self._special, what)

    def inputs(self, turns: list[Message], media: dict[str, list[Media]], blanked: Collection[str] = ()) -> Any:
        """What the model's forward takes, for a conversation that waits for its next turn."""
        self.check(turns, media)
        text = self.processor.apply_chat_template(conversation(turns), add_generation_prompt=True, tokenize=False)
        decoded = self._decoded(media, blanked)
        return self.processor(text=[text], return_tensors="pt", **decoded).to(self.model.device)

    def _answer(
        self, turns: list[Message], media: dict[str, list[Media]], max_tokens: int, blanked: Collection[str] = ()
    ) -> Answer:
        import torch

        inputs = self.inputs(turns, media, blanked)
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)[0, length:]
        return Answer(self.processor.tokenizer.decode(output, skip_special_tokens=True), length, len(output))

    def _decoded(self, media: dict[str, list[Media]], blanked: Collection[str]) -> dict[str, list[Any]]:
        frames = self.artifact.frames
        images = [load_image(source) for source in media["<image>"]]
        audios = [load_audio(source) for source in media["<audio>"]]
        clips = [load_clip(source, frames) for source in media["<video>"]] if frames else []
        decoded: dict[str, Any] = {
            "images": [blank_medium(image) for image in images] if "image" in blanked else images,
            "audio": [blank_medium(audio) for audio in audios] if "audio" in blanked else audios,
        }
        if clips:
            shown = [blank_medium(clip) for clip in clips] if "video" in blanked else clips
            decoded |= video_arguments(self.processor, shown)
        return {key: items for key, items in decoded.items() if items != []}
