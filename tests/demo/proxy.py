"""A reverse proxy that shows a server under a path, as nginx and Caddy do with a prefix taken off."""

import threading
import time

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length", "content-encoding"}


class Proxy:
    """`with Proxy("/imod", "http://127.0.0.1:7860") as proxy:` shows that server at `proxy.url`."""

    def __init__(self, path: str, behind: str):
        self.path, self.behind = path, behind
        self.client = httpx.AsyncClient(timeout=None)
        routes = [
            Route(f"{path}/{{rest:path}}", self.pass_on, methods=["GET", "POST", "HEAD"]),
            Route("/{rest:path}", lambda request: PlainTextResponse("not under the path", 404)),
        ]
        config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="error")
        self.server = uvicorn.Server(config)

    async def pass_on(self, request: Request) -> Response:
        headers = {k: v for k, v in request.headers.items() if k not in HOP_BY_HOP}
        headers |= {"x-forwarded-host": request.headers["host"], "x-forwarded-proto": "http"}
        url = f"{self.behind}/{request.path_params['rest']}"
        sent = self.client.build_request(
            request.method, url, params=request.query_params, headers=headers, content=await request.body()
        )
        reply = await self.client.send(sent, stream=True)
        kept = {k: v for k, v in reply.headers.items() if k not in HOP_BY_HOP}
        return StreamingResponse(reply.aiter_bytes(), reply.status_code, kept)

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.server.run, daemon=True).start()
        while not self.server.started:
            time.sleep(0.05)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}{self.path}/"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
