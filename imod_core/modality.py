"""Which token of a batch is text, which stands for a picture, a sound or a video, and which is neither.

A multimodal model in transformers names its placeholder tokens in its configuration (`image_token_id` and
kin). Everything here reads those names, so a model needs no code of its own. Letters: `B` batch, `L` tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from imod_core.errors import InputError

if TYPE_CHECKING:
    import torch

TEXT, NON_TEXT, IGNORED = 0, 1, 2
"""Codes of `token_modality`. IGNORED is padding and, unless asked otherwise, the markers around media."""

MODALITIES = ("image", "audio", "video")
PLACEHOLDERS = {
    "image": ("image_token_id", "image_token_index", "img_context_token_id"),
    "video": ("video_token_id", "video_token_index", "video_context_token_id"),
    "audio": ("audio_token_id", "audio_token_index", "speech_token_id", "sound_context_token_id"),
}
"""Spellings of each placeholder in transformers' model configurations, newest first."""

_MARKER = re.compile(
    r"((vision|image|img|video|audio|speech)_(start|end|bos|eos|begin)|bo[iva]|eo[iva])_token_(id|index)"
    r"|boundary_token_ids"
)
_OTHER_VOCABULARY = ("talker_config", "token2wav_config", "code2wav_config")


def media_token_ids(config: Any) -> dict[str, tuple[int, ...]]:
    """The placeholder ids of a model, by modality: `{"image": (151655,), "audio": (151646,)}`.

    `config` is a transformers configuration or a dict; nested ones (`thinker_config`, `text_config` …) are
    searched too and the outermost name wins. Raises InputError when there is no placeholder at all.
    """
    found = _placeholders(config)
    if not found:
        raise InputError(
            f"The configuration of model type '{_value(config, 'model_type')}' names no image_token_id, "
            "video_token_id or audio_token_id, so text and media tokens cannot be told apart: "
            "use a multimodal model or give the placeholder ids as media_token_ids."
        )
    return found


def modalities(config: Any) -> tuple[str, ...]:
    """Those of image, audio and video that a model takes: it has a placeholder, and an encoder unless that is null.

    Empty for a text model. Gemma 4 names a placeholder for sounds also where its `audio_config` is null.
    """
    found = _placeholders(config)
    return tuple(m for m in MODALITIES if m in found and not _is_null(config, f"{m}_config"))


def boundary_token_ids(config: Any) -> tuple[int, ...]:
    """Ids of the markers around media (`vision_start_token_id`, `boi_token_id`, AVT's list …); empty if none is."""
    ids: set[int] = set()
    for part in _parts(config):
        for name in filter(_MARKER.fullmatch, part if isinstance(part, dict) else vars(part)):
            ids.update(_ids(part, name))
    return tuple(sorted(ids))


def token_modality(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    media_ids: Iterable[int],
    ignored_ids: Iterable[int] = (),
) -> torch.Tensor:
    """TEXT, NON_TEXT or IGNORED for each token, (B, L) uint8 on the device of `input_ids` (B, L).

    `attention_mask` (B, L) is zero at padding. In a mask (B, 1, L, L), boolean or additive, padding is what may
    not look at itself. A mask of another shape is not read. No value is copied to the host.
    """
    import torch

    codes = torch.full_like(input_ids, TEXT, dtype=torch.uint8)
    codes.masked_fill_(_equals_any(input_ids, ignored_ids), IGNORED)
    codes.masked_fill_(_equals_any(input_ids, media_ids), NON_TEXT)
    if isinstance(attention_mask, torch.Tensor):
        batch, length = input_ids.shape
        if attention_mask.shape == input_ids.shape:
            codes.masked_fill_(attention_mask.to(codes.device) == 0, IGNORED)
        elif attention_mask.shape == (batch, 1, length, length):
            itself = attention_mask[:, 0].diagonal(dim1=-2, dim2=-1).to(codes.device)
            codes.masked_fill_(~itself if itself.dtype == torch.bool else itself < 0, IGNORED)
    return codes


def _placeholders(config: Any) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for part in _parts(config):
        for modality, spellings in PLACEHOLDERS.items():
            ids = next(filter(None, (_ids(part, name) for name in spellings)), ())
            if ids:
                found.setdefault(modality, ids)
    return found


def _is_null(config: Any, name: str) -> bool:
    """Whether a configuration or a part of it has the entry `name`, and it is null."""
    held = [part if isinstance(part, dict) else vars(part) for part in _parts(config)]
    return any(name in part and part[name] is None for part in held)


def _equals_any(input_ids: torch.Tensor, ids: Iterable[int]) -> torch.Tensor:
    """True where a token is one of `ids`: a few comparisons, since `torch.isin` would copy the ids to the device."""
    import torch

    hit = torch.zeros_like(input_ids, dtype=torch.bool)
    for token in ids:
        hit |= input_ids == token
    return hit


def _parts(config: Any) -> Iterator[Any]:
    """`config` and every configuration nested in it, outermost first; other vocabularies (speech codes) left out."""
    yield config
    for name, value in (config if isinstance(config, dict) else vars(config)).items():
        nested = isinstance(value, dict) or hasattr(value, "model_type")
        if name.endswith("_config") and name not in _OTHER_VOCABULARY and nested:
            yield from _parts(value)


def _ids(config: Any, name: str) -> tuple[int, ...]:
    value = _value(config, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    return tuple(value) if isinstance(value, (list, tuple)) else ()


def _value(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)
