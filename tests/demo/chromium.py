"""A headless Chromium without root and without a browser's download site: from npm, pinned, with its libraries.

$IMOD_CHROMIUM names another one.
"""

import io
import os
import shutil
import tarfile
from pathlib import Path

import brotli

from imod_core.errors import InputError, MissingFileError
from imod_core.parts import Part, cache_folder, fetch, read

CHROMIUM = Part(
    "@sparticuz/chromium", "153.0.0", "npm",
    "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0",
    "MIT", "headless Chromium with the libraries it needs",
)  # fmt: skip
AXE = Part(
    "axe-core", "4.14.1", "npm",
    "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745",
    "MPL-2.0", "accessibility checks by Deque",
)  # fmt: skip
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
"""A camera and a microphone that play a test picture and beeps, and no question whether a page may use them."""


def launch_options() -> dict:
    """Arguments of Playwright's `launch`."""
    chosen = os.environ.get("IMOD_CHROMIUM")
    if chosen:
        if not Path(chosen).is_file():
            raise MissingFileError(f"IMOD_CHROMIUM is {chosen}, which does not exist: name a Chromium, or unset it.")
        return {"executable_path": chosen, "args": FLAGS}
    folder = _unpacked()
    libraries = os.pathsep.join(filter(None, [str(folder / "lib"), os.environ.get("LD_LIBRARY_PATH")]))
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    return {"executable_path": str(folder / "chromium"), "env": environment, "args": FLAGS}


def axe_script() -> str:
    """axe-core's script."""
    return read(AXE, "package/axe.min.js").decode()


def _unpacked() -> Path:
    target = cache_folder() / f"chromium-{CHROMIUM.sha256[:16]}"
    if target.is_dir():
        return target
    try:
        archive = fetch(CHROMIUM)
    except InputError as error:
        raise InputError(f"The tests of the page need a Chromium: {error} Or set IMOD_CHROMIUM.") from None
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    with tarfile.open(archive) as package:
        program = partial / "chromium"
        program.write_bytes(_unbrotlied(package, "chromium.br"))
        program.chmod(0o755)
        with tarfile.open(fileobj=io.BytesIO(_unbrotlied(package, "al2023.tar.br"))) as libraries:
            libraries.extractall(partial, filter="data")
    try:
        partial.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(partial)
    return target


def _unbrotlied(package: tarfile.TarFile, name: str) -> bytes:
    packed = package.extractfile(f"package/bin/{name}")
    assert packed is not None
    return brotli.decompress(packed.read())
