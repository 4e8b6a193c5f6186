"""A stand-in for a model hub: the few endpoints that huggingface_hub's upload of a folder calls, on loopback.

Regular files come inside the commit, large ones by the LFS protocol, as the real hub asks for them.
"""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

LARGE = (".safetensors", ".json")
"""Sent by LFS here; the real hub decides by its own list."""


class Hub:
    """What was pushed."""

    def __init__(self):
        self.repos, self.commits, self.files, self.objects = {}, [], {}, {}
        self.refuse = 0
        """HTTP status for every request; 0 serves them."""


@contextmanager
def standin():
    """A running hub and its address."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._serve("GET")

    def do_POST(self):
        self._serve("POST")

    def do_PUT(self):
        self._serve("PUT")

    def log_message(self, *arguments):
        pass

    def _serve(self, method):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.refuse:
            self._answer({"error": "refused"}, self.hub.refuse)
        elif method == "PUT":
            self.hub.objects[hashlib.sha256(body).hexdigest()] = body
            self._answer({})
        elif self.path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told.get('organization', 'me')}/{told['name']}"
            self.hub.repos[name] = told
            self._answer({"url": f"{self._root()}/{name}", "id": name})
        elif "/preupload/" in self.path:
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            self._answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **o,
                    "authenticated": True,
                    "actions": {"upload": {"href": f"{self._root()}/store/{o['oid']}", "header": {}}},
                }
                for o in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"id": "me/repo", "sha": "0" * 40, "siblings": []})

    def _commit(self, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.objects[value["oid"]]
        self.hub.commits.append(lines[0]["value"])
        self._answer({"commitUrl": f"{self._root()}/me/repo/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True})

    def _root(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def _answer(self, values, status=200):
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
