"""Damaged media through the connector and vLLM's own decoders: each is read, or refused as the client's mistake."""

import base64
from contextlib import nullcontext, suppress

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import AudioMediaIO, ImageMediaIO, VideoMediaIO

from imod_serve.connector import LimitedConnector, LimitedIO
from imod_serve.limits import NOWHERE, Limits
from imod_serve.vllm_plugin import register

from .damage import PICTURES, SOUNDS, VIDEOS, damaged, encoded

register()


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


def test_pictures_of_a_video_are_counted_before_they_are_looked_at():
    few = LimitedIO(VideoMediaIO(ImageMediaIO(), num_frames=4), Limits(video_frames=100))
    with pytest.raises(VLLMValidationError, match="101 frames: at most 100"):
        few.load_base64("video/jpeg", "," * 100)


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_frames_are_refused_before_they_fill_the_memory(frames):
    """Pixels of all frames that are read: of a file those that the rule names, of pictures the first so many."""
    side = hostile.SIDE
    sampled = {"fps": frames / 2, "rule": "Qwen2VLVideoProcessor", "min_frames": 2, "video_backend": "imod"}
    rule = lambda most: LimitedIO(VideoMediaIO(ImageMediaIO(), **sampled), Limits(video_kept_pixels=most))  # noqa: E731
    clip = hostile.video(1, frames=16, rate=8)
    kept = len(rule(10**9).load_bytes(clip).media[0])
    assert rule(kept * side * side).load_bytes(clip) is not None
    with pytest.raises(VLLMValidationError, match="in the frames that are read of it"):
        rule(kept * side * side - 1).load_bytes(clip)
    picture = base64.b64encode(encoded("JPEG", (16, 16))).decode()
    for most, passes in ((256 * frames, True), (256 * frames - 1, False)):
        few = LimitedIO(VideoMediaIO(ImageMediaIO(), num_frames=frames), Limits(video_kept_pixels=most))
        with nullcontext() if passes else pytest.raises(VLLMValidationError, match="frames that are read"):
            assert few.load_base64("video/jpeg", ",".join([picture] * 6)) is not None


@pytest.mark.parametrize("domains", [None, [], [NOWHERE]])
def test_nothing_is_fetched_unless_domains_are_named(domains):
    connector = LimitedConnector(allowed_media_domains=domains)
    with pytest.raises(VLLMValidationError, match="none is allowed to be fetched"):
        connector.fetch_image("http://127.0.0.1:9/a.png")
