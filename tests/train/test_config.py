"""Settings: presets, and a sentence for each value that cannot be."""

import math
import subprocess
import sys

import pytest

from imod_core.errors import InputError
from imod_train import ImodConfig


def test_the_default_is_the_token_mean_and_the_paper_is_one_call_away():
    assert ImodConfig() == ImodConfig.mean()
    assert (ImodConfig().lambda1, ImodConfig().lambda2, ImodConfig().reduction) == (0.01, 1e-4, "mean")
    paper = ImodConfig.paper(seed=3)
    assert (paper.lambda1, paper.lambda2, paper.reduction, paper.seed) == (1.0, 1e-4, "paper", 3)
    assert paper.alpha == 0.4


def test_a_constraint_that_is_off_weighs_nothing():
    assert ImodConfig(msdc=False).weights == (0.0, 1e-4)
    assert ImodConfig(maac=False).weights == (0.01, 0.0)
    assert not ImodConfig(lambda1=0, lambda2=0).active
    assert not ImodConfig(msdc=False, maac=False).active


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lambda1", -1),
        ("lambda1", math.nan),
        ("lambda1", "1"),
        ("lambda2", math.inf),
        ("alpha", -0.1),
        ("shared_ratio", 1.1),
        ("text_ratio", 0),
        ("text_ratio", True),
        ("reduction", "sum"),
        ("msdc", 1),
        ("seed", 0.5),
        ("warmup_steps", -1),
        ("warmup_steps", True),
        ("media_token_ids", 3),
        ("ignored_token_ids", ["<pad>"]),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(field, value):
    with pytest.raises(InputError, match=rf"'{field}' is .*; it must be "):
        ImodConfig(**{field: value})


def test_token_ids_may_come_as_a_list():
    assert ImodConfig(media_token_ids=[5, 6]).media_token_ids == (5, 6)


def test_importing_the_package_imports_no_torch():
    code = "import sys, imod_train; imod_train.ImodConfig(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
