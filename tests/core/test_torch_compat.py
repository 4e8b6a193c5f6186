"""Each in a process of its own: what counts is what a fresh `import torch` leaves behind."""

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


def torchvision_is_broken_by_itself() -> bool:
    return run("import torchvision", TORCH_DEVICE_BACKEND_AUTOLOAD="0").returncode != 0


def test_torch_finds_the_entry_point():
    assert "imod_core.torch_compat:autoload" in [e.value for e in entry_points(group="torch.backends")]


def test_torchvision_and_torchaudio_work_beside_this_torch():
    result = run(
        "import torch, torchvision, torchaudio\n"
        "from torchvision.transforms.v2.functional import resize\n"
        "assert resize(torch.rand(2, 3, 8, 8), [4, 4], antialias=True).shape == (2, 3, 4, 4)\n"
        "assert torchaudio.functional.resample(torch.rand(441), 44100, 16000).shape == (160,)\n"
    )
    assert result.returncode == 0, result.stderr


def test_transformers_and_peft_import_whichever_comes_first():
    result = run(
        "from transformers.utils import is_torchcodec_available, is_torchvision_available\n"
        "early = is_torchcodec_available()\n"
        "import peft, torch\n"
        "from transformers import AutoImageProcessor, AutoVideoProcessor\n"
        "import importlib.util\n"
        "assert is_torchvision_available()\n"
        "assert is_torchcodec_available() == (importlib.util.find_spec('torchcodec') is not None)\n"
    )
    assert result.returncode == 0, result.stderr


def test_the_entry_point_is_what_makes_the_difference():
    if not torchvision_is_broken_by_itself():
        pytest.skip("torchvision matches this torch: there is nothing to mend")
    assert run("import torchvision").returncode == 0


def test_nothing_is_raised_where_torch_is_broken():
    result = run(
        "import sys; sys.modules['torch'] = None\nfrom imod_core.torch_compat import autoload\nautoload(); autoload()\n"
    )
    assert result.returncode == 0, result.stderr


def test_the_module_imports_nothing_heavy():
    result = run("import imod_core.torch_compat, sys; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)")
    assert result.returncode == 0, result.stderr
