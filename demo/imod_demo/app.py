"""The page as a server: what Gradio is told, which is to share, to log and to fetch nothing."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from starlette.middleware import Middleware

from imod_core.errors import InputError
from imod_demo.desk import Desk
from imod_demo.guard import FetchNothing
from imod_demo.medium import MAX_BYTES
from imod_demo.page import build
from imod_demo.theme import CSS, theme
from imod_demo.view import STATIC

WAITING = 200
"""Visitors' requests that may wait; beyond that they are told to come back."""
THREADS = 80


def launch(desk: Desk, *, host: str = "127.0.0.1", port: int = 7860, root_path: str | None = None) -> gr.Blocks:
    """Serve the page until `close` is called on what this returns. Raises InputError if the port is taken."""
    page = build(desk)
    page.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            root_path=root_path,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            max_threads=THREADS,
            max_file_size=MAX_BYTES,
            allowed_paths=[],
            favicon_path=STATIC / "favicon.svg",
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            app_kwargs={"middleware": [Middleware(FetchNothing)], "docs_url": None, "redoc_url": None},
            theme=theme(),
            css_paths=CSS,
            head=(STATIC / "head.html").read_text(encoding="utf-8"),
        )
    except OSError as error:
        raise InputError(f"Cannot listen on {host}, port {port} ({error}): choose another with --port.") from None
    return page
