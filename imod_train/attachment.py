"""Switch IMoD on for a PEFT model that has an ordinary LoRA adapter, and off again.

    model = get_peft_model(base, LoraConfig(...))
    handle = attach(model, ImodConfig())      # train as ever; the saved adapter is a plain LoRA adapter
    handle.detach()

Call it after `get_peft_model` and before the model is wrapped for sharding.
"""

import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from imod_core.errors import InputError
from imod_core.modality import boundary_token_ids, media_token_ids
from imod_train.config import ImodConfig
from imod_train.fused import FusedLoraLinear
from imod_train.masks import layer_index, make_partition, partitions_hash, shared_share
from imod_train.projection import ImodLinear
from imod_train.signals import summarise
from imod_train.tokens import TokenHolder

_MEDIA_PART = re.compile(
    r"(?:^|\.)(visual|(?:vision|image|audio|speech)_(?:tower|model|encoder|embedder|projector)|talker|token2wav"
    r"|code2wav|multi_modal_projector|mm_projector|embed_(?:vision|audio))(?:\.|$)"
)
_NARROW = "narrow target_modules to the linear layers of the language model"


def attach(
    peft_model: PeftModel, config: ImodConfig, adapter_name: str = "default", fused: bool = True
) -> "ImodHandle":
    """Make the LoRA A matrices of an adapter carry IMoD's constraints in training; returns the handle that
    undoes it.

    The parameters, their names and what the forward pass computes stay LoRA's. `fused` lets plain LoRA layers compute
    base output, A and B in one piece, which is faster than PEFT and equal to it up to rounding; layers that cannot
    (quantised bases, several active adapters, hooks inside) go PEFT's own way, bit for bit, as all do without `fused`.
    Raises InputError, before anything is changed, for a model without such an adapter, for LoRA variants (DoRA and
    others), embeddings, convolutions, layers outside the language model, half-precision or frozen A matrices, and
    configurations without placeholder ids.
    """
    if not isinstance(peft_model, PeftModel):
        raise InputError(
            f"IMoD attaches to a PEFT model, found {type(peft_model).__name__}; call peft.get_peft_model first."
        )
    check_adapter(peft_model, adapter_name)
    base = peft_model.get_base_model()
    layers = find_lora_layers(base, adapter_name)
    media, ignored = _token_ids(base.config, config)
    partitions = make_partitions(layers, base.config, config)
    holder = TokenHolder(media, ignored)
    modules = {
        name: ImodLinear.adopt(linear, name, partitions[name], config, holder) for name, linear in layers.items()
    }
    branches = [FusedLoraLinear.adopt(base.get_submodule(name), adapter_name) for name in layers if fused]
    fused_layers = [branch for branch in branches if branch is not None]
    return ImodHandle(base, modules, fused_layers, config, adapter_name, holder, partitions_hash(partitions))


class ImodHandle:
    """An adapter with IMoD switched on: its modules, its signals and the way back."""

    def __init__(
        self,
        base: nn.Module,
        modules: dict[str, ImodLinear],
        fused: list[FusedLoraLinear],
        config: ImodConfig,
        adapter_name: str,
        holder: TokenHolder,
        masks_sha256: str,
    ):
        self.modules = modules
        """The adapted A matrices by the name of the layer they sit on, as the base model names it."""
        self.fused = fused
        """The LoRA layers that take the short way where they can."""
        self.config = config
        self.adapter_name = adapter_name
        self._base = base
        self._holder = holder
        self._holder.strength = None if config.warmup_steps else 1.0
        self._masks_sha256 = masks_sha256
        self._warned = False
        self._signature = inspect.signature(base.forward)
        self._hooks = [
            base.register_forward_pre_hook(self._before, with_kwargs=True),
            base.register_forward_hook(self._after),
        ]

    def detach(self) -> None:
        """Make every layer PEFT's own again and take the hooks off. A second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        for layer in self.fused:
            layer.release()
        for module in self.modules.values():
            module.release()
        self._hooks, self.modules, self.fused = [], {}, []

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Announce a loss of your own, 0-dim, and get it back. Needed only when it is not the model's
        `.loss`.

        Call it on the loss before it is divided or scaled for accumulation or mixed precision: whatever
        gradient then arrives at it is the factor on the constraints of all forward passes since the last backward.

        Raises:
            InputError: several of them under gradient checkpointing, which would recompute one with another's tokens.
        """
        batches = [batch for batch in self._holder.pending if batch.scale is None]
        if len(batches) > 1 and getattr(self._base, "is_gradient_checkpointing", False):
            raise InputError(
                f"One loss over {len(batches)} forward passes cannot be trained with gradient checkpointing and IMoD: "
                "call backward after each, or switch checkpointing off."
            )
        if batches:
            self._holder.follow(loss, batches)
        return loss

    def assume_scale(self, scale: float) -> None:
        """Take `scale` for the factor on losses that are neither the model's `.loss` nor announced by `scale`."""
        self._holder.assumed = scale

    def state(self) -> dict[str, Any]:
        """What a manifest keeps so that the run can be repeated: settings (seed included) and the hash of the masks."""
        return {
            "method": "imod",
            "adapter_name": self.adapter_name,
            "config": asdict(self.config),
            "modules": len(self.modules),
            "masks_sha256": self._masks_sha256,
        }

    def warm_up(self, step: int) -> None:
        """Set λ1 and λ2 for optimizer step `step`, counted from 0; needed where the settings have `warmup_steps`."""
        if self.config.warmup_steps:
            self._holder.strength = min(1.0, step / self.config.warmup_steps)

    def sample_next(self) -> None:
        """Measure the signals in the backward of the next training forward."""
        self._holder.sample_next = True

    def signals(self) -> dict[str, float]:
        """The latest measured signals by name; see `imod_train.signals.summarise`. Waits for the device; empty before
        the first measured backward. Warns, once, where no batch so far held a medium."""
        if not self._warned and self._holder.saw_media is not None and not bool(self._holder.saw_media):
            self._warned = True
            warnings.warn(
                "IMoD has seen no token of a picture, sound or video since it was attached (placeholder ids "
                f"{', '.join(map(str, self._holder.media_ids))}), so there is nothing to balance text against: "
                "check that media reach the batches, or name the ids by ImodConfig(media_token_ids=…).",
                stacklevel=2,
            )
        meters = {name: module.meter for name, module in self.modules.items()}
        return summarise(meters, {name: module.weight.numel() for name, module in self.modules.items()})

    @torch.compiler.disable
    def _before(self, base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._counts(base):
            if getattr(base, "_is_replica", False):
                raise InputError(
                    "IMoD cannot train under torch.nn.DataParallel, whose threads share one note of the batch: start "
                    "a process for each GPU (torchrun), or show one alone (CUDA_VISIBLE_DEVICES=0)."
                )
            if self._holder.strength is None:
                raise InputError(
                    f"The IMoD setting 'warmup_steps' is {self.config.warmup_steps}, but nobody counts the steps: "
                    "use ImodCallback, or call handle.warm_up(step) before each."
                )
            self._holder.fill({**self._signature.bind_partial(*args).arguments, **kwargs})

    @torch.compiler.disable
    def _after(self, base: nn.Module, args: tuple, output: Any) -> None:
        loss = _loss_of(output) if self._counts(base) else None
        if loss is not None and self._holder.current is not None:
            self._holder.follow(loss, [self._holder.current])

    def _counts(self, base: nn.Module) -> bool:
        """Whether this forward pass will be trained on: evaluation and generation leave the batch in flight alone."""
        return base.training and torch.is_grad_enabled() and self.config.active


def check_adapter(peft_model: PeftModel, adapter_name: str) -> None:
    """Refuse an adapter that does not exist, is not LoRA or is not switched on."""
    if adapter_name not in peft_model.peft_config:
        raise InputError(
            f"The model has no adapter '{adapter_name}', only {', '.join(peft_model.peft_config)}; name one of these."
        )
    kind = str(getattr(peft_model.peft_config[adapter_name].peft_type, "value", "none"))
    if kind != "LORA":
        raise InputError(f"Adapter '{adapter_name}' is of type {kind}; IMoD needs a plain LoraConfig (LORA).")
    if adapter_name not in peft_model.active_adapters:
        raise InputError(f"Adapter '{adapter_name}' is not active; call model.set_adapter('{adapter_name}').")


def find_lora_layers(base: nn.Module, adapter_name: str) -> dict[str, nn.Linear]:
    """The `lora_A` layers of an adapter by the name of the layer they adapt, each one checked to be plain LoRA."""
    found = {}
    for name, layer in base.named_modules():
        if isinstance(layer, LoraLayer):
            if adapter_name in layer.lora_embedding_A:
                raise InputError(f"LoRA is on the embedding '{name}', which IMoD cannot partition: {_NARROW}.")
            if adapter_name in layer.lora_A:
                found[name] = _checked(name, layer, adapter_name)
    if not found:
        raise InputError(f"Adapter '{adapter_name}' adapts no layer of this model; check its target_modules.")
    return found


def _checked(name: str, layer: LoraLayer, adapter_name: str) -> nn.Linear:
    """The A matrix of one LoRA layer, or an InputError that says why IMoD cannot have it."""
    linear = layer.lora_A[adapter_name]
    if isinstance(linear, ImodLinear):
        raise InputError(f"IMoD is attached to '{name}' already; call detach() on the first handle.")
    if adapter_name in layer.lora_variant:
        variant = type(layer.lora_variant[adapter_name]).__name__.removesuffix("LinearVariant")
        raise InputError(f"'{name}' uses the LoRA variant {variant}; IMoD needs plain LoRA, so switch it off.")
    if type(layer).__name__ == "ParamWrapper":
        raise InputError(f"LoRA on '{name}' adapts a bare parameter; IMoD needs linear layers: drop target_parameters.")
    if type(linear) is not nn.Linear:
        raise InputError(
            f"LoRA on '{name}' is a {type(linear).__name__} on a {type(layer.get_base_layer()).__name__}; "
            f"IMoD needs linear layers: {_NARROW}."
        )
    if _MEDIA_PART.search(name):
        raise InputError(
            f"LoRA is on '{name}', whose tokens are not those of input_ids: {_NARROW} (exclude_modules helps)."
        )
    if not linear.weight.requires_grad:
        raise InputError(f"LoRA A of '{name}' is frozen; load the adapter with is_trainable=True.")
    if linear.weight.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"LoRA A of '{name}' is {linear.weight.dtype}, in which the alignment constraint is lost to rounding; "
            "keep autocast_adapter_dtype=True, so that adapters are float32."
        )
    return linear


def make_partitions(layers: Mapping[str, nn.Linear], model_config: Any, config: ImodConfig) -> dict[str, torch.Tensor]:
    """The partition of every layer, on the CPU. L is the language model's depth, or what the names show if more."""
    text_config = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    indices = {name: layer_index(name) for name in layers}
    deepest = max((index + 1 for index in indices.values() if index is not None), default=1)
    depth = max(deepest, getattr(text_config, "num_hidden_layers", None) or 0)
    return {
        name: make_partition(
            (linear.out_features, linear.in_features),
            name,
            config.seed,
            shared_share(config, indices[name], depth),
            config.text_ratio,
        )
        for name, linear in layers.items()
    }


def _token_ids(model_config: Any, config: ImodConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Placeholder ids and ignored ids: the settings' own, else the model configuration's."""
    media, ignored = config.media_token_ids, config.ignored_token_ids
    if media is None:
        media = tuple(token for ids in media_token_ids(model_config).values() for token in ids)
    return media, boundary_token_ids(model_config) if ignored is None else ignored


def _loss_of(output: Any) -> torch.Tensor | None:
    """The loss in a model's output: its `loss`, or the first element of a tuple when that is a single number."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None and isinstance(output, tuple) and output:
        loss = output[0]
    return loss if isinstance(loss, torch.Tensor) and loss.dim() == 0 else None
