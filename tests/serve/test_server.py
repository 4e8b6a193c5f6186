"""A real vLLM over HTTP on the tiny AVT base, asked with our client and with the plain openai package."""

import base64
import json
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner

from imod_core.cli import imod
from imod_core.errors import ImodError, InputError
from imod_core.samples import Message, Sample
from imod_serve.client import Client
from imod_serve.local import LocalModel
from imod_serve.messages import audio_part, image_part

from .conftest import API_KEY, descendants

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]
QUESTION = "Where is the louder instrument?"


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url, api_key=API_KEY)


@pytest.fixture(scope="module")
def local(base):
    return LocalModel(base)


def kinds(media):
    """Every kind of question: keyword arguments of `ask`."""
    return {
        "text": {},
        "image": {"images": [media.image]},
        "audio": {"audios": [media.audio]},
        "video with sound": {"videos": [media.video]},
        "muted video": {"videos": [media.video], "mute": True},
        "silent video": {"videos": [media.silent]},
        "image and audio": {"images": [media.image], "audios": [media.audio]},
    }


def whole(text):
    """Without the last character where its bytes are cut in two: vLLM waits for the rest, transformers shows a mark."""
    return text.rstrip("\ufffd")


def test_served_answers_equal_greedy_decoding_by_transformers(client, local, media):
    answers = {}
    for kind, given in kinds(media).items():
        served, reference = client.ask(QUESTION, **given, max_tokens=8), local.ask(QUESTION, **given, max_tokens=8)
        assert served.prompt_tokens == reference.prompt_tokens, kind
        assert served.text == whole(reference.text), kind
        answers[kind] = served.text
    assert len(set(answers.values())) > 3, "media do not change the answers, so equality proves nothing"


def test_a_sample_is_replayed_with_its_media_where_its_tags_are(client, local, media):
    turns = (
        Message("system", "Answer briefly."),
        Message("user", "Look <image> and listen <audio>, then say: which?"),
        Message("assistant", "left"),
        Message("user", "And here <video><audio>?"),
    )
    sample = Sample("s", turns, (media.image,), (media.audio, media.video), (media.video,))
    served, reference = client.ask_sample(sample, max_tokens=8), local.ask_sample(sample, max_tokens=8)
    assert (served.text, served.prompt_tokens) == (whole(reference.text), reference.prompt_tokens)


def test_bytes_and_paths_get_the_same_answer(client, media):
    paths = client.ask(QUESTION, images=[media.image], videos=[media.video], max_tokens=4)
    data = client.ask(QUESTION, images=[media.image.read_bytes()], videos=[media.video.read_bytes()], max_tokens=4)
    assert paths == data


def test_streamed_pieces_make_the_whole_answer(client, media):
    pieces = list(client.stream(QUESTION, images=[media.image], max_tokens=8))
    assert len(pieces) > 1
    assert "".join(pieces) == client.ask(QUESTION, images=[media.image], max_tokens=8).text


def test_logprobs_come_with_each_token(client):
    answer = client.ask(QUESTION, max_tokens=4, logprobs=True)
    assert answer.logprobs is not None
    assert len(answer.logprobs) == answer.completion_tokens == 4
    assert all(logprob <= 0 for _, logprob in answer.logprobs)


def test_the_openai_package_works_unchanged_with_a_sound_at_any_rate(server, media):
    plain = openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY)
    sound = base64.b64encode(media.audio.read_bytes()).decode()
    content = [
        image_part(media.image),
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        {"type": "text", "text": QUESTION},
    ]
    reply = plain.chat.completions.create(
        model=plain.models.list().data[0].id, messages=[{"role": "user", "content": content}], max_tokens=4
    )
    assert reply.choices[0].message.content
    assert reply.usage.prompt_tokens > 40


def test_another_key_is_refused_in_one_sentence(server):
    with pytest.raises(InputError, match="IMOD_API_KEY"):
        Client(server.url, api_key="wrong").ask(QUESTION)


def test_the_key_is_in_no_command_line_and_no_log(server):
    processes = [server.process.pid, *descendants(server.process.pid)]
    assert len(processes) > 2
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes]
    assert API_KEY not in " ".join(lines) + server.log.read_text()


@pytest.mark.parametrize("url", ["http://example.com/a.png", "file:///etc/hostname"])
def test_media_are_fetched_from_nowhere(server, url):
    plain = openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0)
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    with pytest.raises(openai.APIStatusError, match="allowed"):
        plain.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])


def test_a_request_that_is_too_long_or_has_too_many_media_is_the_users_error(client, media):
    with pytest.raises(InputError, match="HTTP 400"):
        client.ask("left " * 3000)
    with pytest.raises(InputError, match="HTTP 400"):
        client.ask(QUESTION, images=[media.image] * 5)
    assert client.ask(QUESTION, max_tokens=1).completion_tokens == 1


def test_damaged_sound_sent_past_the_client_gets_a_4xx(server, media):
    part = audio_part(media.audio)
    part["input_audio"]["data"] = base64.b64encode(b"RIFF but nothing after").decode()
    plain = openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0)
    with pytest.raises(openai.BadRequestError):
        plain.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [part]}])


def test_imod_ask_prints_the_served_answer(server, client, media, monkeypatch):
    monkeypatch.setenv("IMOD_API_KEY", API_KEY)
    command = ["ask", QUESTION, "--video", str(media.video), "--url", server.url, "--max-tokens", "8", "--json"]
    result = CliRunner().invoke(imod, command, catch_exceptions=False)
    answer = json.loads(result.stdout)
    assert answer["answer"] == client.ask(QUESTION, videos=[media.video], max_tokens=8).text
    muted = CliRunner().invoke(imod, [*command, "--mute"], catch_exceptions=False)
    assert json.loads(muted.stdout)["prompt_tokens"] < answer["prompt_tokens"]


def test_the_server_is_a_link_of_the_parity_chain(server, base, monkeypatch):
    """Chat template, decoding and sampling included: the folder over HTTP is the folder in transformers."""
    from imod_export.parity import Chain, check_parity

    monkeypatch.setenv("IMOD_API_KEY", API_KEY)
    report = check_parity(Chain(base, "float32", against=(server.url,)))
    assert report.passed, report.faults
    assert [p.name for p in report.probes] == ["text", "image", "audio", "video", "image+audio", "video+audio"]
    assert sum(c.link.endswith(server.url) for c in report.controls) == 7


def test_a_timeout_is_one_sentence(server):
    with pytest.raises(ImodError, match="did not answer within"):
        Client(server.url, "tiny", API_KEY, timeout=0.001).ask(QUESTION)


def test_a_proxy_in_the_environment_does_not_stand_before_loopback(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert Client(server.url, api_key=API_KEY).ask(QUESTION, max_tokens=1).completion_tokens == 1
