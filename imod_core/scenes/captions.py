"""What a scene's picture and sound are, in words: captions, which align the projectors, and descriptions of both.

They name what stands where, what sounds in which order and how loud, and which of what one sees one hears, as
directly as few words can.
"""

from imod_core.scenes.composition import PLACES, Scene, Sound
from imod_core.scenes.questions import NUMBERS

PICTURE_PROMPT = "Describe the picture."
SOUND_PROMPT = "Describe the sound."
CLIP_PROMPT = "Describe what you see and hear."


def picture_caption(scene: Scene) -> str:
    """For example `left: violin, middle: nothing, right: drum`."""
    return ", ".join(f"{p}: {name or 'nothing'}" for p, name in zip(PLACES, scene.places, strict=True))


def sound_caption(scene: Scene) -> str:
    """For example `three: loud violin and soft drum, then soft flute`; `silence` without sounds."""
    ranks = sorted({sound.entrance for sound in scene.sounds})
    groups = [[sound for sound in scene.sounds if sound.entrance == rank] for rank in ranks]
    told = ", then ".join(" and ".join(map(_voice, sorted(group, key=_order))) for group in groups)
    return f"{NUMBERS[len(scene.sounds)]}: {told}" if told else "silence"


def clip_caption(scene: Scene) -> str:
    """For example `left violin plays, middle nothing, right drum silent, outside flute`."""
    places = [_standing(scene, place, name) for place, name in zip(PLACES, scene.places, strict=True)]
    outside = sorted(name for name in scene.heard if name not in scene.seen)
    return ", ".join([*places, f"outside {' and '.join(outside) or 'nothing'}"])


def _standing(scene: Scene, place: str, name: str | None) -> str:
    if name is None:
        return f"{place} nothing"
    return f"{place} {name} {'plays' if name in scene.heard else 'silent'}"


def _order(sound: Sound) -> tuple[bool, str]:
    return sound.level != "loud", sound.instrument


def _voice(sound: Sound) -> str:
    return sound.instrument if sound.level == "even" else f"{sound.level} {sound.instrument}"
