"""The model of a run: the frozen base with a plain PEFT LoRA adapter on its LLM and trainable projectors beside it."""

import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

import imod_core.avt  # noqa: F401  (registers AVT with the Auto classes)
from imod_core.avt import AvtConfig, AvtProcessor
from imod_core.errors import InputError, MissingFileError
from imod_train.recipe import LoraSettings, Recipe

PROJECTORS = ("vision_projector", "audio_projector")
ATTENTION_ON_CPU = "eager"
"""On CPUs plain matrix products beat the fused kernel at short lengths in bfloat16 (about twice as fast)."""


def load_base(recipe: Recipe) -> tuple[PreTrainedModel, AvtProcessor]:
    """The base in the recipe's precision, and its processor.

    Raises:
        MissingFileError: the base is no model folder.
        InputError: its architecture cannot be trained here.
    """
    folder = Path(recipe.base)
    if not (folder / "config.json").is_file():
        raise MissingFileError(
            f"The base '{folder}' is no model folder (no config.json): build one with imod base build."
        )
    attention = "sdpa" if torch.cuda.is_available() else ATTENTION_ON_CPU
    try:
        config = AutoConfig.from_pretrained(folder)
        if not isinstance(config, AvtConfig):
            raise InputError(f"The base '{folder}' is a {config.model_type} model; imod train takes AVT bases.")
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, recipe.precision), attn_implementation=attention
        )
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The base '{folder}' cannot be loaded: {str(error).splitlines()[0]}") from None
    model.config.text_config.use_cache = False
    return model, processor


def add_adapter(model: PreTrainedModel, lora: LoraSettings, seed: int) -> PeftModel:
    """LoRA on the LLM's linears and copies of the projectors as PEFT's saved modules, all float32."""
    names = "|".join(re.escape(name) for name in lora.targets)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=rf".*\.language_model\..*\.(?:{names})",
        modules_to_save=list(PROJECTORS),
        task_type="CAUSAL_LM",
    )
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"lora.targets {list(lora.targets)} cannot be adapted: {error}") from None
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return peft_model


def set_trainable(model: PeftModel, train: tuple[str, ...]) -> None:
    """Let the adapter, the projectors or both learn; an adapter that does not is skipped in the forward pass too."""
    adapter = "adapter" in train
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.enable_adapters(adapter)
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            parameter.requires_grad_("projectors" in train)


def parameter_groups(model: PeftModel, learning_rate: float, projector_learning_rate: float) -> list[dict]:
    """Optimizer groups without weight decay, on A least of all: it would shrink the blocks that IMoD shapes."""
    adapter: list[torch.nn.Parameter] = []
    projectors: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (projectors if ".modules_to_save." in name else adapter).append(parameter)
    groups = [(adapter, learning_rate), (projectors, projector_learning_rate)]
    return [{"params": params, "lr": lr, "weight_decay": 0.0} for params, lr in groups if params]
