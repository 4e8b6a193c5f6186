"""A training recipe: one YAML file that names base, method, data and the stages, and the run folder's copy
of it.

    base: quickstart/base
    method: imod                   # or lora
    lora: {rank: 4, alpha: 16}
    imod: {lambda1: 0.01}
    stages:
      - {name: align, train: [projectors], data: [scenes/captions.jsonl], steps: 100, learning_rate: 1.0e-3}
      - {name: tune, train: [projectors, adapter], data: [scenes/train.jsonl], epochs: 1, learning_rate: 1.0e-3}

Every key is a field below, unknown keys are refused. Paths are relative to the folder the command runs in.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from imod_core.errors import InputError, MissingFileError
from imod_train.config import ImodConfig

METHODS = ("lora", "imod")
PRECISIONS = ("float32", "bfloat16")
TRAINABLE = ("projectors", "adapter")
OBJECTIVES = ("answers", "words")
QUANTIZATIONS = ("nf4",)
SCHEDULES = ("constant_with_warmup", "cosine", "linear")
MOST = 1_000_000
"""Of what is counted here: beyond it something else was meant."""
WORKERS = 1024
LLM_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraSettings:
    """The LoRA adapter. Defaults: the recipe that the paper follows (rank 4, alpha 16, all linears of the LLM)."""

    rank: int = 4
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = LLM_LINEARS
    """Names of the LLM's linear layers to adapt."""

    def __post_init__(self) -> None:
        _require(1 <= self.rank <= MOST, "lora.rank", self.rank, f"a whole number from 1 to {MOST}")
        _require(0 < self.alpha < math.inf, "lora.alpha", self.alpha, "a finite number above 0")
        _require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "a number from 0 up to, not including, 1")
        _require(len(self.targets) > 0, "lora.targets", list(self.targets), "at least one layer name")


@dataclass(frozen=True)
class MediaSettings:
    """How much of a medium a native model reads. Refused for AVT bases: theirs is part of the base.

    The run's manifest keeps it, and `imod export` writes the limits into the merged folder's processor.
    """

    video_frames: int | None = None
    """Frames of a video, placed by the model's own rule; as many as its processor takes if not given."""
    image_pixels: int | None = None
    """Most pixels of a picture, beyond which it is scaled down; the processor's own limit if not given."""
    video_pixels: int | None = None
    """Most pixels of a video frame."""
    weave_sound: bool = False
    """Put a video's own sound between its frames (`use_audio_in_video` of Qwen's omni models) in place of after them,
    where `imod ask`, the demo and the ONNX graphs put it. A server then has to be asked with the same option."""

    def __post_init__(self) -> None:
        for name, least in (("video_frames", 2), ("image_pixels", 1), ("video_pixels", 1)):
            value = getattr(self, name)
            _require(value is None or value >= least, f"media.{name}", value, f"a whole number of at least {least}")


@dataclass(frozen=True)
class Stage:
    """One pass of training with its own data and learning rates."""

    name: str
    data: tuple[str, ...]
    """Sample files."""
    train: tuple[str, ...] = TRAINABLE
    """What learns: `projectors`, `adapter` or both; an adapter that does not learn yet is switched off."""
    objective: str = "answers"
    """`answers`: the LLM's next-token loss on the answers. `words`: projectors alone learn to point at the words of
    the answers in the LLM's embedding table, without running it: a first lesson that costs seconds."""
    steps: int | None = None
    """Optimizer steps; in place of epochs."""
    epochs: float | None = None
    batch_size: int = 16
    """Samples a step on one device, over all accumulated micro-batches."""
    micro_batch_size: int | None = None
    """Samples a forward pass; the batch size if not given."""
    questions_per_row: int = 1
    """Up to so many samples about the same media share one reading of them, and count as one sample of a batch."""
    learning_rate: float = 1e-4
    """Of the adapter, or of the projectors where they learn alone. 1e-4: the paper's baseline."""
    projector_learning_rate: float | None = None
    """Of the projectors beside an adapter; the learning rate if not given."""
    warmup_ratio: float = 0.03
    schedule: str = "cosine"
    max_grad_norm: float = 1.0
    adam_beta2: float = 0.98
    state_noise: float = 0.0
    """Gaussian noise on the tower states, in units of each channel's standard deviation: keeps projectors from
    learning single pictures by heart where there are few."""
    save_steps: int = 50
    log_steps: int = 10

    def __post_init__(self) -> None:
        where = f"stages.{self.name}"
        named = re.fullmatch(r"[A-Za-z0-9_-]+", self.name) is not None
        _require(named, "stages.name", self.name, "made of letters, digits, - and _: a folder is named after it")
        _require(self.schedule in SCHEDULES, f"{where}.schedule", self.schedule, ", ".join(SCHEDULES))
        _require(self.objective in OBJECTIVES, f"{where}.objective", self.objective, " or ".join(OBJECTIVES))
        fits = self.objective != "words" or self.train == ("projectors",)
        _require(fits, f"{where}.train", list(self.train), "[projectors] where the objective is words")
        one = (self.steps is None) != (self.epochs is None)
        _require(one, f"{where}.steps", self.steps, "given, or epochs, not both")
        _require(len(self.data) > 0, f"{where}.data", list(self.data), "at least one sample file")
        known = len(self.train) > 0 and set(self.train) <= set(TRAINABLE)
        _require(known, f"{where}.train", list(self.train), f"some of {', '.join(TRAINABLE)}")
        for name in ("batch_size", "questions_per_row", "save_steps", "log_steps"):
            value = getattr(self, name)
            _require(1 <= value <= MOST, f"{where}.{name}", value, f"a whole number from 1 to {MOST}")
        _require(self.steps is None or self.steps >= 1, f"{where}.steps", self.steps, "a whole number of at least 1")
        finite = self.epochs is None or 0 < self.epochs < math.inf
        _require(finite, f"{where}.epochs", self.epochs, "a finite number above 0")
        for name in ("learning_rate", "projector_learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            _require(value is None or 0 < value < math.inf, f"{where}.{name}", value, "a finite number above 0")
        _require(0 < self.adam_beta2 < 1, f"{where}.adam_beta2", self.adam_beta2, "a number between 0 and 1")
        _require(0 <= self.warmup_ratio < 1, f"{where}.warmup_ratio", self.warmup_ratio, "a number from 0 to below 1")
        quiet = 0 <= self.state_noise < math.inf
        _require(quiet, f"{where}.state_noise", self.state_noise, "a finite number of at least 0")
        micro = self.micro_batch_size
        divides = micro is None or (micro >= 1 and self.batch_size % micro == 0)
        _require(divides, f"{where}.micro_batch_size", micro, "a divisor of batch_size")


@dataclass(frozen=True)
class Recipe:
    """A whole training run."""

    base: str
    """Folder of the base model, or its name on the hub."""
    stages: tuple[Stage, ...]
    family: str | None = None
    """The model family, whose shrunken model `imod train --smoke` takes in place of the base."""
    method: str = "imod"
    """`imod`, or `lora` for the plain baseline: same data order, same initial weights."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    imod: ImodConfig = field(default_factory=ImodConfig)
    """IMoD's settings; not read by `lora`."""
    media: MediaSettings = field(default_factory=MediaSettings)
    precision: str = "bfloat16"
    """Of the frozen LLM and of the products; adapters, projectors and their gradients are float32."""
    base_quantization: str | None = None
    """`nf4`: the LLM's linear layers in 4 bits (QLoRA), by bitsandbytes. The adapter is merged into the base as it
    lies on disk."""
    gradient_checkpointing: bool = False
    """Compute activations again in backward in place of keeping them: less memory, a third more time."""
    workers: int = 0
    """Processes that decode and encode samples ahead of the training step; 0: none beside it."""
    seed: int = 42
    """Of adapter initialisation, data order, dropout and noise. 42: the paper's baseline."""
    state_cache: str | None = None
    """Folder of cached tower states; beside the run if not given."""

    def __post_init__(self) -> None:
        _require(self.method in METHODS, "method", self.method, " or ".join(METHODS))
        _require(self.precision in PRECISIONS, "precision", self.precision, " or ".join(PRECISIONS))
        known = self.base_quantization in (None, *QUANTIZATIONS)
        _require(known, "base_quantization", self.base_quantization, f"{' or '.join(QUANTIZATIONS)}, or left out")
        _require(0 <= self.workers <= WORKERS, "workers", self.workers, f"a whole number from 0 to {WORKERS}")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "a whole number from 0 to 4294967295")
        _require(len(self.stages) > 0, "stages", list(self.stages), "at least one stage")
        names = [stage.name for stage in self.stages]
        _require(len(set(names)) == len(names), "stages", names, "stages of different names")

    def to_yaml(self) -> str:
        """The recipe with every default written out."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)


def read_recipe(path: Path, changes: tuple[str, ...] = ()) -> Recipe:
    """The recipe in a YAML file after `changes` of the form `lora.rank=8` or `stages.tune.steps=20`.

    Raises:
        MissingFileError: no such file.
        InputError: not YAML, an unknown key, a value of the wrong type or out of range.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"{path} does not exist: expected a recipe in YAML.")
    values = _load(Path(path).read_bytes(), str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, expected keys and values of a recipe.")
    for change in changes:
        _change(values, change)
    return parse_recipe(values)


def parse_recipe(values: dict[str, Any]) -> Recipe:
    """A recipe from plain values; see `read_recipe` for errors."""
    return _build(Recipe, values, "")


def _load(text: str | bytes, where: str) -> Any:
    """YAML as plain values."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}.") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _change(values: dict[str, Any], change: str) -> None:
    """Apply one `a.b=c`; a list of stages is entered by the stage's name."""
    key, equals, text = change.partition("=")
    if not equals:
        raise InputError(f"--set {change} has no '=': write it as key=value, for example lora.rank=8.")
    *parents, last = key.split(".")
    place: Any = values
    for name in parents:
        if isinstance(place, list):
            place = next((item for item in place if isinstance(item, dict) and item.get("name") == name), None)
        elif isinstance(place, dict):
            place = place.setdefault(name, {})
        if not isinstance(place, (dict, list)):
            raise InputError(f"--set {change}: the recipe has no {name!r} to change.")
    if isinstance(place, list):
        raise InputError(f"--set {change}: name the stage, for example stages.tune.{last}.")
    place[last] = _load(text, f"--set {change}")


def _build(kind: Any, values: Any, where: str) -> Any:
    """A dataclass from a mapping, its fields checked against their annotations."""
    if not isinstance(values, dict):
        raise InputError(f"The recipe's {where or 'top level'} is {values!r}, expected keys and values.")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise InputError(f"The recipe has an unknown key '{_join(where, key)}'{_nearest(str(key), fields)}.")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise InputError(f"The recipe has no '{_join(where, name)}', which is required.")
    return kind(**{key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as its annotation wants it, or an InputError that names both."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise InputError(f"The recipe's '{where}' is {value!r}, expected a list.")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    return _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) is hint:
        return value
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    raise InputError(f"The recipe's '{where}' is {value!r}, expected {names.get(hint, hint.__name__)}.")


def _nearest(key: str, known: dict) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _require(holds: bool, name: str, found: Any, allowed: str) -> None:
    if not holds:
        raise InputError(f"The recipe's '{name}' is {found!r}; it must be {allowed}.")


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
