"""Sample files: what is read is what was written, and every fault is named with its line."""

import json
import shutil
from pathlib import Path

import pytest

from imod_core.errors import InputError, MissingFileError
from imod_core.samples import Message, Sample, read_samples, write_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    for name in ("a.png", "a.wav", "a.mp4"):
        (tmp_path / "media" / name).write_bytes(b"not decoded here")
    return tmp_path


def record(**changes: object) -> dict:
    good = {
        "id": "one",
        "messages": [
            {"role": "user", "content": "<image><audio>Where is the louder instrument?"},
            {"role": "assistant", "content": "left"},
        ],
        "images": ["media/a.png"],
        "audios": ["media/a.wav"],
        "videos": [],
        "meta": {"type": ["Audio-Visual", "Location"]},
    }
    return {**good, **changes}


def write_lines(folder: Path, *lines: str) -> Path:
    path = folder / "samples.jsonl"
    path.write_text("\n".join(lines))
    return path


def refusal(folder: Path, *lines: str) -> str:
    with pytest.raises(InputError) as caught:
        read_samples(write_lines(folder, *lines))
    return str(caught.value)


def test_a_sample_gives_its_question_answer_and_absolute_media(folder: Path) -> None:
    (sample,) = read_samples(write_lines(folder, json.dumps(record()), ""))
    assert sample.question == "Where is the louder instrument?"
    assert sample.answer == "left"
    assert sample.images == ((folder / "media" / "a.png").resolve(),)


def test_written_samples_read_back_equal_from_a_moved_folder(folder: Path, tmp_path_factory) -> None:
    media = folder.resolve() / "media"
    clip = media / "a.mp4"
    messages = (Message("system", "Be brief."), Message("user", "<video><audio>Who plays?"))
    sample = Sample("v", messages, (), (clip,), (clip,), {"n": 1})
    write_samples(folder / "set" / "samples.jsonl", [sample])
    assert read_samples(folder / "set" / "samples.jsonl") == [sample]
    assert sample.answer is None
    moved = tmp_path_factory.mktemp("moved") / "here"
    shutil.copytree(folder, moved)
    (elsewhere,) = read_samples(moved / "set" / "samples.jsonl")
    assert elsewhere.videos == (moved.resolve() / "media" / "a.mp4",)
    assert elsewhere != sample


def test_a_failed_write_leaves_the_old_file(folder: Path) -> None:
    path = folder / "samples.jsonl"
    path.write_text("old")

    def broken():
        yield Sample("x", (Message("user", "?"),))
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_samples(path, broken())
    assert path.read_text() == "old"
    assert {p.name for p in folder.iterdir()} == {"media", "samples.jsonl"}


def test_bad_json_is_refused_with_its_line(folder: Path) -> None:
    assert "line 2 is not JSON" in refusal(folder, json.dumps(record()), "{'id': 1}")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"id": ""}, "has id ''"),
        ({"messages": []}, "no 'messages'"),
        ({"messages": [{"role": "user", "content": None}]}, "message without text"),
        ({"messages": [{"role": "human", "content": "x"}]}, "the role 'human'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the roles assistant"),
        ({"messages": [{"role": "system", "content": "x"}]}, "the roles system"),
        ({"images": ["media/a.png", "media/a.png"]}, "more media than placeholders: 2 in 'images' and 1 <image>"),
        ({"audios": []}, "more placeholders than media: 0 in 'audios' and 1 <audio>"),
        ({"images": "media/a.png"}, "expected a list of paths"),
        ({"meta": []}, "meta that is not an object"),
    ],
)
def test_a_faulty_line_is_refused_in_one_sentence(folder: Path, changes: dict, fault: str) -> None:
    message = refusal(folder, json.dumps(record(**changes)))
    assert fault in message
    assert "line 1" in message
    assert "\n" not in message


def test_a_repeated_id_is_refused(folder: Path) -> None:
    assert "repeats the id 'one'" in refusal(folder, json.dumps(record()), json.dumps(record()))


def test_an_empty_file_is_refused(folder: Path) -> None:
    assert "holds no samples" in refusal(folder, "", "  ")


def test_a_list_instead_of_objects_is_refused(folder: Path) -> None:
    assert "not a JSON object but list" in refusal(folder, "[1]")


def test_a_missing_medium_names_line_and_path(folder: Path) -> None:
    path = write_lines(folder, json.dumps(record(audios=["media/b.wav"])))
    with pytest.raises(MissingFileError, match=r"line 1 names media/b\.wav"):
        read_samples(path)


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.jsonl does not exist"):
        read_samples(folder / "none.jsonl")


def test_a_folder_is_called_a_folder(folder: Path) -> None:
    with pytest.raises(MissingFileError, match="media is a folder: expected a sample file"):
        read_samples(folder / "media")


def test_a_byte_order_mark_is_no_part_of_the_first_line(folder: Path) -> None:
    path = folder / "samples.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(record()).encode())
    assert [sample.id for sample in read_samples(path)] == ["one"]


def test_half_a_character_is_refused_and_a_whole_one_is_not(folder: Path) -> None:
    whole = json.dumps(record(id="\U0001f3bb"))
    assert "line 2 has half a character in its text ('\\ud83c')" in refusal(
        folder, whole, json.dumps(record(id="\ud83c"))
    )
    assert [sample.id for sample in read_samples(write_lines(folder, whole))] == ["\U0001f3bb"]


def test_a_binary_file_is_refused(folder: Path) -> None:
    path = folder / "samples.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_samples(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "line 1 is not read"),
        ('{"id": ' + "1" * 5000 + "}", "line 1 is not read"),
        (json.dumps(record(images=["a" * 5000])), "which is no path"),
    ],
)
def test_what_no_parser_and_no_disk_takes_is_one_sentence(folder: Path, line: str, message: str) -> None:
    said = refusal(folder, line)
    assert message in said
    assert "\n" not in said
    assert len(said) < 400
