"""Small whole files, and what is left of them after some bytes were changed."""

import io

import hostile
from hypothesis import strategies as st
from PIL import Image


def encoded(format, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, format)
    return file.getvalue()


PICTURES = [encoded(format, (16, 16)) for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")]
SOUNDS = [hostile.sound(1, 0.1, format=format) for format in ("WAV", "FLAC", "OGG")]
VIDEOS = [hostile.video(1, 4)]


def damaged(data, files):
    """One of `files` with up to eight bytes of its first 600 changed; `data` is hypothesis'."""
    content = bytearray(data.draw(st.sampled_from(files)))
    places = st.integers(0, min(len(content), 600) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        content[place] = value
    return bytes(content)
