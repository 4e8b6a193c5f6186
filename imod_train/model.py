"""The model of a run: the frozen base with a plain PEFT LoRA adapter on its LLM and, of AVT, trainable projectors."""

import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from imod_core.errors import InputError
from imod_train.base import decoder_name, is_avt
from imod_train.recipe import LoraSettings

PROJECTORS = ("vision_projector", "audio_projector")


def add_adapter(model: PreTrainedModel, lora: LoraSettings, seed: int) -> PeftModel:
    """LoRA on the LLM's linears and, of AVT, copies of the projectors as PEFT's saved modules, all float32.

    Raises:
        InputError: a target names no linear layer of the LLM.
    """
    decoder = decoder_name(model)
    _check_targets(model.get_submodule(decoder), lora.targets)
    names = "|".join(re.escape(name) for name in lora.targets)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=rf"{re.escape(decoder)}\..*\.(?:{names})",
        # PEFT reduces the pattern to its last names where transformers has fused experts, and would then find towers.
        exclude_modules=None if is_avt(model) else rf"(?!{re.escape(decoder)}\.).*",
        modules_to_save=list(PROJECTORS) if is_avt(model) else None,
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, config)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return peft_model


def _check_targets(decoder: torch.nn.Module, targets: tuple[str, ...]) -> None:
    """Every target must be there: one that is not, as in a mixture whose experts are one tensor, would go unnoticed."""
    linears = {
        name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)
    }
    if missing := [name for name in targets if name not in linears]:
        found = ", ".join(sorted(linears)) or "none"
        raise InputError(
            f"lora.targets {list(targets)} cannot be adapted: the language model has no linear layer "
            f"{', '.join(missing)}; it has {found}."
        )


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
