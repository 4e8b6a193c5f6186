"""The frames of a video that the ONNX runtime reads are those that training, transformers and the server read."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
import transformers

from imod_core.errors import InputError
from imod_core.families.load import load_processor
from imod_core.samples import Message
from imod_core.sampling import FrameSampling, load_clip
from imod_export.onnx.frames import QwenFrames
from imod_export.probes import Probe
from imod_export.subject import Subject, load_model
from imod_serve.local_onnx import OnnxLocal

from .omni import save_thinker

RATE = 30
SETTINGS = [{}, {"fps": 4}, {"fps": 0.7}, {"num_frames": 16}, {"num_frames": 7}, {"min_frames": 2, "max_frames": 10}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_thinker(tmp_path_factory.mktemp("omni") / "thinker")


@pytest.fixture(scope="module")
def graphs(folder):
    from imod_export.onnx.export import export_onnx

    export_onnx(folder, folder.parent / "onnx")
    return folder.parent / "onnx"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Videos by their number of frames, each frame of another grey."""
    import av

    folder, clips = tmp_path_factory.mktemp("clips"), {}
    for total in (1, 3, 90):
        clips[total] = folder / f"{total}.mp4"
        with av.open(str(clips[total]), "w") as file:
            stream = file.add_stream("mpeg4", rate=RATE)
            stream.height, stream.width = 48, 64
            for number in range(total):
                frame = np.full((48, 64, 3), 2 * number, np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())
    return clips


def sampled_by(settings, *folders):
    """Make the folders' video processor sample by `settings`."""
    for folder in folders:
        path = folder / "processor_config.json"
        told = json.loads(path.read_text())
        told["video_processor"] |= settings
        path.write_text(json.dumps(told))


def decoded(local, path):
    """A video as the runtime decodes it."""
    return local._decoded({"<image>": [], "<audio>": [], "<video>": [path]})["video"][0]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_rule_is_transformers(settings):
    processor = transformers.Qwen2VLVideoProcessor(**settings)
    found, wanted = QwenFrames.read(processor.to_dict(), 2), FrameSampling.of(processor)
    assert QwenFrames.read(settings, 2) == found
    for total in [*range(1, 100), *random.Random(0).sample(range(100, 2000), 50)]:
        for fps in (30.0, 29.97, 10.0, 1.0):
            assert found.places(total, fps) == wanted.places(total, fps), (total, fps)


@pytest.mark.parametrize(
    ("settings", "counts"),
    [({}, (1, 2, 6)), ({"fps": 4}, (1, 2, 12)), ({"num_frames": 16}, (1, 3, 16))],
    ids=["as saved", "fps", "num_frames"],
)
def test_a_file_is_read_at_the_frames_that_transformers_reads(folder, graphs, clips, tmp_path, settings, counts):
    model = shutil.copytree(folder, tmp_path / "model")
    onnx = shutil.copytree(graphs, tmp_path / "onnx")
    sampled_by(settings, model, onnx)
    local, processor = OnnxLocal(onnx), load_processor(model)
    subject = Subject(load_model(model, "float32", "float32"), processor)
    for total, count in zip(clips, counts, strict=True):
        clip = load_clip(clips[total], FrameSampling.of(processor.video_processor))
        found = decoded(local, clips[total])
        assert len(found.indices) == count
        assert found.indices == clip.indices
        np.testing.assert_array_equal(found.frames, clip.frames)
        probe = Probe("clip", (Message("user", "<video>Which?"),), {"video": [clip]})
        prompt, reference = local.model.prompt(probe.messages, {"video": [found]}), subject.prompt(probe)
        assert prompt.ids == reference.ids
        inputs = reference.inputs
        np.testing.assert_array_equal(prompt.encodings[0].feeds["pixel_values"], inputs["pixel_values_videos"].numpy())
        positions, _ = subject.model.get_rope_index(
            inputs["input_ids"],
            None,
            inputs["video_grid_thw"],
            inputs["attention_mask"],
            second_per_grids=inputs.get("video_second_per_grid", torch.ones(1)),
        )
        np.testing.assert_array_equal(prompt.positions, positions[:, 0].numpy())


def test_an_avt_folder_reads_its_fixed_number_of_frames(onnx_folder, merged, clips):
    local = OnnxLocal(onnx_folder)
    wanted = load_clip(clips[90], FrameSampling.of(load_processor(merged).video_processor))
    found = decoded(local, clips[90])
    assert found.indices == wanted.indices
    assert len(found.indices) == local.model.inputs.num_frames


@pytest.mark.parametrize("settings", [{"num_frames": 1}, {"max_frames": 1}, {"fps": -1}], ids=str)
def test_a_processor_that_takes_no_frames_is_refused(settings):
    with pytest.raises(InputError, match="a second: expected at least 2"):
        QwenFrames.read(settings, 2)
