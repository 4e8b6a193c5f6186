"""Shrunken models of the families, each built once by the command."""

import pytest

pytest.importorskip("transformers")

from imod_core.families import FAMILIES
from tests.helpers import call

NATIVE = [name for name, family in FAMILIES.items() if family.blueprint]


@pytest.fixture(scope="session")
def shrunken(tmp_path_factory):
    """From a family's name to its folder."""
    root, made = tmp_path_factory.mktemp("shrunken"), {}

    def build(name):
        if name not in made:
            made[name] = root / name
            assert call("base", "build", "--shrunken", name, "--out", made[name]).code == 0
        return made[name]

    return build
