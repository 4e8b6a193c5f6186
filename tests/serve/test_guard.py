"""The outermost layer over a bare ASGI application that tells what reaches it. Over vLLM itself: test_server.py."""

import asyncio
import json

import httpx
import pytest

from imod_serve.guard import CLOSED, Guard
from imod_serve.limits import LIMITS, LOOPBACK_ONLY, READY, Limits

JSON = {"content-type": "application/json"}


async def echo(scope, receive, send):
    """Answers with the path and the size of the body; /slow takes a second, /stream a second between two pieces."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(5)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{scope['path']} {len(body)}".encode(), "more_body": True})
    if scope["path"] == "/stream":
        await asyncio.sleep(5)
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Makes a guard from what the launcher would have put into the environment."""
    for name in ("VLLM_API_KEY", LIMITS, LOOPBACK_ONLY, READY):
        monkeypatch.delenv(name, raising=False)

    def make(limits=None, **environment):
        monkeypatch.setenv(LIMITS, (limits or Limits()).to_json())
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return Guard(echo)

    return make


def ask(guard, method="POST", path="/v1/chat/completions", host="localhost:8000", **options):
    async def send():
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def reason(reply):
    error = reply.json()["error"]
    assert error["code"] == reply.status_code
    return error["message"]


def test_a_plain_request_goes_through_whole(settings):
    reply = ask(settings(), content=b"{" + b" " * 100_000 + b"}", headers=JSON)
    assert (reply.status_code, reply.text) == (200, "/v1/chat/completions 100002")


@pytest.mark.parametrize("path", ["/v1/models", "/invocations", "/tokenize", "/docs", "/openapi.json", "/pooling"])
def test_the_key_is_wanted_on_every_route(settings, path):
    guard = settings(VLLM_API_KEY="key")
    assert ask(guard, "GET", path).status_code == 401
    assert ask(guard, "POST", path, content=b"{}", headers=JSON).status_code == 401
    for wrong in ("Bearer wrong", "key", "Bearer ", "Bearer key "):
        assert ask(guard, "GET", path, headers={"authorization": wrong}).status_code == 401
    assert ask(guard, "GET", path, headers={"authorization": "Bearer key"}).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ping", "/metrics"])
def test_probes_and_prometheus_need_no_key(settings, path):
    assert ask(settings(VLLM_API_KEY="key"), "GET", path).status_code == 200


def test_ready_is_who_was_proven_right_and_is_alive(settings, tmp_path):
    guard = settings(**{READY: str(tmp_path / "ready")})
    before = ask(guard, "GET", "/ready")
    assert before.status_code == 503
    assert "probe" in reason(before)
    (tmp_path / "ready").touch()
    after = ask(guard, "GET", "/ready")
    assert (after.status_code, after.text) == (200, "/health 0")


@pytest.mark.parametrize(("host", "status"), [
    ("localhost", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("LocalHost:1", 200),
    ("evil.example:8000", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil.example:8000", 403),
])  # fmt: skip
def test_a_name_that_was_made_to_point_at_loopback_is_refused(settings, host, status):
    guard = settings(**{LOOPBACK_ONLY: "1"})
    assert ask(guard, "GET", "/v1/models", headers={"host": host}).status_code == status


def test_with_a_key_any_name_will_do(settings):
    headers = {"host": "models.example", "authorization": "Bearer key"}
    assert ask(settings(VLLM_API_KEY="key"), "GET", "/v1/models", headers=headers).status_code == 200


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(settings):
    guard = settings(Limits(request_bytes=1000))

    async def chunks():
        for _ in range(11):
            yield b"x" * 100

    for content in (b"x" * 1001, chunks()):
        reply = ask(guard, content=content, headers=JSON)
        assert reply.status_code == 413
        assert "1,000 bytes" in reason(reply)
    assert ask(guard, content=b"x" * 1000, headers=JSON).status_code == 200


def test_only_json_and_forms_come_in(settings):
    guard = settings()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        reply = ask(guard, content=b"{}", headers={"content-type": kind})
        assert reply.status_code == 415
    for kind in ("application/json; charset=utf-8", "multipart/form-data; boundary=x"):
        assert ask(guard, content=b"{}", headers={"content-type": kind}).status_code == 200


def test_what_takes_too_long_ends_with_a_reason(settings):
    guard = settings(Limits(request_seconds=1))
    late = ask(guard, path="/slow", content=b"{}", headers=JSON)
    assert late.status_code == 504
    assert "within 1 s" in reason(late)

    async def trickle():
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    assert ask(guard, content=trickle(), headers=JSON).status_code == 408


def test_what_takes_too_long_looks_to_vllm_as_if_the_client_had_left(settings):
    """vLLM's own decorator of its routes; merely cancelled, it would leave the handler to run on."""
    from fastapi import FastAPI
    from starlette.requests import Request
    from vllm.entrypoints.serve.utils.api_utils import with_cancellation

    ended = []

    @with_cancellation
    async def handler(request, raw_request):
        try:
            await asyncio.sleep(5)
        finally:
            ended.append("ended")

    async def app(scope, receive, send):
        request = Request({**scope, "app": FastAPI()}, receive)
        await request.body()
        await handler(None, raw_request=request)

    guard = settings(Limits(request_seconds=1))
    guard.app = app

    async def outlasted():
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            reply = await client.post("/v1/completions", content=b"{}", headers=JSON)
            await asyncio.sleep(0.2)
            return reply, list(ended)  # the end of the loop would end every handler

    reply, told = asyncio.run(outlasted())
    assert reply.status_code == 504
    assert told == ["ended"]


def test_a_stream_that_takes_too_long_is_broken_off_and_not_ended_as_if_it_were_whole(settings):
    sent = []
    scope = {"type": "http", "method": "POST", "path": "/stream", "headers": []}

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    asyncio.run(settings(Limits(request_seconds=1))(scope, receive, send))
    assert sent[-1]["more_body"]


def test_more_requests_than_allowed_are_told_to_come_again(settings):
    guard = settings(Limits(requests=1, request_seconds=2))

    async def both():
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            first = asyncio.create_task(client.post("/slow", content=b"{}", headers=JSON))
            await asyncio.sleep(0.2)
            second = await client.post("/v1/chat/completions", content=b"{}", headers=JSON)
            await first
            return second, await client.post("/v1/chat/completions", content=b"{}", headers=JSON)

    refused, later = asyncio.run(both())
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert later.status_code == 200


def test_bodies_together_are_bounded_and_let_go_of(settings):
    guard = settings(Limits(held_bytes=1000))
    for size, status in ((1001, 429), (1000, 200), (1000, 200)):
        assert ask(guard, content=b"x" * size, headers=JSON).status_code == status
    assert (guard.held, guard.active) == (0, 0)


@pytest.mark.parametrize(
    "path", [*CLOSED, "/fault_tolerance/apply", "/inference/v1/generate", "/v1/audio/translations"]
)
def test_what_steers_the_engine_or_goes_round_the_limits_is_closed_even_with_the_key(settings, path):
    guard = settings(VLLM_API_KEY="key")
    reply = ask(guard, path=path, content=b"{}", headers={**JSON, "authorization": "Bearer key"})
    assert reply.status_code == 403
    assert "is not open to clients" in reason(reply)


def test_websockets_are_closed(settings):
    sent = []

    async def run():
        async def send(message):
            sent.append(message)

        await settings()({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send)

    asyncio.run(run())
    assert sent[0]["type"] == "websocket.close"


def test_refusals_are_counted_for_prometheus(settings):
    from prometheus_client import generate_latest

    guard = settings(VLLM_API_KEY="key")
    ask(guard, "GET", "/v1/models")
    ask(guard, "GET", "/metrics")
    text = generate_latest().decode()
    assert 'imod_serve_refused_requests_total{status="401"}' in text
    assert "imod_serve_ready 1.0" in text


def test_limits_travel_by_the_environment(settings):
    assert settings(Limits(images=9)).limits == Limits(images=9)
    assert json.loads(Limits().to_json())["images"] == 4
