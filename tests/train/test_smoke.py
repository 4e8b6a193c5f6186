"""Every recipe reads; the roads of some are walked whole on shrunken models, as `imod train --smoke` does it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import call, read_json
from PIL import Image

from imod_core.families import FAMILIES
from imod_core.samples import read_samples
from imod_serve.client import Client
from imod_serve.launcher import Server
from imod_serve.local import LocalModel
from imod_train.recipe import read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_reads_and_names_its_family_and_sources(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.family in FAMILIES
    text = path.read_text()
    assert "# Sources:" in text
    assert f"imod train recipes/{path.name} --plan" in text
    native = not recipe.family.startswith("avt-")
    assert all((stage.train == ("adapter",)) for stage in recipe.stages) == native


def test_every_family_has_a_recipe() -> None:
    assert {read_recipe(path).family for path in RECIPES} == set(FAMILIES)


def walk(name: str, out: Path, serving: str) -> None:
    done = call(
        "train", Path(__file__).parents[2] / f"recipes/{name}.yaml", "--smoke", "--out", out, "--serving", serving
    )
    assert done == (0, "")


@pytest.mark.parametrize("name", ["qwen2.5-vl-qlora"])
def test_the_road_of_a_recipe_is_whole(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    walk(name, tmp_path / "out", "none")
    told = capsys.readouterr().out
    assert "export and parity: merged equals attached: True" in told
    assert "The recipe's road is whole" in told
    again = call("train", RECIPES[0], "--smoke", "--out", tmp_path / "out")
    assert again.code == 2
    assert "give another --out" in again.message


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a recipe's road, walked once with a server at its end, left its folders."""
    done: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name) / "out"
            walk(name, done[name], "http")
        return done[name]

    return of


@pytest.mark.server
@pytest.mark.parametrize("name", ["avt-smollm2", "qwen2.5-omni", "qwen3-vl"])
def test_the_road_over_http(name: str, walked: Callable[[str], Path]) -> None:
    report = read_json(walked(name) / "parity-server/parity.json")
    assert report["passed"]


@pytest.mark.server
def test_the_adapter_beside_its_base_reads_media_as_the_merged_model(
    walked: Callable[[str], Path], scenes: Path
) -> None:
    """A native adapter over HTTP: under vLLM's names for its layers, and with the recipe's limits on pixels."""
    out = walked("qwen2.5-omni")
    local, untold = LocalModel(out / "merged"), LocalModel(out / "base")
    sample = next(s for s in read_samples(scenes / "test.jsonl") if s.videos)
    questions: list[dict[str, Any]] = [{}, {"images": [out / "large.png"]}, {"videos": sample.videos}]
    Image.effect_noise((640, 480), 90).convert("RGB").save(out / "large.png")
    with Server(None, adapter=out / "run", log=out / "lora.log", extra=["--max-num-seqs", "2"]) as server:
        adapter, base = Client(server.url, server.name), Client(server.url, f"{server.name}-base")
        for media in questions:
            asked = {**media, "max_tokens": 1}
            served, merged = adapter.ask("Which one?", **asked, logprobs=True), local.ask("Which one?", **asked)
            assert served.prompt_tokens == merged.prompt_tokens
            assert (merged.prompt_tokens < untold.ask("Which one?", **asked).prompt_tokens) == bool(media)
            assert served.text == merged.text
            unadapted = base.ask("Which one?", **asked, logprobs=True)
            assert served.logprobs[0][1] != pytest.approx(unadapted.logprobs[0][1], abs=1e-3)


def test_a_recipe_without_a_family_is_refused(recipe: Path, tmp_path: Path) -> None:
    done = call("train", recipe, "--smoke", "--out", tmp_path / "out")
    assert done.code == 2
    assert "'family' is None" in done.message
    assert not (tmp_path / "out").exists()
