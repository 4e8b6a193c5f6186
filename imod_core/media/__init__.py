"""Media decoding: pictures, sounds and videos from a path or from bytes.

    source.py   opening a file, and the limits     packets.py       what a video's packets tell before decoding
    picture.py  sound.py  video.py                 orientation.py   how a video's frames are to be turned
    blank.py    media without their contents

Knows nothing of models: towers' processors resize and normalise. Every fault of a file ends in one sentence
that names the file; sizes beyond the limits are refused before they are decoded.
"""

from imod_core.media.picture import load_image
from imod_core.media.sound import HIGHEST_RATE, LOWEST_RATE, SAMPLE_RATE, has_sound, load_audio
from imod_core.media.source import MAX_PIXELS, MAX_SECONDS, SHORTFALL, Source
from imod_core.media.video import UNKNOWN_FPS, Clip, frame_indices, load_video, read_video

__all__ = [
    "HIGHEST_RATE",
    "LOWEST_RATE",
    "MAX_PIXELS",
    "MAX_SECONDS",
    "SAMPLE_RATE",
    "SHORTFALL",
    "UNKNOWN_FPS",
    "Clip",
    "Source",
    "frame_indices",
    "has_sound",
    "load_audio",
    "load_image",
    "load_video",
    "read_video",
]
