"""vLLM on an AVT folder against transformers on the same folder, teacher-forced: no server in between."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imod_core.media import load_audio, load_image, load_video
from imod_core.samples import Message
from imod_serve.local import LocalModel

from .conftest import MediaFiles
from .run_llm import TOKENS

pytestmark = pytest.mark.timeout(300)

TOLERANCE = 1e-4
"""Of a logprob in fp32 between two implementations of attention; 1e-6 is usual, 1e-2 is what bf16 alone costs."""
QUESTIONS = {
    "text": "Is the left louder?",
    "image": "<image>What is on the left?",
    "audio": "<audio>What sounds?",
    "video": "<video>What moves?",
    "video with sound": "<video><audio>Which sounds?",
    "two sounds": "<audio>or <audio>Which?",
    "two videos with sound": "<video><audio>Is it <video><audio>Which?",
    "all": "<image>left <video><audio>right <image>Which?",
}


@pytest.fixture(scope="module")
def local(base):
    return LocalModel(base)


@pytest.fixture(scope="module")
def answers(base, media, local, tmp_path_factory):
    """vLLM's greedy tokens and logprobs by kind of question, with this project's plugin."""
    return run_vllm(base, media, local, tmp_path_factory.mktemp("vllm"))


def run_vllm(base, media, local, folder, *options):
    (folder / "requests.pkl").write_bytes(pickle.dumps({k: request(local, media, q) for k, q in QUESTIONS.items()}))
    command = [sys.executable, Path(__file__).with_name("run_llm.py"), base]
    command += [folder / "requests.pkl", folder / "out.json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "out.json").read_text())


def request(local, media, question):
    """A prompt text and decoded media, as `LLM.generate` takes them."""
    files = sources(media, question)
    data = {
        "image": [load_image(path) for path in files["<image>"]],
        "audio": [(load_audio(path), 16_000) for path in files["<audio>"]],
        "video": [load_video(path, local.artifact.frames.num_frames) for path in files["<video>"]],
    }
    return prompt(local, question), {kind: items for kind, items in data.items() if items}


def sources(media, question):
    """Files by tag, as many as the question has; sounds are the videos' own where there are videos."""
    videos = [media.video, media.other_video]
    sounds = videos if "<video>" in question else [media.audio, media.silent_wav]
    found = {"<image>": [media.image, media.other_image], "<audio>": sounds, "<video>": videos}
    return {tag: paths[: question.count(tag)] for tag, paths in found.items()}


def prompt(local, question):
    content = question.replace("<image>", "<|image|>").replace("<audio>", "<|audio|>").replace("<video>", "<|video|>")
    chat = [{"role": "user", "content": content}]
    return local.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def teacher_forced(local, media, question, tokens):
    """Transformers' logprobs of `tokens` as the answer to `question`, (TOKENS,)."""
    inputs = local.inputs([Message("user", question)], sources(media, question))
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tokens])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.inference_mode():
        logits = local.model(**inputs).logits[0, length - 1 : -1].log_softmax(-1)
    return logits[torch.arange(TOKENS), tokens]


@pytest.mark.parametrize("kind", QUESTIONS)
def test_logprobs_equal_transformers(kind, answers, local, media):
    tokens, logprobs = zip(*answers[kind], strict=True)
    reference = teacher_forced(local, media, QUESTIONS[kind], list(tokens))
    torch.testing.assert_close(torch.tensor(logprobs), reference, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", [kind for kind in QUESTIONS if kind != "text"])
def test_another_medium_gives_other_logprobs(kind, answers, local, media):
    """The negative control: had vLLM dropped or swapped a medium, the test above would have seen it."""
    other = MediaFiles(media.other_image, media.silent_wav, media.other_video, media.silent, *swapped(media))
    tokens, logprobs = zip(*answers[kind], strict=True)
    reference = teacher_forced(local, other, QUESTIONS[kind], list(tokens))
    assert (torch.tensor(logprobs) - reference).abs().max() > 10 * TOLERANCE


def swapped(media):
    return media.image, media.audio, media.video


def test_vllm_without_this_project_serves_the_folder_by_its_own_code(answers, base, media, local, tmp_path):
    plain = run_vllm(base, media, local, tmp_path, "plain")
    for kind, answer in answers.items():
        tokens, logprobs = zip(*answer, strict=True)
        assert [token for token, _ in plain[kind]] == list(tokens), kind
        assert [logprob for _, logprob in plain[kind]] == pytest.approx(logprobs, abs=TOLERANCE), kind
