"""vLLM's media connector with a look at the headers before it decodes, by its own setting VLLM_MEDIA_CONNECTOR=imod.

Every medium of every route passes through the connector: data URLs, sounds as base64, and files fetched from domains
that are allowed. What it refuses ends as a 400 with the reason.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import AudioMediaIO, ImageMediaIO, MediaConnector, MediaIO, VideoMediaIO

from imod_core.errors import InputError, first_line
from imod_serve.headers import check_audio, check_image, check_video
from imod_serve.limits import NOWHERE, Limits, read_limits

FRAMES = "video/jpeg"
"""Media type under which vLLM takes a video as JPEG pictures, base64 with commas between them."""
CHECKS: dict[type, Callable[[bytes, Limits], None]] = {
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
        fetched = scheme in ("http", "https") and NOWHERE not in self.allowed_media_domains
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

    def get_max_bytes(self) -> int | None:
        """Bytes that are fetched of a file: as many as could have come in a request."""
        return min(self.inner.get_max_bytes() or self.limits.request_bytes, self.limits.request_bytes)

    def load_bytes(self, data: bytes) -> Any:
        self._look_at([data], self.check)
        return self._decoded(self.inner.load_bytes, data)

    def load_base64(self, media_type: str, data: str) -> Any:
        if media_type.lower() == FRAMES and self.check is check_video:
            pictures = [_bytes(picture) for picture in data.split(",")]
            if len(pictures) > self.limits.video_frames:
                raise VLLMValidationError(f"The video has {len(pictures):,} frames, more than are taken here.")
            # Of a video, so no larger than its frames may be: all are decoded at once.
            largest = min(self.limits.image_pixels, self.limits.video_pixels)
            self._look_at(pictures, check_image, replace(self.limits, image_pixels=largest))
        else:
            self._look_at([_bytes(data)], self.check)
        return self._decoded(self.inner.load_base64, media_type, data)

    def load_file(self, filepath: Path) -> Any:
        raise VLLMValidationError("Files of the server's machine are not read.")

    def _look_at(
        self, items: list[bytes], check: Callable[[bytes, Limits], None], limits: Limits | None = None
    ) -> None:
        try:
            for data in items:
                check(data, limits or self.limits)
        except InputError as error:
            raise VLLMValidationError(str(error)) from None

    def _decoded(self, load: Callable[..., Any], *given: Any) -> Any:
        """What a decoder of vLLM makes of a client's bytes; it raises what it likes where they are damaged."""
        try:
            return load(*given)
        except (VLLMValidationError, ImportError, MemoryError):
            raise
        except Exception as error:
            raise VLLMValidationError(f"A medium cannot be decoded ({first_line(error)}): send a whole file.") from None


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise VLLMValidationError("A medium is not base64: encode the file's bytes without line breaks.") from None
