"""What the slow tests share, each made once by the real commands: a tiny base, a few scenes, a trained run."""

import os
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # so that any test can import `helpers`

from helpers import imod

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of two test processes would wait for each other by spinning


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two processes (pytest-xdist) one takes a whole file, or all tests of a folder that ask the same servers.

    The longest file comes first, so that no process works alone at the end.
    """
    items.sort(key=lambda item: item.path.name != "test_quickstart.py")
    for item in items:
        folder = item.path.parent.name
        shared = folder == "demo" or (folder == "serve" and "server" in getattr(item, "fixturenames", ()))
        item.add_marker(pytest.mark.xdist_group(folder if shared else f"{folder}/{item.path.stem}"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AVT base of a few hundred thousand parameters."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    done = imod("base", "build", "--preset", "tiny", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of scenes from drawn parts."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    sizes = ["--clips=12", "--val-clips=2", "--test-clips=6", "--unseen-clips=4"]
    done = imod("data", "scenes", "--parts=drawn", "--out", folder, *sizes)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, scenes: Path) -> Path:
    """A recipe of both stages, a few steps each, in float32."""
    folder = tmp_path_factory.mktemp("recipe")
    stage = {"batch_size": 4, "learning_rate": 1e-2, "log_steps": 1, "save_steps": 2}
    values = {
        "base": str(tiny_base),
        "precision": "float32",
        "state_cache": str(folder / "states"),
        "lora": {"rank": 4, "dropout": 0.1},
        "stages": [
            {"name": "align", "train": ["projectors"], "data": [str(scenes / "captions.jsonl")], "steps": 2, **stage},
            {"name": "tune", "data": [str(scenes / "train.jsonl")], "steps": 6, "state_noise": 0.05, **stage},
        ],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A finished IMoD run on the tiny base."""
    run = tmp_path_factory.mktemp("run") / "imod"
    done = imod("train", recipe, "--out", run)
    assert done.returncode == 0, done.stderr
    return run
