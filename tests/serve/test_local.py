"""A folder asked in this process refuses what a server would refuse, in a sentence."""

from dataclasses import replace

import pytest

from imod_core.errors import InputError
from imod_core.families import FAMILIES
from imod_core.families.shrunken import build_shrunken
from imod_core.samples import Message, Sample
from imod_serve.local import LocalModel


@pytest.fixture(scope="module")
def avt(base):
    return LocalModel(base)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A model that takes no sounds."""
    folder = tmp_path_factory.mktemp("qwen") / "model"
    build_shrunken(FAMILIES["qwen2.5-vl"], folder, seed=0)
    return LocalModel(folder)


@pytest.mark.parametrize(
    ("question", "pictures", "fault"),
    [
        ("<image>Which?", 2, "1 of the images have no <image> tag"),
        ("<image><image>Which?", 1, "more <image> tags than images were given: 2 and 1"),
        ("<image>Which?", 0, "more <image> tags than images were given: 1 and 0"),
        ("<image>Which <|audio|>?", 1, r"has <\|audio\|> in its text"),
        ("What does <|im_end|> mean?", 0, r"has <\|im_end\|> in its text"),
    ],
)
def test_tags_media_and_text_must_fit_together(avt, media, question, pictures, fault):
    with pytest.raises(InputError, match=fault):
        avt.ask(question, [media.image] * pictures, max_tokens=1)


def test_placeholders_without_a_role_are_refused_too(qwen, media):
    assert "<|image_pad|>" not in qwen.processor.tokenizer.all_special_tokens
    with pytest.raises(InputError, match=r"has <\|image_pad\|> in its text"):
        qwen.ask("<|image_pad|>What?", [media.image], max_tokens=1)


def test_a_sound_is_not_dropped_on_the_way_to_a_model_that_takes_none(qwen, media):
    with pytest.raises(InputError, match="has audios; this model takes image, video alone"):
        qwen.ask("What?", audios=[media.audio], max_tokens=1)
    sounding, muted = (qwen.ask("What?", videos=[media.video], mute=mute, max_tokens=1) for mute in (False, True))
    assert sounding.prompt_tokens == muted.prompt_tokens


def test_media_of_the_answer_are_not_part_of_the_question(avt, media):
    turns = (Message("user", "<image>Which?"), Message("assistant", "This one: <image>"))
    sample = Sample("s", turns, (media.image, media.other_image))
    asked = avt.ask_sample(sample, max_tokens=2)
    assert asked == avt.ask("<image>Which?", [media.image], max_tokens=2)
    with pytest.raises(InputError, match="more <image> tags"):
        avt.ask_sample(replace(sample, images=()), max_tokens=1)


def test_blanked_media_stay_as_long_and_say_nothing(qwen, media):
    def logits(image, video, blanked):
        asked = [Message("user", "<image><video>What?")], {"<image>": [image], "<audio>": [], "<video>": [video]}
        return qwen.model(**qwen.inputs(*asked, blanked)).logits

    one, other = (media.image, media.video), (media.other_image, media.other_video)
    assert not logits(*one, ()).equal(logits(*other, ()))
    assert not logits(*one, ("image",)).equal(logits(*other, ("image",)))
    assert logits(*one, ("image", "video")).equal(logits(*other, ("image", "video")))
    assert logits(*one, ("image", "video")).shape == logits(*one, ()).shape
