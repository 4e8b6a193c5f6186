"""Plain `vllm serve` over HTTP by a Python in which this project is not installed: what a folder is worth by itself."""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from imod_core import torch_compat
from imod_core.families import FAMILIES
from imod_core.families.shrunken import build_shrunken
from imod_serve.address import free_port, local_url
from imod_serve.client import Client
from imod_serve.local import LocalModel

pytestmark = pytest.mark.timeout(600)
QUESTION = "Where is the louder instrument?"
FLAGS = {"avt": ["--trust-remote-code"], "qwen2.5-omni": []}
"""What a user has to add for each kind of folder."""
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs the interpreter below this environment with all that is installed here but this project.

    vLLM's CPU build goes by vLLM's own name there, for which `vllm serve` asks. What lets a CPU torch live beside
    CUDA builds of torchvision stays: without it nothing here imports vLLM at all.
    """
    packages = tmp_path_factory.mktemp("packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "imod" not in path.name and not path.name.startswith("vllm_cpu-"):
            (packages / path.name).symlink_to(path)
    describe(packages, "vllm", metadata.version("vllm-cpu").removesuffix("+cpu") + "+cpu")
    shutil.copyfile(torch_compat.__file__, packages / "beside_cuda.py")
    repair = describe(packages, "beside_cuda", "0")
    (repair / "entry_points.txt").write_text("[torch.backends]\nbeside_cuda = beside_cuda:autoload\n")
    interpreter = Path(sys.base_prefix, "bin", "python3")
    environment = {**os.environ, **CPU, "PYTHONPATH": str(packages)}

    def start(*words, **options):
        return subprocess.Popen([interpreter, *words], env=environment, cwd=packages.parent, **options)

    return start


def describe(packages: Path, name: str, version: str) -> Path:
    """The metadata of a distribution, as an installer leaves it."""
    folder = packages / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


@pytest.fixture(scope="module", params=FLAGS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind, base, tmp_path_factory) -> Path:
    if kind == "avt":
        return base
    native = tmp_path_factory.mktemp("native") / kind
    build_shrunken(FAMILIES[kind], native)
    return native


@pytest.fixture(scope="module")
def url(kind, folder, python, tmp_path_factory):
    port, log = free_port("127.0.0.1"), tmp_path_factory.mktemp("log") / "vllm.log"
    url = local_url("127.0.0.1", port)
    flags = ["--port", str(port), "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager", *FLAGS[kind]]
    with log.open("w") as output:
        server = python("-m", "vllm.entrypoints.cli.main", "serve", folder, *flags, stdout=output, stderr=output)
    try:
        until = time.monotonic() + 400
        while not answers(url):
            assert server.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("name", ["imod_core", "imod_serve"])
def test_this_project_is_not_installed_there(python, name):
    found = python("-c", f"import torch, {name}", stderr=subprocess.PIPE, text=True)
    assert f"No module named '{name}'" in found.communicate()[1]


def test_answers_equal_greedy_decoding_by_transformers(folder, url, media):
    client, local, texts = Client(url), LocalModel(folder), set()
    asked = {
        "text": {},
        "image": {"images": [media.image]},
        "audio": {"audios": [media.audio]},
        "video": {"videos": [media.silent]},
        "video with sound": {"videos": [media.video]},
        "image and audio": {"images": [media.image], "audios": [media.audio]},
    }
    for name, given in asked.items():
        served, reference = client.ask(QUESTION, **given, max_tokens=8), local.ask(QUESTION, **given, max_tokens=8)
        assert served.prompt_tokens == reference.prompt_tokens, name
        assert served.text == reference.text.rstrip("\ufffd"), name
        texts.add(served.text)
    assert len(texts) > 3, "media do not change the answers, so equality proves nothing"
