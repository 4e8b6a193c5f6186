"""A real vLLM over HTTP on the tiny AVT base, asked with our client and with the plain openai package."""

import base64
import json
import time
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest
from click.testing import CliRunner

from imod_core.cli import imod
from imod_core.errors import InputError
from imod_core.samples import Message, Sample
from imod_serve.client import Client
from imod_serve.local import LocalModel
from imod_serve.messages import Turn, audio_part, image_part

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


def test_streamed_pieces_make_the_whole_answer_with_its_counts(client, media):
    turns = [Turn("user", QUESTION, images=(media.image,))]
    with client.stream(turns, max_tokens=8) as stream:
        pieces = list(stream)
    whole, streamed = client.chat(turns, max_tokens=8), stream.answer
    assert len(pieces) > 1
    assert "".join(pieces) == streamed.text == whole.text
    assert (streamed.prompt_tokens, streamed.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)
    assert streamed.prompt_ids == whole.prompt_ids
    assert len(whole.prompt_ids) == whole.prompt_tokens
    assert 0 < streamed.first_token_seconds < streamed.seconds


def test_a_closed_stream_ends_the_request_at_the_server(server, client):
    with client.stream([Turn("user", QUESTION)], max_tokens=1500) as stream:
        next(iter(stream))
    assert not stream.answer.text.count(" ") > 1000
    until = time.monotonic() + 30
    while running(server.url):
        assert time.monotonic() < until, "the server still generates for nobody"
        time.sleep(0.2)


def running(url):
    """Requests that vLLM is working on."""
    metrics = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {API_KEY}"}, trust_env=False).text
    (line,) = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running")]
    return float(line.split()[-1])


def test_an_earlier_turn_and_its_medium_are_part_of_the_question(client, local, media):
    turns = [
        Turn("user", "What is this?", images=(media.image,)),
        Turn("assistant", "left"),
        Turn("user", QUESTION, audios=(media.audio,)),
    ]
    messages = [
        Message("user", "<image>What is this?"), Message("assistant", "left"), Message("user", f"<audio>{QUESTION}"),
    ]  # fmt: skip
    sample = Sample("s", tuple(messages), (media.image,), (media.audio,))
    served = client.chat(turns, max_tokens=8)
    assert served.text == whole(local.ask_sample(sample, max_tokens=8).text)
    assert served.prompt_tokens > client.chat(turns[2:], max_tokens=1).prompt_tokens


def test_the_score_of_an_answer_is_its_log_probability_in_transformers(client, local, media):
    import torch

    def reference(answer, image):
        inputs = local.inputs(
            [Message("user", f"<image>{QUESTION}")], {"<image>": [image], "<audio>": [], "<video>": []}
        )
        ids = local.processor.tokenizer(answer, add_special_tokens=False, return_tensors="pt").input_ids
        start = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            logits = local.model(**inputs).logits[0, start - 1 : -1].float()
        return logits.log_softmax(-1).gather(1, ids[0, :, None]).sum().item()

    scores = {}
    for answer in ("left", "the trumpet"):
        for image in (media.image, media.other_image):
            found = scores[answer, image] = client.score([Turn("user", QUESTION, images=(image,))], answer)
            assert found == pytest.approx(reference(answer, image), abs=1e-4)
    assert len({round(score, 3) for score in scores.values()}) == 4


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


ADDRESSES = ("http://example.com/a.png", "http://127.0.0.1/a.png", "file:///etc/hostname", "/etc/hostname", "ftp://a/b")


@pytest.mark.parametrize("url", ADDRESSES)
def test_media_are_fetched_from_nowhere(server, url):
    plain = openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0)
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    with pytest.raises(openai.BadRequestError, match="none is allowed to be fetched"):
        plain.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])


def other_routes(url):
    """A request with a picture for each further route that takes one."""
    part = {"type": "image_url", "image_url": {"url": url}}
    turn = {"role": "user", "content": [part]}
    source = {"type": "image", "source": {"type": "url", "url": url}}
    messages = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": [source]}]}
    items = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    return {
        "/v1/responses": {"input": items, "max_output_tokens": 1},
        "/v1/messages": messages,
        "/v1/messages/count_tokens": messages,
        "/tokenize": {"messages": [turn]},
        "/invocations": {"messages": [turn], "max_tokens": 1},
    }


def test_no_route_goes_round_the_limits_or_the_key(server, media):
    headers = {"Authorization": f"Bearer {API_KEY}"}
    picture = image_part(media.image)["image_url"]["url"]
    for path in other_routes(""):
        post = partial(httpx.post, f"{server.url}{path}", timeout=60.0, trust_env=False)
        assert post(json=other_routes(picture)[path]).status_code == 401, path
        assert post(json=other_routes(picture)[path], headers=headers).status_code == 200, path
        for url in (*ADDRESSES, "data:image/svg+xml;base64,PHN2Zy8+"):
            reply = post(json=other_routes(url)[path], headers=headers)
            assert reply.status_code == 400, path
            assert reply.json()["error"]["message"], path


def test_many_conversations_in_one_request_are_refused(server):
    body = {"messages": [[{"role": "user", "content": QUESTION}]] * 2, "max_tokens": 1}
    post = partial(httpx.post, f"{server.url}/v1/chat/completions/batch", json=body, trust_env=False)
    assert post().status_code == 401
    reply = post(headers={"Authorization": f"Bearer {API_KEY}"})
    assert reply.status_code == 403
    assert "send one a request" in reply.json()["error"]["message"]


def test_readiness_and_the_probe_are_told_without_the_key(server):
    assert httpx.get(f"{server.url}/ready", trust_env=False).status_code == 200
    metrics = httpx.get(f"{server.url}/metrics", trust_env=False).text
    assert "imod_serve_ready 1.0" in metrics
    assert "vllm:num_requests_running" in metrics
    assert httpx.get(f"{server.url}/openapi.json", trust_env=False).status_code == 401


def test_a_web_page_of_another_origin_is_not_let_in(server):
    origin = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    reply = httpx.options(f"{server.url}/v1/chat/completions", headers=origin, trust_env=False)
    assert "access-control-allow-origin" not in reply.headers


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


def test_a_proxy_in_the_environment_does_not_stand_before_loopback(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert Client(server.url, api_key=API_KEY).ask(QUESTION, max_tokens=1).completion_tokens == 1
