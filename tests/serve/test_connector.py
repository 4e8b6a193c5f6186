"""Damaged media through the connector and vLLM's own decoders: each is read, or refused as the client's mistake."""

import base64
from contextlib import suppress

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import AudioMediaIO, ImageMediaIO, VideoMediaIO

from imod_serve.connector import LimitedIO
from imod_serve.limits import Limits

from .damage import PICTURES, SOUNDS, VIDEOS, damaged, encoded


def reader(kind):
    if kind == "image":
        return LimitedIO(ImageMediaIO(), Limits())
    return LimitedIO(AudioMediaIO() if kind == "audio" else VideoMediaIO(ImageMediaIO(), num_frames=4), Limits())


WHOLE = {"image": PICTURES, "audio": SOUNDS, "video": VIDEOS}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_media_are_read(kind):
    for data in WHOLE[kind]:
        assert reader(kind).load_bytes(data) is not None


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_is_changed_in_a_file_it_is_read_or_refused(kind, data):
    with suppress(VLLMValidationError):
        reader(kind).load_bytes(damaged(data, WHOLE[kind]))


def test_a_sound_that_names_an_encoding_that_it_is_not_in_is_refused():
    wav = hostile.sound(1, 0.1)
    with pytest.raises(VLLMValidationError, match=r"cannot be decoded \(.*ADPCM.*: send a whole file"):
        reader("audio").load_bytes(wav[:20] + b"\2" + wav[21:])


def test_a_video_as_pictures_is_held_to_the_pixels_of_a_frame():
    frame = base64.b64encode(encoded("JPEG", (16, 16))).decode()
    small = LimitedIO(VideoMediaIO(ImageMediaIO(), num_frames=4), Limits(video_pixels=255))
    with pytest.raises(VLLMValidationError, match="256 pixels: at most 255"):
        small.load_base64("video/jpeg", f"{frame},{frame}")
    assert reader("video").load_base64("video/jpeg", f"{frame},{frame}") is not None
