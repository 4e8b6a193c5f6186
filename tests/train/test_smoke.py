"""Every recipe reads; the roads of some are walked whole on shrunken models, as `imod train --smoke` does it."""

from pathlib import Path

import pytest
from helpers import call, read_json

from imod_core.families import FAMILIES
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


@pytest.mark.server
@pytest.mark.parametrize("name", ["avt-smollm2", "qwen2.5-omni"])
def test_the_road_over_http(name: str, tmp_path: Path) -> None:
    walk(name, tmp_path / "out", "http")
    report = read_json(tmp_path / "out/parity-server/parity.json")
    assert report["passed"]


def test_a_recipe_without_a_family_is_refused(recipe: Path, tmp_path: Path) -> None:
    done = call("train", recipe, "--smoke", "--out", tmp_path / "out")
    assert done.code == 2
    assert "'family' is None" in done.message
    assert not (tmp_path / "out").exists()
