import base64
import io
import wave

import numpy as np
import pytest
import soundfile
from PIL import Image

from imod_core.errors import InputError, MissingFileError
from imod_core.media import load_audio
from imod_core.samples import Message, Sample
from imod_serve.messages import Turn, audio_part, image_part, sample_messages, turn_messages, video_part


def ask(question, images=(), audios=(), videos=(), **options):
    (message,) = turn_messages([Turn("user", question, tuple(images), tuple(audios), tuple(videos), **options)])
    return message["content"]


def kinds(parts):
    return [part["text"] if part["type"] == "text" else part["type"] for part in parts]


def test_a_question_without_media_stays_plain_text():
    assert ask("Hello?") == "Hello?"


def test_media_come_first_in_order_of_kind_and_a_video_is_followed_by_its_sound(media):
    parts = ask("What?", [media.image], [media.audio], [media.video, media.silent])
    assert kinds(parts) == ["image_url", "video_url", "input_audio", "video_url", "input_audio", "What?"]


def test_a_muted_video_comes_without_sound(media):
    assert kinds(ask("What?", videos=[media.video], mute=True)) == ["video_url", "What?"]


def test_tags_in_the_question_say_where_media_belong(media):
    parts = ask("First <image> then <audio>.", [media.image], [media.audio])
    assert kinds(parts) == ["First ", "image_url", " then ", "input_audio", "."]


def test_tags_and_media_must_match_in_number(media):
    with pytest.raises(InputError, match="more <image> tags"):
        ask("<image><image>?", [media.image])
    with pytest.raises(InputError, match="have no <audio> tag"):
        ask("<image>?", [media.image], [media.audio])


def test_a_sample_keeps_its_turns_and_leaves_out_the_answer(media):
    turns = [
        ("system", "Be brief."),
        ("user", "<image>A?"),
        ("assistant", "yes"),
        ("user", "<image>B?"),
        ("assistant", "no"),
    ]
    sample = Sample("s", tuple(Message(*turn) for turn in turns), (media.image, media.other_image))
    messages = sample_messages(sample)
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[1]["content"][0] == image_part(media.image)
    assert messages[3]["content"][0] == image_part(media.other_image)
    assert image_part(media.image) != image_part(media.other_image)


def test_a_sound_arrives_as_the_decoder_reads_it(media):
    data = base64.b64decode(audio_part(media.audio)["input_audio"]["data"])
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == 16_000
    np.testing.assert_array_equal(samples, load_audio(media.audio))
    assert not np.array_equal(samples, load_audio(media.silent_wav))


def test_a_picture_arrives_pixel_by_pixel(media):
    data = base64.b64decode(image_part(media.image)["image_url"]["url"].split(",")[1])
    np.testing.assert_array_equal(Image.open(io.BytesIO(data)), Image.open(media.image))


def test_bad_media_never_leave_the_client(tmp_path, media):
    broken, empty = tmp_path / "broken.png", tmp_path / "empty.wav"
    broken.write_bytes(b"no picture")
    with wave.open(str(empty), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", "NONE"))
    with pytest.raises(InputError, match=r"broken\.png"):
        image_part(broken)
    with pytest.raises(InputError, match="zero length"):
        audio_part(empty)
    with pytest.raises(InputError, match="no sound stream"):
        audio_part(media.silent)
    for not_a_video in (broken, media.audio):
        with pytest.raises(InputError, match=not_a_video.name):
            video_part(not_a_video)
    with pytest.raises(MissingFileError):
        video_part(tmp_path / "absent.mp4")
