"""Requests that Gradio would serve and this page refuses: those that make it fetch an address.

A file in a request to Gradio may be named by URL, and `file=` passes on what lies at a URL. The page needs neither.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1 << 20
"""Bytes of a request that is no upload; questions and settings are small."""
REFUSED = "This page fetches nothing from other addresses: upload the file instead."


class FetchNothing:
    """ASGI middleware. Uploads pass unread; other requests are looked through for addresses of files."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = unquote(scope["path"])
        _, asked, file = path.partition("/file=")
        if (asked and "://" in file[:12]) or "/proxy=" in path:
            await PlainTextResponse(REFUSED, 403)(scope, receive, send)
            return
        if scope["method"] != "POST" or path.rstrip("/").endswith("/upload"):
            await self.app(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:
            await PlainTextResponse(f"At most {MAX_BODY} bytes are taken here.", 413)(scope, receive, send)
        elif names_an_address(body):
            await PlainTextResponse(REFUSED, 403)(scope, receive, send)
        else:
            await self.app(scope, _again(body, receive), send)


def names_an_address(body: bytes) -> bool:
    """Whether a JSON body holds a file by URL."""
    try:
        content = json.loads(body)
    except ValueError:
        return False
    return any(_is_remote(found) for found in _objects(content))


def _is_remote(found: dict[str, Any]) -> bool:
    is_file = "path" in found or "meta" in found
    return is_file and any("://" in str(found.get(key) or "")[:12] for key in ("path", "url"))


def _objects(content: Any) -> Iterator[dict[str, Any]]:
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    if isinstance(content, dict):
        yield content
    for one in inner:
        yield from _objects(one)


async def _read(receive: Receive) -> bytes | None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False) and message["type"] == "http.request"
        if len(body) > MAX_BODY:
            return None
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read, then whatever comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
