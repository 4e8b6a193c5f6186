"""Nothing is fetched from elsewhere, nobody's files are read, and a visitor's files go when the visitor does."""

import json
import os
import time
from pathlib import Path

import httpx
import pytest

from imod_core.errors import InputError
from imod_demo.guard import names_an_address
from imod_demo.shelf import Shelf

from .clips import write_clip
from .conftest import ANSWER_SECONDS, opened

pytestmark = pytest.mark.timeout(900)


@pytest.mark.server
def test_the_page_loads_nothing_from_elsewhere(browser, demo):
    context, asked = browser.new_context(), []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    opened(page, demo.url)
    page.locator("#examples button").first.click()
    page.locator("#tray video").wait_for()
    page.click("#ask")
    page.locator("#figures-1 .keys").wait_for(timeout=ANSWER_SECONDS * 1000)
    page.evaluate("document.fonts.ready.then(() => true)")
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((demo.url, "data:", "blob:"))] == []
    context.close()


@pytest.mark.server
def test_files_and_addresses_outside_the_shelf_are_refused(demo, tiny_base):
    def status(path, **options):
        return httpx.request(options.pop("method", "GET"), demo.url + path, trust_env=False, **options).status_code

    for path in ("/etc/hostname", str(tiny_base / "config.json"), f"{demo.log.parent}/demo.log"):
        assert status(f"/gradio_api/file={path}") == 403, path
    assert status("/gradio_api/file=http://127.0.0.1:1/a.png") == 403
    assert status("/gradio_api/proxy=http://127.0.0.1:1/a.png") == 403
    file = {"path": "http://127.0.0.1:1/a.png", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file], "fn_index": 0, "session_hash": "s"}
    assert status("/gradio_api/queue/join", method="POST", json=body) == 403
    assert status("/gradio_api/queue/join", method="POST", content=b" " * (2 << 20)) == 413
    config = httpx.get(f"{demo.url}/config", trust_env=False).json()
    assert all(dependency["api_visibility"] == "private" for dependency in config["dependencies"])


@pytest.mark.server
def test_a_visitors_files_are_deleted_when_the_page_is_closed(browser, demo, tmp_path):
    (root,) = demo.log.parent.glob("imod-demo-*")
    context = browser.new_context()
    page = opened(context.new_page(), demo.url)
    page.set_input_files("#drop input[type=file]", str(write_clip(tmp_path / "a-private-clip.mp4")))
    page.locator("#tray .card").wait_for()
    held = [path for path in root.rglob("*") if path.name == "a-private-clip.mp4"]
    folders = list(root.glob("visitor-*"))
    assert held
    assert any(list(folder.iterdir()) for folder in folders)
    context.close()
    until = time.monotonic() + 60
    while time.monotonic() < until and (held[0].exists() or any(any(f.iterdir()) for f in folders if f.exists())):
        time.sleep(0.2)
    assert not held[0].exists()
    assert not any(list(folder.iterdir()) for folder in folders if folder.exists())


def test_a_file_by_address_is_recognised_wherever_it_stands():
    def hidden(file):
        return json.dumps({"data": [1, {"deep": [file]}]}).encode()

    assert names_an_address(hidden({"path": "https://example.org/a.png", "meta": {"_type": "gradio.FileData"}}))
    assert names_an_address(hidden({"path": "/x", "url": "http://example.org/a.png"}))
    assert not names_an_address(hidden({"path": "/tmp/a.png", "name": "see https://example.org"}))
    assert not names_an_address(json.dumps({"data": ["What is at https://example.org?"]}).encode())


def test_a_shared_upload_stays_until_its_last_visitor_leaves():
    shelf = Shelf()
    upload = shelf.root / "hash" / "a.mp4"
    upload.parent.mkdir()
    upload.write_bytes(b"clip")
    folders = [shelf.folder(visitor) for visitor in ("one", "two")]
    for visitor in ("one", "two"):
        assert shelf.upload(visitor, str(upload)) == upload
    shelf.leave("one")
    assert upload.exists()
    assert [folder.exists() for folder in folders] == [False, True]
    shelf.leave("two")
    assert not upload.exists()
    shelf.clear()
    assert not shelf.root.exists()


def test_an_upload_that_nobody_claims_is_deleted_after_an_hour():
    shelf = Shelf()
    uploads = [shelf.root / (letter * 64) / "a.mp4" for letter in "abc"]
    for upload in uploads:
        upload.parent.mkdir()
        upload.write_bytes(b"clip")
    shelf.upload("one", str(uploads[0]))
    for upload in uploads[:2]:
        os.utime(upload, (0, 0))
    shelf.upload("two", str(uploads[2]))
    assert [upload.exists() for upload in uploads] == [True, False, True]
    shelf.clear()


def test_only_what_the_browser_sent_counts_as_an_upload(tmp_path):
    shelf = Shelf()
    stranger = shelf.folder("stranger") / "000.mp4"
    stranger.write_bytes(b"clip")
    for path in ("/etc/hostname", str(stranger), f"{shelf.root}/x/../../{Path(__file__).name}", str(shelf.root)):
        with pytest.raises(InputError, match="send it again"):
            shelf.upload("one", path)
    shelf.clear()
