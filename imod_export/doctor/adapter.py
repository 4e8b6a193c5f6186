"""An adapter folder: can it be read, is its base there, and does every tensor of it find one of the base?"""

from collections.abc import Iterator
from pathlib import Path

from imod_core.artifacts import read_json
from imod_core.errors import ImodError
from imod_export.adapter import CONFIG, WEIGHTS, read_adapter
from imod_export.doctor.finding import Finding
from imod_export.doctor.weights import adapter_weights
from imod_export.plan import make_plan
from imod_export.tensors import read_checkpoint

CHECK = "adapter"


def check(folder: Path, base: Path | None) -> Iterator[Finding]:
    """What `imod export --merge` would refuse, before it is called."""
    try:
        adapter = read_adapter(folder)
    except (ImodError, OSError) as error:
        yield Finding(CHECK, str(error).rstrip("."), "it cannot be merged", "imod train RECIPE --out RUN")
        yield from adapter_weights(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else ()
        return
    named = base or read_json(folder / CONFIG).get("base_model_name_or_path")
    if not named or not Path(named).is_dir():
        what = f"its base {named or '(none named)'} is no folder here, so that names and shapes were not compared"
        command = f"imod doctor {folder} --base DIR"
        yield Finding(CHECK, what, "a foreign adapter would change nothing or the wrong weights", command, "note")
        return
    try:
        make_plan(read_checkpoint(Path(named)), adapter)
    except (ImodError, OSError) as error:
        command = f"imod export --merge {folder} --base OTHER --out DIR"
        yield Finding(CHECK, str(error).rstrip("."), "the merge would stop, or change the wrong weights", command)
