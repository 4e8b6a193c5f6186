"""What the model saw: frames of a clip, the sound's waveform and mel picture as fed, tokens by modality, speed."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imod_core.media import SAMPLE_RATE, load_audio, load_image
from imod_core.mel import MelSettings, log_mel
from imod_core.sampling import FrameSampling, load_clip
from imod_demo.medium import Medium
from imod_serve.answer import Answer

FRAMES = 8
"""Of a clip, shown where nobody says how many the model takes."""
THUMB = 240
"""Pixels of a thumbnail's longer side."""
WAVE_POINTS = 400
MEL_COLUMNS = 600
SHADES = ((16, 24, 32), (12, 74, 84), (20, 140, 134), (124, 208, 170), (246, 246, 214))
"""From silent to loud, dark to light whatever the page's colours."""
NAMES = {"text": "words", "image": "picture", "video": "clip", "audio": "sound", "media": "media"}
FEWEST_PAIRS = 3
"""Equal neighbours by which a token counts as a placeholder."""


def saw_html(media: Sequence[Medium], frames: FrameSampling | None) -> str:
    """All media of a conversation as a model gets them."""
    if not media:
        return ""
    seen = "".join(f'<article class="seen">{_heading(one)}{_seen(one, frames)}</article>' for one in media)
    return f"<h2>What the model saw and heard</h2>{seen}"


def figures_html(
    answer: Answer | None, kinds: Sequence[str], placeholders: Mapping[str, tuple[int, ...]] | None
) -> str:
    """The prompt's tokens by modality as one bar, and how fast the answer came."""
    if answer is None or not answer.prompt_tokens:
        return ""
    tokens = tokens_by_modality(answer.prompt_ids, kinds, placeholders) or {"text": answer.prompt_tokens}
    parts = "".join(f'<i class="{kind}" style="flex-grow:{count}"></i>' for kind, count in tokens.items())
    said = ", ".join(f"{count} of {NAMES[kind]}" for kind, count in tokens.items())
    keys = "".join(f'<li class="{kind}"><b>{count}</b> {NAMES[kind]}</li>' for kind, count in tokens.items())
    bar = f'<div class="tokens" role="img" aria-label="Tokens of the question: {said}">{parts}</div>'
    return f'{bar}<ul class="keys">{keys}{_speed(answer)}</ul>'


def tokens_by_modality(
    ids: Sequence[int] | None, kinds: Sequence[str], placeholders: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, int] | None:
    """How many of a prompt's tokens are words and how many stand for each kind of medium.

    Without known placeholders they are told by their runs: an id that often follows itself. Where the runs do not
    fit the `kinds` given, in order, all are counted as `media`. None if the server does not tell its ids.
    """
    if ids is None:
        return None
    if placeholders:
        found = {kind: sum(id in placeholders.get(kind, ()) for id in ids) for kind in kinds}
    else:
        found = _by_runs(ids, kinds)
    return {"text": len(ids) - sum(found.values())} | {kind: count for kind, count in found.items() if count}


def _by_runs(ids: Sequence[int], kinds: Sequence[str]) -> dict[str, int]:
    pairs = Counter(one for one, other in pairwise(ids) if one == other)
    placeholders = [one for one, count in pairs.most_common(len(kinds)) if count >= FEWEST_PAIRS]
    if len(placeholders) < len(kinds):
        return {"media": sum(one in placeholders for one in ids)}
    placeholders.sort(key=list(ids).index)
    return {kind: sum(one == id for one in ids) for kind, id in zip(kinds, placeholders, strict=True)}


def _speed(answer: Answer) -> str:
    if answer.first_token_seconds is None or answer.seconds is None:
        return ""
    line = f'<li class="speed"><b>{answer.first_token_seconds:.2f} s</b> to the first word</li>'
    later = answer.seconds - answer.first_token_seconds
    if answer.completion_tokens > 1 and later > 0:
        line += f'<li class="speed"><b>{(answer.completion_tokens - 1) / later:.1f}</b> tokens a second</li>'
    return line


def _heading(medium: Medium) -> str:
    changes = f'<p class="quiet">{escape("; ".join(medium.changes))}</p>' if medium.changes else ""
    return f"<h3>{escape(medium.name)}</h3>{changes}"


def _seen(medium: Medium, frames: FrameSampling | None) -> str:
    if medium.kind == "image":
        return f'<div class="frames"><img src="{_thumb(load_image(medium.path))}" alt="The picture as sent"></div>'
    if medium.kind == "audio":
        return _heard(medium)
    return _sampled(medium, frames) + (_heard(medium) if medium.sounding else "")


def _sampled(medium: Medium, frames: FrameSampling | None) -> str:
    clip = load_clip(medium.path, frames or FrameSampling(FRAMES))
    count, times = len(clip.frames), [index / clip.fps for index in clip.indices]
    shown = "".join(
        f'<figure><img src="{_thumb(Image.fromarray(picture))}" alt="Frame {index} of {count}, at {at:.1f} seconds">'
        f"<figcaption>{at:.1f} s</figcaption></figure>"
        for index, (picture, at) in enumerate(zip(clip.frames, times, strict=True), start=1)
    )
    words = f"the {count} frames that the model is given" if frames else f"{count} frames; the server may take others"
    return f'<p class="quiet">{words}</p><div class="frames" tabindex="0" aria-label="Frames">{shown}</div>'


def _heard(medium: Medium) -> str:
    samples = load_audio(medium.path)
    seconds = len(samples) / SAMPLE_RATE
    return (
        f'<p class="quiet">{seconds:.1f} s at 16 kHz, mono: the waveform, and its mel picture up to 8 kHz</p>'
        f"{_wave(samples, seconds)}{_mel(samples, seconds)}"
    )


def _wave(samples: NDArray[np.float32], seconds: float) -> str:
    """Highest and lowest sample of each stretch, as one filled shape."""
    stretches = np.array_split(samples, min(WAVE_POINTS, len(samples)))
    high = [f"{index},{50 - 48 * float(part.max()):.1f}" for index, part in enumerate(stretches)]
    low = [f"{index},{50 - 48 * float(part.min()):.1f}" for index, part in enumerate(stretches)]
    loudest = float(np.abs(samples).max())
    label = f"Waveform of {seconds:.1f} seconds, " + ("silent" if loudest < 1e-4 else f"loudest {loudest:.0%}")
    return (
        f'<svg class="wave" viewBox="0 0 {len(stretches)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}"><polygon points="{" ".join(high + low[::-1])}"/></svg>'
    )


def _mel(samples: NDArray[np.float32], seconds: float) -> str:
    settings = MelSettings()
    sound = np.pad(samples, (0, max(0, settings.n_fft - len(samples))))
    levels = log_mel(sound, settings)[::-1]
    step = max(1, levels.shape[1] // MEL_COLUMNS)
    levels = levels[:, : levels.shape[1] // step * step].reshape(levels.shape[0], -1, step).max(axis=2)
    share = (levels - levels.min()) / max(float(np.ptp(levels)), 1e-6)
    stops = np.linspace(0, 1, len(SHADES))
    pixels = np.stack([np.interp(share, stops, [shade[c] for shade in SHADES]) for c in range(3)], axis=-1)
    picture = _data_url(Image.fromarray(pixels.astype(np.uint8)), "PNG")
    alt = f"Mel picture of {seconds:.1f} seconds of sound, low tones at the bottom"
    return f'<img class="mel" src="{picture}" alt="{alt}">'


def _thumb(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((THUMB, THUMB))
    return _data_url(small, "JPEG")


def _data_url(picture: Image.Image, form: str) -> str:
    file = io.BytesIO()
    picture.save(file, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
