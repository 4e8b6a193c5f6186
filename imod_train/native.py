"""Samples for a native model: encoded by its own processor and chat template, padded into batches.

    <image><audio>Which one sounds?  ─ template, processor ─>  input_ids, labels, pixel_values, input_features …

Nothing here knows a model by name. What a processor makes of one sample is kept as it is; a batch pads what runs along
the tokens on the right and stacks everything else along its first dimension, in the samples' order.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from imod_core.avt.prompts import IGNORED_LABEL, check_texts
from imod_core.errors import InputError, first_line
from imod_core.media import SAMPLE_RATE, load_audio, load_image
from imod_core.modality import modalities
from imod_core.pixels import limit_pixels
from imod_core.samples import KINDS, MEDIA_KEYS, TAG, Message, Sample
from imod_core.sampling import FrameSampling, load_clip, video_arguments
from imod_train.answers import label_answers, render
from imod_train.items import KeptItems, check_answers
from imod_train.recipe import MediaSettings

TRACK = "use_audio_in_video"
"""The option of Qwen omni's processors that weaves a video's own sound between its frames."""
WITH_TRACK = "<video><audio>"
"""Tags of a video and its own sound."""
PADDED_POSITION = 1
"""Of padding where position ids are given: only the first token of a row may stand at 0."""


class SampleEncoder:
    """From a sample to the tensors of the model's forward.

    Args:
        processor: the model's, of transformers; it is told the limits of pixels.
        media: how much of a medium is read.
        model: its configuration tells which media it takes, its `get_rope_index` numbers the positions where a
            video's own sound is woven in; it needs no weights.
    """

    def __init__(self, processor: Any, media: MediaSettings, model: Any):
        self.processor, self.model = processor, model
        self.takes = set(modalities(model.config))
        sounds = getattr(processor, "feature_extractor", None)
        self.rate = getattr(sounds, "sampling_rate", None) or SAMPLE_RATE
        self.sampling = _sampling(processor, media)
        limit_pixels(processor, {"image": media.image_pixels, "video": media.video_pixels})
        self.weaves = media.weave_sound
        if self.weaves and TRACK not in type(processor).valid_processor_kwargs._defaults.get("videos_kwargs", {}):
            raise InputError("The recipe's 'media.weave_sound' is true, and this model has no such option: remove it.")

    def __call__(self, sample: Sample) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels`, `attention_mask` (1, L) and what the processor makes of the media.

        Raises:
            InputError: media that this model cannot take, or a chat template that hides where answers are.
        """
        found: dict[str, torch.Tensor] = {}

        def expand(count: int) -> torch.Tensor:
            encoded = self.encode(sample, sample.messages[:count])
            if count == len(sample.messages):
                found.update(encoded)
            return encoded["input_ids"][0]

        messages, _ = self._woven(sample, sample.messages)
        _, labels = label_answers(self.processor, messages, expand)
        return {**found, "labels": labels.unsqueeze(0)}

    def encode(self, sample: Sample, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
        """What the processor makes of the first `messages` of a sample and their media."""
        messages, woven = self._woven(sample, messages)
        media = self._media(sample, sum(len(TAG.findall(m.content)) for m in messages) + woven)
        try:
            batch = self.processor(
                text=[render(self.processor, messages)], return_tensors="pt", **self._arguments(media, woven > 0)
            )
        except (ValueError, TypeError, IndexError, StopIteration) as error:
            raise InputError(f"The sample '{sample.id}' does not suit this model: {first_line(error)}") from None
        return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}

    def positions(self, item: dict[str, torch.Tensor], woven: bool) -> torch.Tensor:
        """Position ids (3, L) of an item whose videos have their sound woven in, or of one beside it in a batch."""
        lengths = item.get("feature_attention_mask")
        given = {
            "input_ids": item["input_ids"],
            "attention_mask": item["attention_mask"],
            "image_grid_thw": item.get("image_grid_thw"),
            "video_grid_thw": item.get("video_grid_thw"),
            "second_per_grids": item.get("video_second_per_grid"),
            "audio_seqlens": None if lengths is None else lengths.sum(-1),
            TRACK: woven,
        }
        known = inspect.signature(self.model.get_rope_index).parameters
        found, _ = self.model.get_rope_index(**{name: value for name, value in given.items() if name in known})
        return found[:, 0]

    def is_woven(self, sample: Sample) -> bool:
        """Whether the sample's videos bring their own sound, and it is woven between the frames."""
        return self._woven(sample, sample.messages)[1] > 0

    def _woven(self, sample: Sample, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        """Messages without the tags of sound tracks that are woven into their videos, and how many there were."""
        tracks = [path for path in sample.audios if path in sample.videos] if self.weaves else []
        if not tracks:
            return messages, 0
        if len(tracks) != len(sample.videos) or any("<audio>" in m.content.replace(WITH_TRACK, "") for m in messages):
            raise InputError(
                f"The sample '{sample.id}' mixes videos with their own sound and other sounds or silent videos: this "
                "model takes one kind in a sample."
            )
        kept = [Message(m.role, m.content.replace(WITH_TRACK, "<video>")) for m in messages]
        return kept, sum(m.content.count(WITH_TRACK) for m in messages)

    def _media(self, sample: Sample, count: int) -> dict[str, list[Any]]:
        """The first `count` media of a sample, decoded, by tag."""
        loaders: dict[str, Callable] = {
            "<image>": load_image,
            "<audio>": lambda path: load_audio(path, self.rate),
            "<video>": lambda path: load_clip(path, self.sampling),
        }
        found: dict[str, list[Any]] = {}
        for tag, path in list(_paths(sample))[:count]:
            found.setdefault(tag, []).append(loaders[tag](path))
        return found

    def _arguments(self, media: dict[str, list[Any]], woven: bool) -> dict[str, Any]:
        """The processor's arguments for decoded media."""
        arguments: dict[str, Any] = {
            name: media[tag] for tag, name in (("<image>", "images"), ("<audio>", "audio")) if tag in media
        }
        if "<video>" in media:
            told = video_arguments(self.processor, media["<video>"])
            arguments["videos"] = told.pop("videos")
            arguments["videos_kwargs"] = {**told, **({TRACK: True} if woven else {})}
        return arguments


class NativeDataset(KeptItems):
    """One item a sample, as `SampleEncoder` makes it."""

    def __init__(self, samples: Sequence[Sample], encoder: SampleEncoder):
        check_answers(samples)
        for sample in samples:
            _check_kinds(sample, encoder)
        check_texts(encoder.processor, samples)
        super().__init__(samples)
        self.encoder = encoder
        self.any_woven = any(encoder.is_woven(sample) for sample in samples)

    def _make(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.rows[index]
        item = self.encoder(sample)
        if self.any_woven:
            item["position_ids"] = self.encoder.positions(item, self.encoder.is_woven(sample))
        return item


class NativeCollator:
    """Pads items to a batch, right side.

    Args:
        pad_token_id: fills `input_ids`.
        dtype: the model's own, for what its towers read.
    """

    def __init__(self, pad_token_id: int, dtype: torch.dtype = torch.float32):
        self.fill = {"input_ids": pad_token_id, "labels": IGNORED_LABEL}
        self.dtype = dtype

    def __call__(self, items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Tensors by name: along the tokens (B, L), positions (3, B, L), all else joined in the samples' order."""
        batch = {}
        for name in dict.fromkeys(name for item in items for name in item):
            found = [item[name] for item in items if name in item]
            if name == "position_ids":
                batch[name] = _pad([p.T for p in found], PADDED_POSITION).permute(2, 0, 1)
            elif along_tokens(name):
                batch[name] = _pad([value[0] for value in found], self.fill.get(name, 0))
            else:
                joined = _join(found, -1 if name.endswith("position_ids") else 0)
                feeds = joined.is_floating_point() and joined.dim() > 1
                batch[name] = joined.to(self.dtype) if feeds else joined
        return batch


def along_tokens(name: str) -> bool:
    """Whether a tensor of a processor has a value for each token."""
    return name in ("input_ids", "labels", "attention_mask") or name.endswith("token_type_ids")


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


def _join(values: list[torch.Tensor], fill: int) -> torch.Tensor:
    """Tensors joined along their first dimension, the others padded to the largest."""
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        missing = [(0, most - size) for size, most in zip(value.shape[1:], shape, strict=True)]
        padded.append(torch.nn.functional.pad(value, [n for pair in reversed(missing) for n in pair], value=fill))
    return torch.cat(padded)


def _paths(sample: Sample) -> Iterator[tuple[str, Any]]:
    """Tags and files of a sample's media in the order of its messages."""
    queues = {tag: iter(getattr(sample, key)) for tag, key in MEDIA_KEYS.items()}
    for message in sample.messages:
        for tag in TAG.findall(message.content):
            yield tag, next(queues[tag])


def _check_kinds(sample: Sample, encoder: SampleEncoder) -> None:
    """Refuse media of a kind that the model lacks."""
    for tag, key in MEDIA_KEYS.items():
        if getattr(sample, key) and KINDS[tag] not in encoder.takes:
            takes = ", ".join(sorted(encoder.takes))
            raise InputError(f"The sample '{sample.id}' has a medium {tag}; this model takes {takes} alone.")


def _sampling(processor: Any, media: MediaSettings) -> FrameSampling:
    """Which frames of a video are read: as the processor says, or as many as the recipe does."""
    videos = getattr(processor, "video_processor", None)
    if media.video_frames:
        return FrameSampling(media.video_frames, rule=type(videos).__name__)
    return FrameSampling.of(videos)
