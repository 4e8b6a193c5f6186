"""The runtime: preprocessing equal to the processor's, answers equal to transformers', and no torch anywhere."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from helpers import call
from transformers import WhisperFeatureExtractor

from imod_core.errors import InputError, MissingFileError
from imod_core.families.load import load_processor
from imod_core.mel import MelSettings, log_mel, mel_filters
from imod_core.samples import Message
from imod_export.compare import same_greedy
from imod_export.onnx.avt_inputs import frame_indices
from imod_export.onnx.pictures import BICUBIC, BILINEAR, resize
from imod_export.onnx.runtime import OnnxModel
from imod_export.probes import Probe, default_probes, draw_picture, draw_sound, draw_video
from imod_export.subject import Subject, load_model, placeholder_ids
from imod_export.tolerances import ONNX, ONNX_PART

KINDS = ["text", "image", "audio", "video", "image+audio", "video+audio"]
PROBES_OF_A_KIND = 20
NEW_TOKENS = 8
MEL = 2e-4
"""Log-mel values of about [-1, 1]: transformers' own transform is single precision."""


@pytest.fixture(scope="module")
def runtime(onnx_folder):
    return OnnxModel(onnx_folder)


@pytest.fixture(scope="module")
def subject(merged):
    return Subject(load_model(merged, "float32", "float32"), load_processor(merged))


def probes_of(kind, count=PROBES_OF_A_KIND):
    """Probes of one kind, each with media and words of its own."""
    tags = "" if kind == "text" else "".join(f"<{part}>" for part in kind.split("+"))
    make = np.random.default_rng(KINDS.index(kind))
    for n in range(count):
        size = int(make.integers(20, 200)), int(make.integers(20, 200))
        media = {
            "image": [make.integers(0, 256, (*size, 3)).astype(np.uint8)],
            "audio": [(make.standard_normal(int(make.integers(900, 90_000))) * 0.2).astype(np.float32)],
            "video": [make.integers(0, 256, (int(make.integers(1, 9)), *size, 3)).astype(np.uint8)],
        }
        chosen = {part: media[part] for part in kind.split("+") if part in media}
        yield Probe(f"{kind} {n}", (Message("user", f"{tags}Question {n}: what is it?"),), chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_equal_transformers_on_twenty_probes_of_each_kind(runtime, subject, kind):
    suppress = placeholder_ids(subject.model.config.to_dict())
    answers = set()
    for probe in probes_of(kind):
        prompt, reference = runtime.prompt(probe.messages, probe.media), subject.prompt(probe)
        assert prompt.ids == reference.ids
        wanted = subject.greedy(reference)[:NEW_TOKENS]
        found = runtime.greedy(prompt, NEW_TOKENS, suppress)
        if found != wanted:
            assert same_greedy(wanted, found, subject.logits(reference, wanted), ONNX["fp32"]), probe.name
        else:
            assert runtime.text(found) == subject.text(wanted)
        answers.add(tuple(found))
    assert len(answers) > 2


@pytest.mark.parametrize("kind", KINDS[1:])
def test_media_become_what_the_processor_makes_of_them(runtime, subject, kind):
    for probe in probes_of(kind, 6):
        wanted = subject.prompt(probe).inputs
        for encoding in runtime.prompt(probe.messages, probe.media).encodings:
            found = next(iter(encoding.feeds.values()))
            name = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_features"}[encoding.kind]
            expected = wanted[name].numpy().reshape(found.shape)
            if encoding.kind == "audio":
                np.testing.assert_allclose(found, expected, atol=MEL)
            else:
                np.testing.assert_array_equal(found, expected)
            assert np.abs(found[..., ::-1] - expected).max() > 0.1


@pytest.mark.parametrize("filter_", [BILINEAR, BICUBIC])
@pytest.mark.parametrize(
    "sizes", [((96, 128), (48, 48)), ((37, 29), (224, 224)), ((301, 640), (56, 84)), ((8, 8), (8, 3))]
)
def test_resizing_is_torchvisions_to_the_byte(filter_, sizes):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    (height, width), new = sizes
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mode = InterpolationMode.BILINEAR if filter_ == BILINEAR else InterpolationMode.BICUBIC
    wanted = functional.resize(torch.from_numpy(picture).permute(2, 0, 1), list(new), mode, antialias=True)
    found = resize(picture, *new, filter_)
    np.testing.assert_array_equal(found, wanted.permute(1, 2, 0).numpy())
    assert (found != resize(picture[::-1], *new, filter_)).any()


@pytest.mark.parametrize("bands", [40, 80, 128])
def test_mel_features_are_whispers(bands):
    extractor = WhisperFeatureExtractor(feature_size=bands, chunk_length=2)
    settings = MelSettings.read({"feature_size": bands, "chunk_length": 2})
    np.testing.assert_allclose(mel_filters(settings), extractor.mel_filters.T, atol=1e-12)
    for sound in (np.zeros(32_000, np.float32), draw_sound(0), draw_sound(1), np.ones(7, np.float32)):
        wanted = extractor([sound], sampling_rate=16_000, return_tensors="np")["input_features"][0]
        found = log_mel(np.pad(sound, (0, 32_000 - len(sound))), settings)
        np.testing.assert_allclose(found, wanted, atol=MEL)


def test_frames_are_chosen_as_torch_chooses_them():
    for total in range(1, 70):
        for count in (1, 2, 3, 4, 7, 8):
            wanted = torch.linspace(0, total - 1, count).long().numpy()
            np.testing.assert_array_equal(frame_indices(total, count), wanted, err_msg=f"{count} of {total}")


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8", "q4"])
def test_every_form_stays_within_its_tolerance_and_none_is_exact(exported, variant):
    report = json.loads((exported / "parity" / "parity.json").read_text())
    probes = [p for p in report["onnx"]["probes"] if p["arithmetic"] == variant]
    assert [p["name"] for p in probes] == KINDS
    assert all(p["same_prompt"] and not p["faults"] for p in probes)
    assert 0 < max(p["distance"]["relative"] for p in probes) <= ONNX[variant].relative
    parts = {p["part"]: p for p in report["onnx"]["parts"] if p["variant"] == variant}
    assert set(parts) == {"embed_tokens", "vision_encoder", "audio_encoder", "decoder_model_merged"}
    assert all(p["relative"] <= p["limit"] for p in parts.values())
    assert parts["vision_encoder"]["limit"] == ONNX_PART[variant]


def test_the_report_shows_the_graphs_and_that_other_media_are_told_apart(exported):
    report = json.loads((exported / "parity" / "parity.json").read_text())
    assert report["passed"]
    told = {(c["probe"], c["name"]): c["told_apart"] for c in report["onnx"]["controls"]}
    assert told == {(kind, f"other {part}"): True for kind in KINDS[1:] for part in kind.split("+")}
    page = (exported / "parity" / "parity.html").read_text()
    assert "ONNX against transformers" in page
    assert page.rstrip().endswith("</html>")
    assert "http" not in page


def test_an_export_with_onnx_reports_merge_and_graphs_together(run_folder, tmp_path):
    words = ["export", "--merge", run_folder, "--out", tmp_path / "out", "--onnx"]
    assert call(*words) == (0, "")
    report = json.loads((tmp_path / "out/parity/parity.json").read_text())
    assert report["passed"]
    assert {p["arithmetic"] for p in report["onnx"]["probes"]} == {"fp32"}
    assert report["layers"]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert {"onnx/decoder_model_merged.onnx", "onnx/config.json", "model.safetensors"} <= manifest["files"].keys()


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A picture, a sound and a silent video as files."""
    import av

    folder = tmp_path_factory.mktemp("media")
    draw_picture(0).save(folder / "a.png")
    soundfile.write(folder / "a.wav", draw_sound(0), 16_000)
    with av.open(str(folder / "a.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.height, stream.width = draw_video(0).shape[1:3]
        for frame in draw_video(0):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return folder


def ask_without_torch(folder, *words):
    """`imod ask --json` in a process where torch and transformers cannot be imported; what it printed."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None;"
        "from imod_core.cli import imod; imod(sys.argv[1:], standalone_mode=False);"
        "assert sys.modules['torch'] is None"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "ask",
        "--model",
        str(folder),
        "--json",
        "--max-tokens",
        "6",
        *map(str, words),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_imod_ask_answers_from_an_onnx_folder_without_torch_as_transformers_does(onnx_folder, merged, media):
    from imod_serve.local import LocalModel

    files = ["--image", media / "a.png", "--audio", media / "a.wav", "--video", media / "a.mp4"]
    found = ask_without_torch(onnx_folder, "What is it?", *files)
    wanted = LocalModel(merged).ask(
        "What is it?", [media / "a.png"], [media / "a.wav"], [media / "a.mp4"], max_tokens=6
    )
    counts = {"prompt_tokens": wanted.prompt_tokens, "completion_tokens": wanted.completion_tokens}
    assert found == {"answer": wanted.text, **counts}
    assert ask_without_torch(onnx_folder, "What is it?")["prompt_tokens"] < wanted.prompt_tokens


def test_a_form_of_the_graphs_can_be_chosen(exported, media):
    small = ask_without_torch(exported, "What is it?", "--variant", "q4", "--image", media / "a.png")
    full = ask_without_torch(exported, "What is it?", "--variant", "fp32", "--image", media / "a.png")
    assert small["prompt_tokens"] == full["prompt_tokens"]
    assert small["answer"] != full["answer"]


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        ("<image>Which?", "more <image> tags than images were given"),
        ("What does <|audio|> mean?", "has <|audio|> in its text"),
        ("What does <|im_end|> mean?", "has <|im_end|> in its text"),
    ],
)
def test_tags_media_and_text_must_fit_together(onnx_folder, question, fault):
    outcome = call("ask", question, "--model", onnx_folder, "--variant", "fp32")
    assert outcome.code == 2
    assert fault in outcome.message


def test_a_torch_import_in_the_runtime_would_be_noticed(onnx_folder):
    code = (
        "import sys; sys.path.insert(0, 'serve');"
        f"from imod_export.onnx.runtime import OnnxModel; OnnxModel({str(onnx_folder)!r});"
        "print([m for m in ('torch', 'transformers', 'onnx', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    both = subprocess.run([sys.executable, "-c", "import torch; " + code], capture_output=True, text=True)
    assert "'torch'" in both.stdout


def test_what_the_runtime_cannot_read_is_said_in_a_sentence(onnx_folder, merged, tmp_path):
    import shutil

    assert call("ask", "hm", "--model", merged, "--variant", "q4").message.endswith("--onnx`.")
    with pytest.raises(MissingFileError, match="no graphs"):
        OnnxModel(merged)
    folder = shutil.copytree(onnx_folder, tmp_path / "onnx", ignore=shutil.ignore_patterns("*_q4.onnx"))
    with pytest.raises(MissingFileError, match="only fp32, fp16, int8, not 'q4'"):
        OnnxModel(folder, "q4")
    (folder / "decoder_model_merged.onnx").write_bytes(b"nonsense")
    broken = call("ask", "hm", "--model", folder)
    assert broken.code == 2
    assert "cannot be opened by onnxruntime" in broken.message
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in call("ask", "hm", "--model", folder).message


def test_tags_and_media_must_match(runtime):
    picture = np.zeros((8, 8, 3), np.uint8)
    prompt = runtime.prompt([Message("user", "<image><image>What?")], {"image": [picture]})
    with pytest.raises(InputError, match="18 image placeholders for 9 embeddings"):
        runtime.greedy(prompt)
    with pytest.raises(InputError, match="1 <audio> tags and 0 sounds"):
        runtime.prompt([Message("user", "<audio>What?")])


def test_the_cache_carries_on_where_the_prompt_ended(runtime):
    """Token by token equals all at once; with another past it does not."""
    probe = default_probes({"image"})[1]
    prompt = runtime.prompt(probe.messages, probe.media)
    answer = runtime.greedy(prompt, 6)
    stepwise = runtime.logits(prompt, answer, 7)
    cache = runtime.graphs.cache()
    tokens = runtime.graphs.run("embed_tokens", {"input_ids": np.array([answer])})[0]
    embeds = np.concatenate([runtime.embed(prompt), tokens])
    at_once = cache.step(embeds, np.arange(len(embeds)), 7)
    np.testing.assert_allclose(stepwise, at_once, atol=1e-4)
    assert cache.length == len(prompt.ids) + 6
    other = runtime.graphs.cache().step(embeds[3:], np.arange(3, len(embeds)), 7)
    assert np.abs(other - at_once).max() > 1e-2
