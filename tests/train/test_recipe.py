"""Recipes: what they mean, what they refuse, in one sentence that names the key."""

from pathlib import Path

import pytest
import yaml

from imod_core.errors import InputError, MissingFileError
from imod_core.quickstart import RECIPE
from imod_train.recipe import parse_recipe, read_recipe

STAGE = {"name": "tune", "data": ["d.jsonl"], "steps": 3}
VALID = {"base": "b", "stages": [STAGE]}


def with_stage(**changes) -> dict:
    return {**VALID, "stages": [{**STAGE, **changes}]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**VALID, "methd": "imod"}, "unknown key 'methd'; did you mean 'method'?"),
        ({**VALID, "lora": {"rnk": 4}}, "unknown key 'lora.rnk'"),
        ({**VALID, "imod": {"lambda_1": 1}}, "unknown key 'imod.lambda_1'; did you mean 'lambda1'?"),
        (with_stage(learning_rates=1), "unknown key 'stages[0].learning_rates'"),
        ({**VALID, "lora": {"rank": "444"}}, "'lora.rank' is '444', expected a whole number"),
        ({**VALID, "lora": {"rank": True}}, "'lora.rank' is True, expected a whole number"),
        ({**VALID, "lora": 4}, "lora is 4, expected keys and values"),
        ({**VALID, "seed": 1.5}, "'seed' is 1.5, expected a whole number"),
        ({**VALID, "method": "dora"}, "'method' is 'dora'; it must be lora or imod"),
        ({**VALID, "precision": "fp8"}, "'precision' is 'fp8'"),
        ({"stages": [STAGE]}, "has no 'base', which is required"),
        ({**VALID, "stages": []}, "'stages' is []; it must be at least one stage"),
        ({**VALID, "stages": [STAGE, STAGE]}, "stages of different names"),
        (with_stage(epochs=1), "given, or epochs, not both"),
        (with_stage(steps=0), "'stages.tune.steps' is 0"),
        (with_stage(train=["everything"]), "some of projectors, adapter"),
        (with_stage(micro_batch_size=5), "a divisor of batch_size"),
        (with_stage(learning_rate="fast"), "'stages[0].learning_rate' is 'fast', expected a number"),
        (with_stage(micro_batch_size=0), "a divisor of batch_size"),
        (with_stage(warmup_ratio=1.0), "a number from 0 to below 1"),
        (with_stage(adam_beta2=2.0), "a number between 0 and 1"),
        (with_stage(learning_rate=float("inf")), "a finite number above 0"),
        ({**VALID, "stages": [{"name": "tune", "data": ["d"], "epochs": float("inf")}]}, "a finite number above 0"),
        (with_stage(state_noise=float("inf")), "a finite number of at least 0"),
        (with_stage(batch_size=10**20), "'stages.tune.batch_size' is 100000000000000000000"),
        ({**VALID, "lora": {"alpha": float("inf")}}, "'lora.alpha' is inf"),
        ({**VALID, "lora": {"rank": 10**15}}, "'lora.rank' is 1000000000000000"),
        ({**VALID, "workers": 10**20}, "'workers' is 100000000000000000000"),
        ({**VALID, "seed": 2**32}, "'seed' is 4294967296"),
        ({**VALID, "imod": {"text_ratio": 1e308}}, "text_ratio"),
        ({**VALID, "imod": {"media_token_ids": []}}, "at least one token id"),
        (with_stage(projector_learning_rate=-1.0), "a finite number above 0"),
        ({**VALID, "seed": -1}, "'seed' is -1"),
        (with_stage(name="../out"), "letters, digits"),
        (with_stage(schedule="cosin"), "'stages.tune.schedule' is 'cosin'"),
        ({**VALID, "imod": {"lambda1": -1}}, "lambda1"),
    ],
)
def test_a_bad_recipe_is_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_are_written_out_and_read_back_equal(tmp_path: Path) -> None:
    recipe = parse_recipe(VALID)
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "r.yaml") == recipe
    assert yaml.safe_load(recipe.to_yaml())["lora"]["rank"] == 4


def test_numbers_in_exponent_form_are_numbers() -> None:
    assert parse_recipe(with_stage(learning_rate="1e-3")).stages[0].learning_rate == 1e-3


def test_changes_reach_nested_keys_and_named_stages(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(VALID))
    recipe = read_recipe(path, ("lora.rank=8", "stages.tune.steps=20", "method=lora", "imod.lambda1=0"))
    assert (recipe.lora.rank, recipe.stages[0].steps, recipe.method, recipe.imod.lambda1) == (8, 20, "lora", 0)


@pytest.mark.parametrize("change", ["lora.rank", "lora.rank=[1", "stages.tnue.steps=3", "stages.steps=3", "base.x=1"])
def test_a_change_that_hits_nothing_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(VALID))
    with pytest.raises(InputError, match="--set"):
        read_recipe(path, (change,))


@pytest.mark.parametrize("text", ["a: [", "- 1", "just text", "", "[" * 100_000, "base: a\nbase: b\nstages: []"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        read_recipe(path)
    with pytest.raises(MissingFileError):
        read_recipe(tmp_path / "none.yaml")


def test_the_embedded_recipe_is_valid() -> None:
    recipe = read_recipe(RECIPE)
    assert recipe.method == "imod"
    assert [stage.name for stage in recipe.stages] == ["words", "tune"]
