"""vLLM's media connector with a look at the headers before it decodes, by its own setting VLLM_MEDIA_CONNECTOR=imod.

Every medium of every route passes through the connector: data URLs, sounds as base64, and files fetched from domains
that are allowed. What it refuses ends as a 400 with the reason.
"""

import base64
import binascii
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import AudioMediaIO, ImageMediaIO, MediaConnector, MediaIO, VideoMediaIO

from imod_core.errors import InputError, first_line
from imod_serve.headers import check_audio, check_image, check_kept, check_video
from imod_serve.limits import NOWHERE, Limits, read_limits

FRAMES = "video/jpeg"
"""Media type under which vLLM takes a video as JPEG pictures, base64 with commas between them."""
CHECKS: dict[type, Callable[[bytes, Limits], Any]] = {
    ImageMediaIO: check_image,
    AudioMediaIO: check_audio,
    VideoMediaIO: check_video,
}


class LimitedConnector(MediaConnector):
    """Holds each medium to the launcher's limits, and takes data URLs and URLs of allowed domains alone."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.limits = read_limits()

    def load_from_url(self, url: str, media_io: Any, **options: Any) -> Any:
        self._check_url(url)
        return super().load_from_url(url, LimitedIO(media_io, self.limits), **options)

    async def load_from_url_async(self, url: str, media_io: Any, **options: Any) -> Any:
        self._check_url(url)
        return await super().load_from_url_async(url, LimitedIO(media_io, self.limits), **options)

    def _check_url(self, url: str) -> None:
        scheme = url[:8].partition(":")[0].lower()
        # vLLM by itself takes no list of domains for all of them.
        named = bool(self.allowed_media_domains) and NOWHERE not in self.allowed_media_domains
        fetched = scheme in ("http", "https") and named
        if scheme != "data" and not fetched:
            raise VLLMValidationError(
                "A medium is given by an address or path, and none is allowed to be fetched here: "
                "send its content as a data URL."
            )
        if scheme == "data" and not url[:200].partition(",")[0].lower().endswith(";base64"):
            raise VLLMValidationError("A data URL does not begin like data:image/png;base64,: send the bytes so.")
        # Which domains are allowed is checked by vLLM, on its own reading of the URL.


class LimitedIO(MediaIO[Any]):
    """vLLM's decoder of one kind of media, behind the check of that kind."""

    def __init__(self, inner: Any, limits: Limits):
        self.inner, self.limits = inner, limits
        self.check = next(check for kind, check in CHECKS.items() if isinstance(inner, kind))
        if isinstance(inner, VideoMediaIO):
            self.check = partial(check_video, kept=partial(_kept, inner))

    def get_max_bytes(self) -> int | None:
        """Bytes that are fetched of a file: as many as could have come in a request."""
        return min(self.inner.get_max_bytes() or self.limits.request_bytes, self.limits.request_bytes)

    def load_bytes(self, data: bytes) -> Any:
        with _as_vllm_says():
            self.check(data, self.limits)
        return self._decoded(self.inner.load_bytes, data)

    def load_base64(self, media_type: str, data: str) -> Any:
        with _as_vllm_says():
            if media_type.lower() == FRAMES and isinstance(self.inner, VideoMediaIO):
                self._check_frames(data, self.inner.num_frames)
            else:
                self.check(_bytes(data), self.limits)
        return self._decoded(self.inner.load_base64, media_type, data)

    def load_file(self, filepath: Path) -> Any:
        raise VLLMValidationError("Files of the server's machine are not read.")

    def _check_frames(self, data: str, most: int) -> None:
        """Look at the pictures of a video, of which vLLM reads the first `most`, or all where that is below 0."""
        count = data.count(",") + 1
        if count > self.limits.video_frames:
            raise InputError(f"The video has {count:,} frames: at most {self.limits.video_frames:,} are taken here.")
        pictures = data.split(",", most)[:most] if most > 0 else data.split(",")
        # Of a video, so no larger than its frames may be: all are decoded at once.
        limits = replace(self.limits, image_pixels=min(self.limits.image_pixels, self.limits.video_pixels))
        pixels = 0
        for picture in pictures:
            pixels += check_image(_bytes(picture), limits)
            check_kept(pixels, limits)

    def _decoded(self, load: Callable[..., Any], *given: Any) -> Any:
        """What a decoder of vLLM makes of a client's bytes; it raises what it likes where they are damaged."""
        try:
            return load(*given)
        except (VLLMValidationError, ImportError, MemoryError):
            raise
        except Exception as error:
            raise VLLMValidationError(f"A medium cannot be decoded ({first_line(error)}): send a whole file.") from None


def _kept(inner: VideoMediaIO, total: int, fps: float) -> int:
    """How many of a video's frames vLLM's decoder keeps."""
    sampling = getattr(inner.video_loader, "sampling", None)
    if sampling:  # our own loader's
        return len(sampling(num_frames=inner.num_frames, **inner.kwargs).places(total, fps))
    return min(total, inner.num_frames) if inner.num_frames > 0 else total


@contextmanager
def _as_vllm_says() -> Iterator[None]:
    """What a check refuses, as the error that vLLM answers with a 400."""
    try:
        yield
    except InputError as error:
        raise VLLMValidationError(str(error)) from None


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise VLLMValidationError("A medium is not base64: encode the file's bytes without line breaks.") from None
