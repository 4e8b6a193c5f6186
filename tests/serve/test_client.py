"""The client against servers that are not vLLM, that break off, that are busy and that hang."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from imod_core.errors import ImodError, InputError
from imod_serve.client import Client
from imod_serve.messages import Turn

CHAT_FIELDS = {"model", "messages", "max_tokens", "temperature", "stream", "stream_options", "logprobs"}
"""Of OpenAI's protocol, as far as the client uses them."""


class Plain(BaseHTTPRequestHandler):
    """A server that knows OpenAI's protocol and nothing else, and does as its `mood` says."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._json(200, {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "them"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        if body.keys() - CHAT_FIELDS:
            self._json(400, {"error": {"message": f"unknown fields {body.keys() - CHAT_FIELDS}"}})
        elif self.server.mood == "busy" and self.server.asked < 3:
            self._json(503, {"error": {"message": "busy"}})
        elif self.server.mood == "hangs":
            self.server.released.wait(20)
        elif body.get("stream"):
            self._stream()
        else:
            self._json(200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": "left"}}]})

    def _stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece, reason in (("le", None), ("ft", "stop")):
            if reason and self.server.mood == "breaks off":
                return
            if reason and self.server.mood == "falls silent":
                self.server.left = self.connection.recv(1) == b""
                self.server.released.set()
                return
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": reason}
            self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _json(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def plain():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Plain)
    server.mood, server.asked, server.released = "friendly", 0, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


TURNS = [Turn("user", "Where?")]


def test_another_server_is_sent_nothing_but_the_protocol(plain):
    client = Client(plain.url)
    assert not client.is_vllm
    assert client.chat(TURNS).text == "left"
    with client.stream(TURNS) as stream:
        assert list(stream) == ["le", "ft"]
    assert stream.answer.prompt_ids is None
    assert stream.answer.completion_tokens == 2


def test_another_server_tells_no_score(plain):
    assert Client(plain.url).score(TURNS, "left") is None


def test_an_answer_that_is_broken_off_is_no_answer(plain):
    plain.mood = "breaks off"
    with Client(plain.url).stream(TURNS) as stream, pytest.raises(ImodError, match="broke off"):
        list(stream)
    assert stream.answer.text == "le"


def test_a_stream_closed_by_another_thread_hangs_up_while_it_waits(plain):
    """The reader waits for a piece that does not come, as a page's thread does when Stop is pressed."""
    plain.mood = "falls silent"
    stream = Client(plain.url).stream(TURNS)
    pieces = []
    reader = threading.Thread(target=lambda: pieces.extend(stream))
    reader.start()
    until = time.monotonic() + 10
    while not pieces and time.monotonic() < until:
        time.sleep(0.05)
    stream.close()
    assert plain.released.wait(10)
    assert plain.left
    reader.join(10)
    assert not reader.is_alive()
    assert pieces == ["le"]


def test_a_busy_server_is_asked_again_and_not_for_ever(plain):
    plain.mood = "busy"
    with pytest.raises(ImodError, match="HTTP 503"):
        Client(plain.url, retries=0).chat(TURNS)
    plain.asked = 1
    assert Client(plain.url, retries=1).chat(TURNS).text == "left"
    assert plain.asked == 3


def test_a_server_that_hangs_is_left_in_bounded_time(plain):
    plain.mood = "hangs"
    with pytest.raises(ImodError, match="did not answer within"):
        Client(plain.url, timeout=0.3, retries=0).chat(TURNS)


def test_tags_without_media_never_leave_the_client(plain):
    with pytest.raises(InputError, match="more <image> tags"):
        Client(plain.url).chat([Turn("user", "<image>Where?")])
    assert plain.asked == 0
