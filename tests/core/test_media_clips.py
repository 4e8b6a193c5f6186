"""Clips that were trimmed, mirrored or joined come out as they are shown, and damage ends in a sentence."""

import io
import struct

import numpy as np
import pytest
from media_files import (
    unannounced_stream,
)
from PIL import Image

from imod_core.errors import InputError
from imod_core.media import load_audio, load_image, load_video

# Pictures


def test_sixteen_bits_in_a_pgm_keep_their_range() -> None:
    image = load_image(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32768, 65535))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


@pytest.mark.parametrize(("values", "seen"), [
    ((0, 128, 255), (0, 128, 255)), ((0, 32_768, 65_535), (0, 128, 255)), ((-5, 2**30, 2**31 - 1), (0, 128, 255)),
])  # fmt: skip
def test_whole_numbers_of_32_bits_are_scaled_by_what_is_in_them(values: tuple[int, ...], seen: tuple[int, ...]) -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([values], np.int32)).save(file, "TIFF")
    assert tuple(load_image(file.getvalue()).getpixel((x, 0))[0] for x in range(3)) == seen


# Damage


def test_a_damaged_avif_is_refused() -> None:
    file = io.BytesIO()
    Image.effect_noise((24, 32), 60).convert("RGB").save(file, "AVIF")
    whole = file.getvalue()
    assert load_image(whole).size == (24, 32)
    with pytest.raises(InputError, match="damaged picture"):
        load_image(whole.replace(b"pitm", b"zzzz"))  # the box that names the picture among the items


def test_packets_of_a_stream_that_is_not_announced_are_damage() -> None:
    for load in (lambda data: load_video(data, 2), load_audio):
        with pytest.raises(InputError, match=r"does not announce|no sound stream"):
            load(unannounced_stream())
