"""Requests that nobody would write, made from the server's own OpenAPI by schemathesis: none may end as a 5xx.

Bodies are shortened to one token of an answer, and half of those with messages get a medium: a good one with some bytes
changed, or an address. IMOD_FUZZ_EXAMPLES=500 looks longer than the suite does.
"""

import base64
import json
import os

import hostile
import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from .conftest import API_KEY

pytestmark = [pytest.mark.server, pytest.mark.timeout(3600)]
EXAMPLES = int(os.environ.get("IMOD_FUZZ_EXAMPLES", "15"))
ROUTES = (
    *("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"),
    *("/tokenize", "/invocations"),
)
"""All open ones that take media from a model without pooling."""
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
COSTLY = ("n", "best_of", "min_tokens", "use_beam_search", "ignore_eos", "prompt_logprobs", "background")
"""Fields that only make a valid request longer."""
ADDRESSES = ("file:///etc/passwd", "/etc/passwd", "http://127.0.0.1:9/x", "https://example.com/x.mp4", "ftp://x/y", "")
HEADERS = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}


PROFILE = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def media_parts(draw):
    """A content part with a medium that may be changed, cut, of another kind than it says, or not there at all."""
    samples = [hostile.picture(1, 16), hostile.sound(1, 0.1), hostile.sound(1, 0.1, format="FLAC"), hostile.video(1, 4)]
    data = bytearray(draw(st.sampled_from(samples)))
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6)):
        data[place] = value
    content = base64.b64encode(
        bytes(data[: draw(st.sampled_from([len(data), len(data), len(data) // 2, 40]))])
    ).decode()
    kind = draw(st.sampled_from(["image_url", "video_url", "audio_url", "input_audio", "input_image"]))
    media_type = draw(st.sampled_from(["image/png", "video/mp4", "video/jpeg", "audio/wav", "image/svg+xml", "x"]))
    url = draw(st.sampled_from([f"data:{media_type};base64,{content}"] * 4 + list(ADDRESSES)))
    if kind == "input_audio":
        return {"type": kind, kind: {"data": content, "format": draw(st.sampled_from(["wav", "mp3", "a,b"]))}}
    return {"type": kind, "image_url": url} if kind == "input_image" else {"type": kind, kind: {"url": url}}


def shortened(body, draw):
    """A body that costs little, with a medium in half of those that take one."""
    if not isinstance(body, dict):
        return body
    body = {key: value for key, value in body.items() if key not in COSTLY and key != "model"}
    body |= {key: 1 for key in LENGTHS if key in body} | {"max_tokens": 1}
    place = "input" if "input" in body else "messages"
    if place in body and draw(st.booleans()):
        turn = {"role": "user", "content": [draw(media_parts()), {"type": "text", "text": "What?"}]}
        batch = draw(st.booleans()) and place == "messages"
        body = {place: [[turn]] if batch else [turn], **{key: 1 for key in LENGTHS if key in body}}
    return body


def has_empty_item(body):
    """An earlier item of a conversation without content, of which vLLM's /v1/responses reads the first part: a 500."""
    items = body.get("input") if isinstance(body, dict) else None
    return isinstance(items, list) and any(isinstance(item, dict) and item.get("content") == [] for item in items)


@pytest.fixture(scope="module")
def schema(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=HEADERS)


@pytest.mark.parametrize("route", ROUTES)
def test_no_request_ends_as_a_fault_of_the_server(schema, server, route):
    operation = schema[route]["POST"]
    strategy = st.one_of(operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode)
    statuses = set()
    with httpx.Client(base_url=server.url, headers=HEADERS, timeout=120.0, trust_env=False) as client:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def run(data):
            body = shortened(data.draw(strategy).body, data.draw)
            assume(not has_empty_item(body))
            content = body if isinstance(body, bytes) else json.dumps(body, default=str).encode()
            reply = client.post(route, content=content)
            statuses.add(reply.status_code)
            assert reply.status_code < 500, f"{reply.text[:500]} for {content[:2000]!r}"

        run()
    assert statuses & {400, 404, 422}, "nothing was refused, so nothing odd was sent"
    assert httpx.get(f"{server.url}/health", timeout=30.0, trust_env=False).status_code == 200
