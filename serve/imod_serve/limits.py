"""What one request may cost a server: numbers, derived from the model folder, that a user may set otherwise.

The launcher hands them to vLLM's processes through one environment variable; `guard` and `connector` hold requests to
them, and `flags` sets vLLM's own limits from them.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

from imod_core.errors import InputError
from imod_core.media import HIGHEST_RATE, MAX_PIXELS, MAX_SECONDS
from imod_core.modality import MODALITIES

LIMITS = "IMOD_SERVE_LIMITS"
"""Environment variable with the limits as JSON."""
NOWHERE = "media.invalid"
"""A name that can never exist (RFC 2606): the one domain media may come from, so that no URL is fetched."""
LOOPBACK_ONLY = "IMOD_SERVE_LOOPBACK"
"""Environment variable, set where the server listens on loopback without a key: a web page that makes its own name
point to 127.0.0.1 could otherwise ask it from the user's browser."""
READY = "IMOD_SERVE_READY"
"""Environment variable with the file that the launcher writes when its probe has passed."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of all at once; each is the largest value that is still taken."""

    images: int = 4
    audios: int = 4
    videos: int = 2
    """Media of a kind; 0 takes none."""
    request_bytes: int = 64 << 20
    """Of the body as sent, where media are a third larger than their files."""
    request_seconds: int = 300
    """From its first byte to the last of its answer."""
    requests: int = 256
    """Being answered or waiting at once; more get a 429, which clients send again."""
    held_bytes: int = 1 << 30
    """Of all bodies at once; what comes beyond gets a 429 too."""
    image_pixels: int = MAX_PIXELS
    audio_seconds: int = int(MAX_SECONDS)
    audio_channels: int = 6
    """A film's 5.1 still passes."""
    audio_rate: int = HIGHEST_RATE
    """Hz."""
    audio_bytes: int = 256 << 20
    """Decoded, at the file's own rate and channels in four bytes a sample: ten minutes of stereo at 48 kHz."""
    video_seconds: int = int(MAX_SECONDS)
    video_pixels: int = 1 << 23
    """Of one frame; 3840 x 2160 still passes."""
    video_frames: int = 20_000
    """In the file: to reach the last, all have to be decoded."""
    video_total_pixels: int = 20_000_000_000
    """Of all frames together: ten minutes of 720p at 30 a second, or a minute and a half of 2160p."""
    video_kept_pixels: int = 500_000_000
    """Of the frames that the model is given, which are in memory together, three bytes a pixel, at the file's size."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("images", "audios", "videos") else 1
            if type(value) is not int or value < least:
                raise InputError(f"The limit {field.name} is {value!r}: expected a whole number from {least} on.")

    def by_modality(self, modalities: Sequence[str]) -> dict[str, int]:
        """Media of each kind that the model takes, under vLLM's names (image, audio, video)."""
        return {kind: getattr(self, f"{kind}s") for kind in MODALITIES if kind in modalities}

    def changed(self, settings: Sequence[str]) -> "Limits":
        """These limits with `NAME=NUMBER` settings of a command line.

        Raises:
            InputError: no such limit, or no number.
        """
        values = {}
        for setting in settings:
            name, _, number = setting.partition("=")
            names = [field.name for field in fields(self)]
            if name not in names:
                raise InputError(f"--limit {setting}: expected NAME=NUMBER with a name of {', '.join(names)}.")
            if not number.isascii() or not number.isdigit():
                raise InputError(f"--limit {setting}: expected a whole number after =.")
            values[name] = int(number)
        return replace(self, **values)

    def to_json(self) -> str:
        """For the environment."""
        return json.dumps(asdict(self))


def read_limits() -> Limits:
    """The launcher's limits, in a process that it started; elsewhere the defaults."""
    return Limits(**json.loads(os.environ.get(LIMITS, "{}")))
