"""A merged model folder to an onnx folder, complete on its own.

ONNX/*.onnx[_data]      the graphs, in float32 and in the wanted smaller forms
ONNX/config.json …      processor, tokenizer, chat template and generation config, so that the folder can travel alone
ONNX/manifest.json      opset, versions, sizes and digests; written last
"""

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from imod_core.artifacts import read_json, write_json, write_manifest
from imod_core.console import console, track
from imod_core.errors import InputError
from imod_export.onnx.layout import FULL, SUFFIXES, file_name

PROCESSOR = "processor_config.json"
"""Which the runtime reads."""
COMPANIONS = (
    "config.json",
    "generation_config.json",
    PROCESSOR,
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""Files that the runtime, or transformers.js, reads beside the graphs; a folder has most of them."""
SOFTWARE = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


def export_onnx(model: Path, target: Path, variants: Sequence[str] = (), small: int | None = None) -> None:
    """Write the model folder `model` as ONNX into the folder `target`, which must be empty or absent.

    Args:
        variants: smaller forms beside float32, of `fp16`, `int8` and `q4`.
        small: weights of a graph beyond this many bytes go into a file of their own; None for protobuf's limit.

    Raises:
        InputError: a kind of model that cannot be exported, or an unknown variant.
    """
    check_variants(variants)
    from imod_core.families.load import load_processor
    from imod_export.onnx.components import components_of
    from imod_export.onnx.graph import OPSET, SMALL_BYTES, trace, write
    from imod_export.subject import load_model, release_memory

    limit = SMALL_BYTES if small is None else small
    target.mkdir(parents=True, exist_ok=True)
    loaded = load_model(model, "float32", "float32").cpu()
    components = components_of(loaded, load_processor(model))
    names = [component.name for component in components]
    for component in track(components, "ONNX graphs"):
        write(trace(component), target, component.name, small=limit)
    del loaded, components
    release_memory()
    if variants:
        from imod_export.onnx.variants import write_variant

        jobs = [(name, variant) for variant in variants for name in names]
        for name, variant in track(jobs, "Smaller forms of the graphs"):
            write_variant(target, name, variant, limit)
    _copy_companions(model, target)
    sizes = {v: {n: _size(target, file_name(n, v)) for n in names} for v in (FULL, *variants)}
    software = {package: version(package) for package in SOFTWARE}
    write_manifest(target, "onnx", opset=OPSET, variants=[FULL, *variants], bytes=sizes, software=software)
    total = sum(sizes[FULL].values())
    console.print(f"ONNX graphs written: {len(names)}, {total / 1e6:.0f} MB in float32, opset {OPSET}")


def check_variants(variants: Sequence[str]) -> None:
    """Refuse names of forms that there are not.

    Raises:
        InputError: naming the first one.
    """
    known = [name for name in SUFFIXES if name != FULL]
    wrong = next((name for name in variants if name not in known), None)
    if wrong is not None:
        raise InputError(f"--onnx-variants names '{wrong}': expected some of {', '.join(known)}.")


def _copy_companions(model: Path, target: Path) -> None:
    """Configuration, tokenizer, template and processor; of a folder from before transformers 5 in today's files."""
    if not (model / PROCESSOR).is_file():
        from imod_core.families.load import load_processor

        load_processor(model).save_pretrained(target)
    for name in COMPANIONS:
        if (model / name).is_file():
            shutil.copyfile(model / name, target / name)
    config = read_json(target / "config.json")
    config.pop("auto_map", None)
    halves = {"fp16": "float16"}
    write_json(target / "config.json", {**config, "transformers.js_config": {"kv_cache_dtype": halves}})


def _size(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{name}*"))
