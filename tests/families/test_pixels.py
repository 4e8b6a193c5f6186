"""A recipe's limits on media: the merged folder's processor reads what training read, and other parts as before."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from imod_core.errors import InputError
from imod_core.pixels import limit_pixels
from imod_core.sampling import FrameSampling, as_clip, video_arguments
from imod_export.processor import set_media, view

OMNI = ["qwen2.5-omni", "qwen3-omni"]
LIMITED = ["qwen2.5-vl", "qwen3-vl", *OMNI]
GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}
LIMIT = 128 * 128
NOISE = np.random.default_rng(0).integers(0, 255, (8, 480, 640, 3), dtype=np.uint8)


def patches(processor, part, side=640):
    """Rows and columns of patches that the processor makes of up to 640 x 480 pixels, called as for any question."""
    token, noise = getattr(processor, f"{part}_token"), NOISE[:, :side, :side]
    if part == "image":
        read = processor(text=[token], images=[Image.fromarray(noise[0])], return_tensors="pt")
    else:
        told = video_arguments(processor, [as_clip(noise)])
        videos = told.pop("videos")
        read = processor(text=[token], videos=videos, videos_kwargs=told, return_tensors="pt")
    return read[GRIDS[part]][0, 1:].tolist()


@pytest.fixture
def folder(shrunken, tmp_path):
    def copy(name):
        return shutil.copytree(shrunken(name), tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))

    return copy


@pytest.mark.parametrize(
    ("name", "part"), [(name, part) for name in LIMITED for part in GRIDS if part == "image" or name not in OMNI]
)
def test_a_merged_folder_reads_as_many_pixels_as_training_did(name, part, folder):
    target = folder(name)
    untold, trained = AutoProcessor.from_pretrained(target), AutoProcessor.from_pretrained(target)
    limit_pixels(trained, {part: LIMIT})
    set_media(target, {f"{part}_pixels": LIMIT})
    merged = AutoProcessor.from_pretrained(target)
    for kind in GRIDS:
        assert patches(merged, kind) == patches(trained, kind)
        assert (patches(merged, kind) == patches(untold, kind)) is (kind != part)
    rows, columns = patches(merged, part)
    patch = getattr(merged, f"{part}_processor").patch_size
    assert LIMIT / 2 < rows * columns * patch**2 <= LIMIT, "as a limit of a frame, whatever their number"
    rows, columns = patches(merged, part, side=96)
    assert rows * columns * patch**2 <= LIMIT, "and what is small is not made larger than that"


@pytest.mark.parametrize("name", [*LIMITED, "gemma4"])
def test_a_merged_folder_reads_as_many_frames_as_training_did(name, folder):
    target = folder(name)
    set_media(target, {"video_frames": 3})
    sampling = FrameSampling.read(target)
    assert sampling.num_frames == 3
    assert sampling == FrameSampling.of(AutoProcessor.from_pretrained(target).video_processor)
    assert len(sampling.places(100, 25.0)) in (3, 4), "Qwen's rules round up to an even number"


@pytest.mark.parametrize(
    ("name", "part", "reason"),
    [
        ("gemma4", "image", "this model's processor has no limit of pixels"),
        ("qwen2.5-omni", "video", "this model's processor reads 100352 to 602112 pixels whatever it is told"),
        ("qwen3-omni", "video", "this model's processor reads 131072 to 786432 pixels whatever it is told"),
    ],
)
def test_limits_that_a_processor_does_not_keep_to_are_refused(name, part, reason, folder):
    target = folder(name)
    before = {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}
    with pytest.raises(InputError, match=f"'media.{part}_pixels' is {LIMIT}; {reason}: leave it out"):
        set_media(target, {f"{part}_pixels": LIMIT})
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()} == before


def test_no_limit_leaves_every_file_as_it_was(folder):
    target = folder("qwen2.5-vl")
    before = {path: path.read_bytes() for path in target.iterdir() if path.is_file()}
    set_media(target, {})
    assert {path: path.read_bytes() for path in target.iterdir() if path.is_file()} == before


def test_a_view_of_a_base_has_the_merged_folders_processor(shrunken, folder, tmp_path):
    base, merged = shrunken("qwen2.5-vl"), folder("qwen2.5-vl")
    set_media(merged, {"image_pixels": LIMIT})
    seen = view(base, merged, tmp_path / "view")
    assert {path.name for path in base.iterdir()} <= {path.name for path in seen.iterdir()}
    assert patches(AutoProcessor.from_pretrained(seen), "image") == patches(
        AutoProcessor.from_pretrained(merged), "image"
    )


def test_a_size_that_is_an_edge_is_no_limit_of_pixels():
    class SmolVLMImageProcessor:
        size = {"longest_edge": 2048}  # noqa: RUF012

    with pytest.raises(InputError, match="no limit of pixels"):
        limit_pixels(SimpleNamespace(image_processor=SmolVLMImageProcessor()), {"image": LIMIT})
