"""Where visitors' files lie: a folder of its own for each visitor, deleted when they leave and when the demo ends."""

import atexit
import os
import secrets
import shutil
import tempfile
import threading
import time
from pathlib import Path

from imod_core.errors import InputError

HOLD_SECONDS = 3600
"""Uploads that nobody claims are deleted after this time."""
SHA256_DIGITS = 64
"""Of the folders' names in which Gradio lays uploads."""


class Shelf:
    """One temporary folder, which is Gradio's too: uploads come in here, and only what is here is served.

    Make it before Gradio's components: they read its place from the environment.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="imod-demo-")).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(self.root)
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(self.root / "cached")
        self._folders: dict[str, Path] = {}
        self._uploads: dict[Path, set[str]] = {}
        self._lock = threading.Lock()
        atexit.register(self.clear)

    def folder(self, visitor: str) -> Path:
        """The visitor's folder, whose name nobody else can guess."""
        with self._lock:
            folder = self._folders.setdefault(visitor, self.root / f"visitor-{secrets.token_urlsafe(16)}")
            folder.mkdir(exist_ok=True)
        return folder

    def upload(self, visitor: str, path: str) -> Path:
        """A file that the visitor's browser has just sent. Raises InputError for any other path."""
        found = Path(path).resolve()
        if not found.is_file() or found.parent.parent != self.root or found.parent in self._folders.values():
            raise InputError("This file did not arrive: send it again.")
        self._sweep()
        with self._lock:
            # Gradio keeps uploads by content, so that two visitors may share one.
            self._uploads.setdefault(found, set()).add(visitor)
        return found

    def leave(self, visitor: str) -> None:
        """Delete what the visitor brought, but for what another one still uses."""
        with self._lock:
            folder = self._folders.pop(visitor, None)
            for path, holders in list(self._uploads.items()):
                holders.discard(visitor)
                if not holders:
                    del self._uploads[path]
                    path.unlink(missing_ok=True)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Delete uploads that nobody claimed: the page was closed before they had arrived."""
        oldest = time.time() - HOLD_SECONDS
        with self._lock:
            for path in self.root.glob(f"{'[0-9a-f]' * SHA256_DIGITS}/*"):
                if path not in self._uploads and path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.root, ignore_errors=True)
