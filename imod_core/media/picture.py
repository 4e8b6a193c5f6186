"""Pictures."""

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from imod_core.errors import InputError
from imod_core.media.source import Source, check_pixels, name_and_file


def load_image(source: Source) -> Image.Image:
    """A picture as RGB; turned upright by its EXIF data, transparency laid over white."""
    name, file = name_and_file(source)
    try:
        with Image.open(file) as image:
            check_pixels(name, *image.size)
            upright = ImageOps.exif_transpose(image)
            return _over_white(upright)
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture that can be read: expected PNG, JPEG, WebP or the like.") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is a damaged picture ({error}).") from None


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL's own conversion clips 16 bits to 8 instead of scaling them
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    front = image.convert("RGBA")
    white = Image.new("RGBA", front.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, front).convert("RGB")
