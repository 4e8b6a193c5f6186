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
CONTROL = ("/scale_elastic_ep", "/is_scaling_elastic_ep", "/start_profile", "/stop_profile")
"""Routes that steer the engine; whoever may ask questions may not do that."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
PORT = re.compile(r":\d*$")
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
        if path in CONTROL:
            raise Refusal(403, f"{path} is not open to clients.")
        if self.key and path not in OPEN and method != "OPTIONS" and not _has_key(headers, self.key):
            raise Refusal(401, "The API key is missing or wrong: send it as Authorization: Bearer KEY.")

    def _is_ready(self) -> bool:
        return self.ready is None or self.ready.exists()

    async def _answer_in_time(self, scope: Any, receive: Any, send: Any, headers: dict[str, str]) -> None:
        """Read the body, pass it on, and break off what takes too long."""
        begun = False
        held: list[bytes] = []

        async def watched(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        body = None
        try:
            async with asyncio.timeout(self.limits.request_seconds) as clock:
                body = await self._read(receive, headers, held)
                await self.app(scope, _replay(body, receive), watched)
        except TimeoutError:
            if not clock.expired():
                raise
            if not begun:
                status, what = (408, "sent") if body is None else (504, "answered")
                raise Refusal(status, f"The request was not {what} within {self.limits.request_seconds} s.") from None
        finally:
            self.held -= sum(map(len, held))

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


def _replay(body: bytes, receive: Any) -> Any:
    """A `receive` that yields the body again, then what comes after it: the client's disconnecting."""
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

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
