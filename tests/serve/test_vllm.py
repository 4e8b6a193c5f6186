"""vLLM on an AVT folder against transformers on the same folder, teacher-forced: no server in between."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imod_core.media import load_audio, load_image, load_video
from imod_core.samples import Message
from imod_serve.local import LocalModel

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
    text = prompt(local, question)
    sound = media.video if "<video>" in question else media.audio
    data = {
        "image": [load_image(media.image)] * question.count("<image>"),
        "audio": [(load_audio(sound), 16_000)] * question.count("<audio>"),
        "video": [load_video(media.video, local.artifact.frames.num_frames)] * question.count("<video>"),
    }
    return text, {kind: items for kind, items in data.items() if items}


def prompt(local, question):
    content = question.replace("<image>", "<|image|>").replace("<audio>", "<|audio|>").replace("<video>", "<|video|>")
    chat = [{"role": "user", "content": content}]
    return local.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def teacher_forced(local, media, question, tokens):
    """Transformers' logprobs of `tokens` as the answer to `question`, (TOKENS,)."""
    sound = media.video if "<video>" in question else media.audio
    sources = {"<image>": [media.image], "<audio>": [sound], "<video>": [media.video]}
    given = {tag: found if tag in question else [] for tag, found in sources.items()}
    inputs = local.inputs([Message("user", question)], given)
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


@pytest.mark.parametrize("kind", ["image", "audio", "video", "video with sound"])
def test_another_medium_gives_other_logprobs(kind, answers, local, media):
    """The negative control: had vLLM dropped or swapped the medium, the test above would have seen it."""
    other = replace(media, image=media.other_image, audio=media.silent_wav, video=media.other_video)
    tokens, logprobs = zip(*answers[kind], strict=True)
    reference = teacher_forced(local, other, QUESTIONS[kind], list(tokens))
    assert (torch.tensor(logprobs) - reference).abs().max() > 10 * TOLERANCE


def test_vllm_without_this_project_serves_the_folder_by_its_own_code(answers, base, media, local, tmp_path):
    plain = run_vllm(base, media, local, tmp_path, "plain")
    for kind, answer in answers.items():
        tokens, logprobs = zip(*answer, strict=True)
        assert [token for token, _ in plain[kind]] == list(tokens), kind
        assert [logprob for _, logprob in plain[kind]] == pytest.approx(logprobs, abs=TOLERANCE), kind
