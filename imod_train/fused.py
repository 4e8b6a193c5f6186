"""The whole branch of a plain LoRA layer in one autograd Function: `y = x Wᵀ (+ b) + s (x Aᵀ) Bᵀ`.

PEFT computes base output, A, B, scaling and sum one after the other and leaves each to autograd. Here they are
five products and nothing else, the constraints are made in backward, and what is saved is what LoRA saves: x, x
Aᵀ and the weights. Equal to PEFT's own way up to rounding. Letters: `N` tokens, `d` in-features, `o`
out-features, `r` rank.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.autograd.function import once_differentiable

from imod_train.projection import ImodLinear, rebind_forward
from imod_train.tokens import TokenBatch


class FusedLoraLinear(LoraLinear):
    """PEFT's LoRA layer on an `nn.Linear`, taking the short way in training where nothing stands in it.

    Made from PEFT's layer in place by `adopt`, undone by `release`. The short way needs what `_is_plain` asks for;
    any other forward pass (evaluation, merged or several adapters, hooks on the inner layers, per-sample adapter
    names) is PEFT's own.
    """

    fused_adapter: str
    base_layer: nn.Linear

    @classmethod
    def adopt(cls, layer: nn.Module, adapter_name: str) -> "FusedLoraLinear | None":
        """Turn PEFT's layer into this class, or return None where it is another class (quantised, for example)."""
        if type(layer) is not LoraLinear:
            return None
        layer.__class__ = cls
        assert isinstance(layer, FusedLoraLinear)
        layer.fused_adapter = adapter_name
        rebind_forward(layer)
        return layer

    def release(self) -> None:
        """Turn back into PEFT's layer."""
        del self.fused_adapter
        self.__class__ = LoraLinear  # type: ignore[assignment]
        rebind_forward(self)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`x` (…, d) → (…, o)."""
        dtype = None if args or kwargs else self._product_dtype(x)
        if dtype is None:
            return super().forward(x, *args, **kwargs)
        return self._opaque(x.to(dtype)) if torch.compiler.is_compiling() else self._fused(x.to(dtype))

    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        name, base = self.fused_adapter, self.base_layer
        A, B, dropout = self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
        assert isinstance(A, ImodLinear)
        dropped = None if isinstance(dropout, nn.Identity) else dropout(x)
        return FusedLora.apply(
            x, dropped, base.weight, base.bias, A.weight, B.weight, self.scaling[name], A, A.batch_of(x)
        )

    _opaque = torch.compiler.disable(_fused)

    def _product_dtype(self, x: torch.Tensor) -> torch.dtype | None:
        """The dtype of the products with `x`, as autocast has it; None where the short way is not open."""
        weight = self.base_layer.weight
        if not self._is_plain():
            return None
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype if x.dtype == weight.dtype else None

    def _is_plain(self) -> bool:
        """Whether this forward pass is training of this one adapter on a bare frozen linear layer."""
        name, base = self.fused_adapter, self.base_layer
        A, B = self.lora_A[name], self.lora_B[name]
        return (
            type(A) is ImodLinear
            and A.injects
            and not self.disable_adapters
            and not self.merged
            and [n for n in self.active_adapters if n in self.lora_A] == [name]
            and name not in self.lora_variant
            and type(base) is nn.Linear
            and type(B) is nn.Linear
            and B.bias is None
            and base.weight.is_floating_point()
            and not base.weight.requires_grad
            and (base.bias is None or not base.bias.requires_grad)
            and all(map(_is_bare, (A, B, base)))
        )


class FusedLora(torch.autograd.Function):
    """The branch and its gradients; that of A carries the constraints."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        scaling: float,
        module: ImodLinear,
        batch: TokenBatch,
    ) -> torch.Tensor:
        """`x` (…, d), and what LoRA's dropout made of it where there is dropout, both in the dtype of the products."""
        with torch.autocast(x.device.type, enabled=False):
            weight = weight.to(x.dtype)
            y = F.linear(x, weight, None if bias is None else bias.to(x.dtype))
            seen = x if dropped is None else dropped
            hidden = F.linear(seen, A.to(x.dtype))
            y.view(-1, y.shape[-1]).addmm_(hidden.view(-1, hidden.shape[-1]), B.to(x.dtype).mT, alpha=scaling)
        ctx.save_for_backward(seen, hidden, weight if ctx.needs_input_grad[0] else None, A, B)
        ctx.scaling, ctx.module, ctx.batch, ctx.dropout = scaling, module, batch, dropped is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: torch.Tensor) -> tuple:
        """Gradients of `x`, `dropped`, A and B."""
        seen, hidden, weight, A, B = ctx.saved_tensors
        needs_x, needs_dropped, _, _, needs_A, needs_B, *_ = ctx.needs_input_grad
        grad_x = grad_dropped = grad_A = grad_B = None
        with torch.autocast(grad_y.device.type, enabled=False):
            flat = grad_y.reshape(-1, grad_y.shape[-1])
            task = torch.addmm(flat.new_empty(()), flat, B.to(flat.dtype), beta=0, alpha=ctx.scaling)  # (N, r)
            if needs_x:
                grad_x = flat @ weight
                if not ctx.dropout:
                    grad_x.addmm_(task, A.to(flat.dtype))
                grad_x = grad_x.view_as(seen)
            if needs_dropped:
                grad_dropped = (task @ A.to(flat.dtype)).view_as(seen)
            if needs_A:
                grad_A = ctx.module.gradient(A, seen, hidden, task, ctx.batch)
            if needs_B:
                grad_B = (flat.mT @ hidden.view(-1, hidden.shape[-1])).to(B.dtype).mul_(ctx.scaling)
        return grad_x, grad_dropped, None, None, grad_A, grad_B, None, None, None


def _is_bare(module: nn.Module) -> bool:
    """Whether calling a layer is no more than its class's forward: no hooks, nothing put in the forward's place."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )
