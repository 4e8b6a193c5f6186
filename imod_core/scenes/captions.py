"""What a scene's picture and sound are, in words: the captions that align the projectors.

They name what stands where, and how many sound in which order and how loud, as directly as few words can.
"""

from imod_core.scenes.composition import PLACES, Scene, Sound
from imod_core.scenes.questions import NUMBERS

PICTURE_PROMPT = "Describe the picture."
SOUND_PROMPT = "Describe the sound."


def picture_caption(scene: Scene) -> str:
    """For example `left: violin, middle: nothing, right: drum`."""
    return ", ".join(f"{p}: {name or 'nothing'}" for p, name in zip(PLACES, scene.places, strict=True))


def sound_caption(scene: Scene) -> str:
    """For example `three: loud violin and soft drum, then soft flute`; `silence` without sounds."""
    ranks = sorted({sound.entrance for sound in scene.sounds})
    groups = [[sound for sound in scene.sounds if sound.entrance == rank] for rank in ranks]
    told = ", then ".join(" and ".join(map(_voice, sorted(group, key=_order))) for group in groups)
    return f"{NUMBERS[len(scene.sounds)]}: {told}" if told else "silence"


def _order(sound: Sound) -> tuple[bool, str]:
    return sound.level != "loud", sound.instrument


def _voice(sound: Sound) -> str:
    return sound.instrument if sound.level == "even" else f"{sound.level} {sound.instrument}"
