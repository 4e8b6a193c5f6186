"""Official annotation files to sample files, on the real files where they are at hand."""

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from PIL import Image

from imod_core.convert import Converted, convert_llava, convert_music_avqa, fill_question
from imod_core.data_cli import data
from imod_core.errors import InputError, MissingFileError
from imod_core.samples import read_samples
from imod_core.scenes.composition import sample_scene, stream
from imod_core.scenes.render import render, take_stock

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
OFFICIAL = SHARED / "data" / "music_avqa"
with_official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"no official files at {OFFICIAL}")
ROW = {
    "video_id": "0001",
    "question_id": 7,
    "type": '["Audio-Visual", "Location"]',
    "question_content": "Is the <FL> sound coming from the <LR> instrument?",
    "templ_values": '["first", "left"]',
    "question_deleted": 0,
    "anser": "no",
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 0001.mp4 (with sound), 0001.png and 0001.wav."""
    folder = tmp_path_factory.mktemp("media")
    render(sample_scene(stream(0), "0001", ["drawn-filled"], False), take_stock("drawn"), 0, folder)
    return folder


def write(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows))
    return path


# MUSIC-AVQA


def test_a_row_becomes_video_sound_track_question_and_answer(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "test.jsonl"
    assert convert_music_avqa(write(tmp_path / "a.json", [ROW]), media, out) == Converted(1, 0)
    (sample,) = read_samples(out)
    assert sample.id == "7"
    asked = "<video><audio>Is the first sound coming from the left instrument?"
    assert sample.messages[0].content == asked
    assert sample.answer == "no"
    assert sample.videos == sample.audios == ((media / "0001.mp4").resolve(),)
    assert sample.meta["type"] == ["Audio-Visual", "Location"]


def test_missing_videos_are_counted_and_named(media: Path, tmp_path: Path) -> None:
    rows = [ROW, *({**ROW, "video_id": f"{n:04}", "question_id": n} for n in range(10, 15))]
    file = write(tmp_path / "a.json", rows)
    with pytest.raises(MissingFileError) as caught:
        convert_music_avqa(file, media, tmp_path / "out.jsonl")
    assert "5 of 6 rows" in str(caught.value)
    assert "0010.mp4, 0011.mp4, 0012.mp4, ..." in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()
    assert convert_music_avqa(file, media, tmp_path / "out.jsonl", skip_missing=True) == Converted(1, 5)
    assert len(read_samples(tmp_path / "out.jsonl")) == 1


@pytest.mark.parametrize("name", ["a.json", "b.jsonl"])
def test_nothing_that_is_there_is_written_over(name: str, media: Path, tmp_path: Path) -> None:
    file, out = write(tmp_path / "a.json", [ROW]), tmp_path / name
    (tmp_path / "b.jsonl").write_text("mine")
    before = out.read_text()
    fault = "is the file to convert" if out == file else "already exists"
    with pytest.raises(InputError, match=rf"{fault}: give another --out, or remove it first"):
        convert_music_avqa(file, media, out)
    assert out.read_text() == before


def test_repeated_ids_stay_apart(media: Path, tmp_path: Path) -> None:
    convert_music_avqa(write(tmp_path / "a.json", [ROW, ROW]), media, tmp_path / "out.jsonl")
    assert [sample.id for sample in read_samples(tmp_path / "out.jsonl")] == ["7", "7#2"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"templ_values": '["first"]'}, "2 blanks and 1 template values"),
        ({"templ_values": "first"}, "not JSON in a string"),
        ({"type": ["Audio"]}, "not JSON in a string"),
    ],
)
def test_a_malformed_row_is_refused_with_its_number(change: dict, fault: str, media: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", [ROW, {**ROW, **change}])
    with pytest.raises(InputError, match=fault) as caught:
        convert_music_avqa(file, media, tmp_path / "out.jsonl")
    assert "row 2" in str(caught.value)


def test_a_row_without_the_official_answer_key_is_refused(media: Path, tmp_path: Path) -> None:
    row = {("answer" if key == "anser" else key): value for key, value in ROW.items()}
    with pytest.raises(InputError, match="row 1 has no 'anser'"):
        convert_music_avqa(write(tmp_path / "a.json", [row]), media, tmp_path / "out.jsonl")


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1]", "not json"])
def test_a_file_without_annotations_is_refused(content: str, media: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError):
        convert_music_avqa(tmp_path / "a.json", media, tmp_path / "out.jsonl")


@with_official
@pytest.mark.parametrize("file", sorted(OFFICIAL.glob("*.json.gz")), ids=lambda file: file.name)
def test_every_official_question_is_filled(file: Path) -> None:
    rows = json.loads(gzip.decompress(file.read_bytes()))
    filled = [fill_question(row["question_content"], json.loads(row["templ_values"])) for row in rows]
    assert not any("<" in question for question in filled)
    assert len({row["question_content"].strip() for row in rows}) <= 33


@with_official
def test_the_official_test_file_converts_for_the_clip_at_hand(tmp_path: Path) -> None:
    file = OFFICIAL / "json_update_avqa-test.json.gz"
    kinds = Counter(row["type"] for row in json.loads(gzip.decompress(file.read_bytes())))
    assert kinds['["Audio-Visual", "Temporal"]'] == 822
    shutil.copy(SHARED / "media" / "vl2_00003491.mp4", tmp_path / "00003491.mp4")
    result = convert_music_avqa(file, tmp_path, tmp_path / "out.jsonl", skip_missing=True)
    assert result == Converted(1, 9128)
    (sample,) = read_samples(tmp_path / "out.jsonl")
    assert sample.id == "8487"
    assert sample.question == "Is the instrument on the left louder than the instrument on the right?"
    assert sample.answer == "no"


# LLaVA


def llava(tmp_path: Path, media: Path, *rows: dict) -> list:
    convert_llava(write(tmp_path / "a.json", list(rows)), media, tmp_path / "out.jsonl")
    return read_samples(tmp_path / "out.jsonl")


def entry(first: str, **fields: object) -> dict:
    turns = [{"from": "human", "value": first}, {"from": "gpt", "value": "A violin."}]
    return {"id": "x", "conversations": turns, **fields}


def test_a_picture_conversation_keeps_its_turns(media: Path, tmp_path: Path) -> None:
    row = entry("<image>\nWhat is it?", image="0001.png")
    row["conversations"] += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    (sample,) = llava(tmp_path, media, row)
    assert [message.role for message in sample.messages] == ["user", "assistant"] * 2
    assert sample.messages[0].content == "<image>\nWhat is it?"
    assert sample.images == ((media / "0001.png").resolve(),)


def test_media_without_a_tag_come_first(media: Path, tmp_path: Path) -> None:
    (sample,) = llava(tmp_path, media, entry("What is it?", audio="0001.wav"))
    assert sample.messages[0].content == "<audio>What is it?"


def test_an_image_tag_stands_for_the_video_of_an_entry(media: Path, tmp_path: Path) -> None:
    (sample,) = llava(tmp_path, media, entry("<image>\nWhat happens?", video="0001.mp4"))
    assert sample.messages[0].content == "<video>\nWhat happens?"
    assert len(sample.videos) == 1


def test_an_audio_tag_without_a_sound_is_the_sound_track(media: Path, tmp_path: Path) -> None:
    (sample,) = llava(tmp_path, media, entry("<video><audio>What happens?", video="0001.mp4"))
    assert sample.audios == sample.videos


def test_text_alone_is_a_sample_too(media: Path, tmp_path: Path) -> None:
    (sample,) = llava(tmp_path, media, entry("What is a violin?"))
    assert sample.images == sample.audios == sample.videos == ()


def test_the_number_zero_is_an_id_and_an_absent_one_is_the_rows_number(media: Path, tmp_path: Path) -> None:
    rows = [{**entry("What?"), "id": 0}, {**entry("What?"), "id": None}]
    assert [sample.id for sample in llava(tmp_path, media, *rows)] == ["0", "2"]


def test_a_repeated_id_does_not_take_anothers_name(media: Path, tmp_path: Path) -> None:
    rows = [{**entry("What?"), "id": name} for name in ("a", "a", "a#2", "a")]
    assert [sample.id for sample in llava(tmp_path, media, *rows)] == ["a", "a#3", "a#2", "a#4"]


def test_lines_end_at_line_feeds_alone_and_may_begin_with_a_mark(media: Path, tmp_path: Path) -> None:
    text = "What\u2028is\x85it?"
    file = tmp_path / "a.jsonl"
    lines = "".join(json.dumps({**entry(text), "id": n}, ensure_ascii=False) + "\r\n" for n in (1, 2))
    file.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert convert_llava(file, media, tmp_path / "out.jsonl") == Converted(2, 0)
    assert [sample.question for sample in read_samples(tmp_path / "out.jsonl")] == [text, text]


def turns(*pairs: tuple[str, object]) -> dict:
    return {"id": "x", "conversations": [{"from": role, "value": value} for role, value in pairs]}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (turns(("gpt", "Hello."), ("human", "What?")), "has the roles assistant, user"),
        (turns(("human", "What?"), ("human", "What?")), "has the roles user, user"),
        (turns(), "conversations that cannot be read"),
        (turns(("human", None)), "conversations that cannot be read"),
        (turns(("human", 3)), "conversations that cannot be read"),
        (turns(("human", "What\ud83d?")), "has half a character in its text"),
        ({**entry("What?"), "id": ["x"]}, "expected a text or a number"),
    ],
)
def test_what_could_not_be_read_again_is_refused_with_its_row(
    row: dict, fault: str, media: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=fault) as caught:
        llava(tmp_path, media, entry("What?"), row)
    assert "a.json, row 2 " in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (entry("<image><image>Same?", image="0001.png"), "2 <image> in its conversation and 1 such files"),
        (entry("What?", image={"path": "0001.png"}), "expected a path or a list of paths"),
        ({"id": "x", "conversations": [{"role": "user"}]}, "conversations that cannot be read"),
        ({"id": "x", "image": "0001.png"}, "no 'conversations'"),
        (entry("What?", image="0002.png"), "0002.png"),
    ],
)
def test_a_malformed_entry_is_refused(row: dict, fault: str, media: Path, tmp_path: Path) -> None:
    with pytest.raises((InputError, MissingFileError), match=fault):
        llava(tmp_path, media, row)
    assert not (tmp_path / "out.jsonl").exists()


def test_the_command_says_what_it_wrote_and_skipped(media: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", [entry("What?", image="0001.png"), entry("What?", image="none.png")])
    arguments = ["convert", "llava", str(file), "--media", str(media), "--out", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(data, [*arguments, "--skip-missing"])
    assert result.exit_code == 0
    assert f"1 samples in {tmp_path / 'out.jsonl'}" in result.output
    (tmp_path / "out.jsonl").unlink()
    assert isinstance(CliRunner().invoke(data, arguments).exception, MissingFileError)


def test_the_fixture_has_picture_and_sound(media: Path) -> None:
    assert np.asarray(Image.open(media / "0001.png")).std() > 1
    assert soundfile.info(media / "0001.wav").duration == 4.0
