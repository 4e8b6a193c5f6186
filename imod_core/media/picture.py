"""Pictures."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from imod_core.errors import InputError, first_line
from imod_core.media.source import Source, check_pixels, name_and_file


def load_image(source: Source) -> Image.Image:
    """A picture as RGB; turned upright by its EXIF data, transparency laid over white."""
    name, file = name_and_file(source)
    try:
        with Image.open(file) as image:
            check_pixels(name, *image.size)
            upright = ImageOps.exif_transpose(image)
            if image.mode == "I" or image.mode.startswith("I;16"):
                return _scaled_to_8_bits(np.asarray(upright), sixteen=image.format != "TIFF" or image.mode != "I")
            return _over_white(upright)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture that can be read: expected PNG, JPEG, WebP or the like.") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error}") from None
    except Exception as error:  # Pillow's readers raise what they like over damaged files
        raise InputError(f"{name} is a damaged picture ({first_line(error)}).") from None


def _over_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    front = image.convert("RGBA")
    white = Image.new("RGBA", front.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, front).convert("RGB")


def _scaled_to_8_bits(grey: NDArray[np.integer], *, sixteen: bool) -> Image.Image:
    """The upper 8 bits, where Pillow's own conversion clips.

    32 bits are wider than what is in them, often a camera's 16: the fewest of 8, 16 and 31 count that hold all values.
    """
    values = grey.astype(np.int64).clip(0)
    bits = 16 if sixteen else next(bits for bits in (8, 16, 31) if values.max(initial=0) < 1 << bits)
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert("RGB")
