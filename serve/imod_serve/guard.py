"""The outermost layer of vLLM's HTTP server (`--middleware imod_serve.guard.Guard`): what vLLM has no setting for.

The API key on every route, not only those below /v1; names by which a server on loopback may be called; the size and
duration of a request, and how many are in work; readiness, which the launcher grants once its probe has passed.
Everything else is vLLM's, media are `connector`'s.
"""

import asyncio
import hmac
import json
import os
import re
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge

from imod_serve.limits import LOOPBACK_ONLY, READY, read_limits

OPEN = ("/health", "/ready", "/ping", "/metrics")
"""For load balancers and Prometheus; they tell no content."""
CLOSED = {
    "/scale_elastic_ep": "it steers the engine",
    "/is_scaling_elastic_ep": "it steers the engine",
    "/start_profile": "it steers the engine",
    "/stop_profile": "it steers the engine",
    "/fault_tolerance": "it steers the engine",
    "/abort_requests": "it ends other clients' requests",
    "/inference": "it takes tensors past the limits on media",
    "/v1/chat/completions/batch": "it takes any number of conversations at once, send one a request",
    "/generative_scoring": "it takes any number of texts at once, send one a request",
    "/v1/audio": "it decodes sounds before they are looked at, send them to /v1/chat/completions",
}
"""Routes of vLLM's, with all below them, that are not open to whoever may ask questions, and why."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
PORT = re.compile(r":\d*$")
GRACE_SECONDS = 10.0
"""In which vLLM ends a request that took too long, before it is broken off."""
DRAINED = 4
"""Times the limit that is read of a request that is too large, and thrown away: a client hears an answer only after it
has sent all."""
JSON_BODY, FORM_BODY = "application/json", "multipart/form-data"

READY_GAUGE = Gauge(
    "imod_serve_ready", "1 once the start-up probe has passed, 0 before.", multiprocess_mode="mostrecent"
)
REFUSED = Counter("imod_serve_refused_requests", "Requests refused before they reached vLLM, by status.", ["status"])


class Refusal(Exception):
    """A request that ends here."""

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class Guard:
    """ASGI middleware; its settings come from the environment that `imod serve` gives to vLLM."""

    def __init__(self, app: Any):
        self.app, self.limits = app, read_limits()
        self.key = os.environ.get("VLLM_API_KEY")
        self.loopback_only = LOOPBACK_ONLY in os.environ
        self.ready = Path(os.environ[READY]) if READY in os.environ else None
        self.active = self.held = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "Only HTTP is served here."})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            try:
                await self._answer(scope, receive, send)
            except Refusal as refusal:
                REFUSED.labels(str(refusal.status)).inc()
                await _reply(send, refusal.status, _error(refusal), refusal.headers)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        self._admit(path, scope["method"], headers)
        if path == "/metrics":
            READY_GAUGE.set(self._is_ready())
        if path == "/ready":
            if not self._is_ready():
                raise Refusal(503, "The start-up probe has not passed yet.", **{"retry-after": "5"})
            # Ready is who was proven right and is still alive, which vLLM itself answers.
            scope = {**scope, "path": "/health", "raw_path": b"/health"}
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
        elif self.active >= self.limits.requests:
            raise _too_busy()
        else:
            self.active += 1
            try:
                await self._answer_in_time(scope, receive, send, headers)
            finally:
                self.active -= 1

    def _admit(self, path: str, method: str, headers: dict[str, str]) -> None:
        if self.loopback_only and PORT.sub("", headers.get("host", "")).lower() not in LOOPBACK_NAMES:
            raise Refusal(403, "This server without an API key answers under localhost and 127.0.0.1 alone.")
        if self.key and path not in OPEN and method != "OPTIONS" and not _has_key(headers, self.key):
            raise Refusal(401, "The API key is missing or wrong: send it as Authorization: Bearer KEY.")
        for closed, why in CLOSED.items():
            if path == closed or path.startswith(f"{closed}/"):
                raise Refusal(403, f"{closed} is not open to clients: {why}.")

    def _is_ready(self) -> bool:
        return self.ready is None or self.ready.exists()

    async def _answer_in_time(self, scope: Any, receive: Any, send: Any, headers: dict[str, str]) -> None:
        """Read the body, pass it on, and end what takes too long.

        To vLLM that looks as if the client had left, for which it stops computing; merely broken off, it would go on
        for nobody.
        """
        begun, over, body = False, asyncio.Event(), None
        held: list[bytes] = []

        async def watched(message: Any) -> None:
            nonlocal begun
            if not over.is_set():  # what was begun is left without its end
                begun = True
                await send(message)

        loop, seconds = asyncio.get_running_loop(), self.limits.request_seconds
        end = loop.time() + seconds
        timer = loop.call_at(end, over.set)
        try:
            async with asyncio.timeout_at(end) as clock:
                body = await self._read(receive, headers, held)
            async with asyncio.timeout_at(end + GRACE_SECONDS) as clock:
                await self.app(scope, _replay(body, receive, over), watched)
        except TimeoutError:
            if not clock.expired():
                raise
        finally:
            timer.cancel()
            self.held -= sum(map(len, held))
        if over.is_set() and not begun:
            status, what = (408, "sent") if body is None else (504, "answered")
            raise Refusal(status, f"The request was not {what} within {seconds} s.")

    async def _read(self, receive: Any, headers: dict[str, str], held: list[bytes]) -> bytes:
        """The body, which also stays in `held` and is counted in `self.held` from its first piece on."""
        most = self.limits.request_bytes
        size, more = 0, True
        while more and size <= DRAINED * most:
            message = await receive()
            body, more = message.get("body", b""), message.get("more_body", False)
            size += len(body)
            if size <= most:
                if self.held + len(body) > self.limits.held_bytes:
                    raise _too_busy()
                self.held += len(body)
                held.append(body)
        if size > most:
            raise Refusal(413, f"The request has more than the {most:,} bytes that are taken here.")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if size and kind not in (JSON_BODY, FORM_BODY):
            raise Refusal(415, f"The body is {kind or 'of no type'}: expected {JSON_BODY}.")
        held[:] = [b"".join(held)]
        return held[0]


def _replay(body: bytes, receive: Any, over: asyncio.Event) -> Any:
    """A `receive` that yields the body again, then the client's leaving, which `over` stands for too."""
    given = False

    async def again() -> Any:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        waits = [asyncio.ensure_future(wait) for wait in (receive(), over.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return waits[0].result() if waits[0].done() else {"type": "http.disconnect"}
        finally:
            for wait in waits:
                wait.cancel()

    return again


def _has_key(headers: dict[str, str], key: str) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.encode("latin-1"), key.encode())


def _too_busy() -> Refusal:
    return Refusal(429, "Too many requests are in work: send it again later.", **{"retry-after": "1"})


def _error(refusal: Refusal) -> bytes:
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    return json.dumps({"error": {"message": refusal.message, "type": kind, "code": refusal.status}}).encode()


async def _reply(send: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    pairs = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
