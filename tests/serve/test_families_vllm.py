"""vLLM on shrunken native models against transformers, teacher-forced, on every medium; an mp4 as clients send it."""

import base64
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from imod_core.families import FAMILIES, NATIVE
from imod_core.families.load import load_processor
from imod_core.families.shrunken import build_shrunken
from imod_core.media import Clip
from imod_core.positions import after_videos, mend_video_positions
from imod_core.samples import Message
from imod_core.sampling import FrameSampling, as_clip, load_clip
from imod_export.probes import Probe, draw_picture, draw_sound, draw_video
from imod_export.subject import WEAVE, Subject, load_model, placeholder_ids, read_config

pytestmark = pytest.mark.timeout(400)

TOLERANCE = 1e-5
"""Of a logprob in fp32 over the largest logit: the shrunken models' logits are of size ten and more."""
NAMES = ("qwen2.5-vl", "qwen2.5-omni")


def clip(variant: int, count: int, fps: float) -> Clip:
    """Drawn frames as every fourth of a video's."""
    return Clip(draw_video(variant, count), tuple(range(0, 4 * count, 4)), 4 * count, fps)


def ask(content: str, woven: bool = False, **media: list) -> Probe:
    return Probe(content, (Message("user", content),), media, woven=woven)


def probes(name: str) -> dict[str, Probe]:
    slow, fast = clip(0, 8, 4.0), clip(1, 6, 25.0)
    found = {
        "text": ask("Which is louder?"),
        "two pictures": ask("<image>left<image>Which?", image=[draw_picture(0), draw_picture(1)]),
        "video": ask("<video>Where is it?", video=[slow]),
        "fast video": ask("<video>Where is it?", video=[fast]),
        "two videos": ask("<video>left<video>Where is it?", video=[slow, fast]),
        "picture and video": ask("<image>and<video>Where?", image=[draw_picture(0)], video=[slow]),
    }
    if name == "qwen2.5-omni":
        short, long = draw_sound(1)[:9000], np.tile(draw_sound(0), 3)
        found |= {
            "two sounds": ask("<audio>and<audio>Which?", audio=[short, long]),
            "video and sound": ask("<video><audio>Which?", video=[slow], audio=[short]),
            "all": ask("<image><video><audio>Which?", image=[draw_picture(1)], video=[fast], audio=[long]),
            "woven": ask("<video>Which?", True, video=[slow], audio=[short]),
            "woven, sound longer": ask("<video>Which?", True, video=[fast], audio=[long]),
            "two woven": ask("<video>and<video>Which?", True, video=[slow, fast], audio=[short, long]),
        }
    return found


def request(subject: Subject, probe: Probe) -> dict:
    """A probe as `LLM.generate` takes it."""
    told = [(c.frames, {**c.metadata, "do_sample_frames": False}) for c in map(as_clip, probe.media.get("video", []))]
    media = {"video": told, "audio": [(s, 16_000) for s in probe.media.get("audio", [])]}
    prompts = {"prompt": subject.prompt(probe).text, "multi_modal_data": {**probe.media, **media}}
    prompts["multi_modal_data"] = {kind: items for kind, items in prompts["multi_modal_data"].items() if items}
    return {"prompts": prompts | ({"mm_processor_kwargs": {WEAVE: True}} if probe.woven else {})}


def mp4_request(path: Path) -> dict:
    """An mp4 as a client sends it."""
    url = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "Where is it?"}]
    return {"messages": [{"role": "user", "content": content}]}


class Family:
    """A shrunken model in transformers, and what vLLM said about it."""

    def __init__(self, name: str, folder: Path, media):
        self.name, self.folder = name, folder / name
        build_shrunken(FAMILIES[name], self.folder)
        self.subject = Subject(load_model(self.folder, "float32", "float32"), load_processor(self.folder))
        self.probes = probes(name)
        requests = {key: request(self.subject, probe) for key, probe in self.probes.items()}
        requests["mp4"] = mp4_request(media.video)
        sampled = load_clip(media.video, FrameSampling.read(self.folder))
        self.probes["mp4"] = ask("<video>Where is it?", video=[sampled])
        file = folder / f"{name}.pkl"
        file.write_bytes(pickle.dumps((requests, placeholder_ids(read_config(self.folder)))))
        command = [sys.executable, Path(__file__).with_name("run_family.py"), self.folder, file, folder / "out.json"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        self.answers = json.loads((folder / "out.json").read_text())

    def difference(self, key: str, probe: Probe | None = None) -> float:
        """Largest difference of a logprob of vLLM's answer, over the largest logit."""
        prompt = self.subject.prompt(probe or self.probes[key])
        ids, chosen = self.answers[key]
        tokens = [token for token, _ in chosen]
        if probe is None:
            assert prompt.ids == ids
        logits = self.subject.logits(prompt, tokens)[-len(tokens) - 1 : -1]
        found = logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]
        return float((found - torch.tensor([p for _, p in chosen])).abs().max() / logits.abs().max())


@pytest.fixture(scope="module", params=NAMES)
def family(request, media, tmp_path_factory):
    return Family(request.param, tmp_path_factory.mktemp("family"), media)


def test_logprobs_equal_transformers_on_every_medium(family):
    found = {key: family.difference(key) for key in family.probes}
    assert max(found.values()) < TOLERANCE, found


def test_other_media_other_times_and_other_frames_give_other_logprobs(family, media):
    """The negative controls: what the test above would have missed had it been dropped."""
    moved = family.probes["video"]
    later = replace(moved, media={"video": [replace(moved.media["video"][0], fps=1.0)]})
    others = {
        "two pictures": moved_picture(family.probes["two pictures"]),
        "mp4": replace(family.probes["mp4"], media={"video": [load_clip(media.video, FrameSampling(8))]}),
    }
    if family.name == "qwen2.5-vl":  # Omni's processor takes every video for one of two frames a second
        others["video"] = later
    else:
        others["woven"] = family.probes["video and sound"]
    for key, probe in others.items():
        assert family.difference(key, probe) > 10 * TOLERANCE, key


def moved_picture(probe: Probe) -> Probe:
    return replace(probe, media={"image": probe.media["image"][::-1]})


def test_text_goes_on_after_all_of_a_video():
    """Four moments three positions apart, two patches wide, between words: the reference goes on at the largest + 1."""
    mend_video_positions()
    assert mend_video_positions() == ()
    kinds = torch.tensor([[0, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0]])
    times, rows, columns = [1, 1, 4, 4, 7, 7, 10, 10], [1] * 8, [1, 2] * 4
    as_released_now = torch.tensor([[[0, *inner, 3, 4]] for inner in (times, rows, columns)])
    positions, deltas = after_videos(as_released_now, kinds)
    assert positions[:, 0, -2:].tolist() == [[11, 12]] * 3
    assert positions[:, 0, :9].equal(as_released_now[:, 0, :9])
    assert deltas.tolist() == [[13 - 11]]
    padded = torch.nn.functional.pad(kinds, (2, 0))
    mask = (torch.arange(13) >= 2).long().unsqueeze(0)
    moved, _ = after_videos(torch.nn.functional.pad(as_released_now, (2, 0)), padded, mask)
    assert moved[:, :, 2:].equal(positions)


def test_a_request_may_weave_and_choose_nothing_else():
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers import online_renderer

    from imod_serve.vllm_plugin import allow_weaving

    allow_weaving()
    allow_weaving()
    check = online_renderer.validate_request_mm_kwargs
    untrusted = {"media_io_kwargs": None, "trust_request_mm_kwargs": False}
    check(mm_processor_kwargs={WEAVE: True}, **untrusted)
    for refused in ({WEAVE: True, "fps": 30}, {"fps": 30}, {WEAVE: [1]}):
        with pytest.raises(VLLMValidationError):
            check(mm_processor_kwargs=refused, **untrusted)


@pytest.mark.parametrize("name", [family.name for family in NATIVE])
def test_frames_are_sampled_alike_by_a_folder_and_its_processor(name, tmp_path, media):
    build_shrunken(FAMILIES[name], tmp_path / name)
    sampling = FrameSampling.read(tmp_path / name)
    assert sampling == FrameSampling.of(load_processor(tmp_path / name).video_processor)
    taken = load_clip(media.video, sampling)
    assert taken.total == 10
    assert list(taken.indices) == sorted(set(taken.indices)) == sampling.places(10, 10.0)
    for total, fps in ((1, 25.0), (2, 25.0), (3, 25.0), (451, 29.97), (5000, 30.0)):
        assert 0 < len(sampling.places(total, fps)) <= total
        assert max(sampling.places(total, fps)) < total
