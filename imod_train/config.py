"""The settings of IMoD: how a LoRA matrix is partitioned and how strongly the two constraints pull."""

import math
from dataclasses import dataclass
from typing import Any

from imod_core.errors import InputError

REDUCTIONS = ("mean", "paper", "elements", "energy", "relative")


@dataclass(frozen=True)
class ImodConfig:
    """Everything that the paper sets or leaves open. A field out of range raises InputError."""

    lambda1: float = 0.01
    """Weight of MSDC, the decoupling constraint (Eq. 6). The default goes with the token mean, where 1
    destroys the task (.673 against LoRA's .892 on 556 held-out questions) and .01 keeps it (.905), one seed
    on a 135M LLM. The paper's 1 belongs to its own form: `ImodConfig.paper()`."""

    lambda2: float = 1e-4
    """Weight of MAAC, the alignment constraint (Eq. 11). 1e-4: the paper's ablation."""

    reduction: str = "mean"
    """How MSDC adds up over the tokens of a micro-batch, and with it what λ1 means.

    `mean`: the sum over its text tokens divided by their number, plus the sum over its non-text tokens divided by
    theirs. `paper`: the two sums themselves, as Eq. 13 has the Frobenius norm; they grow with length and batch size.
    `elements`: `mean` divided by the rank, a mean over all elements as in a mean squared error. `energy`: each sum
    divided by |A X|² of the same tokens, so that neither the size of A nor of X matters. `relative`: the gradient of
    `mean`, scaled in each matrix and backward pass to λ1 times the norm of the task's gradient."""

    shared_ratio: float = 0.3
    """r_s0, the share of a matrix's elements in the shared block at layer 0. With alpha = 0.4 it makes 0.5
    on average over the layers, the share of the run that gave lambda1 its default; the paper does not print
    its value."""

    alpha: float = 0.4
    """Growth of the shared block with depth, r_s(l) = r_s0 + alpha·l/L. 0.4: the paper's ablation."""

    text_ratio: float = 1.0
    """Text elements for each non-text element in what the shared block leaves. The paper tries 0.5, 1 and 2
    and finds little difference (supplement, table B)."""

    msdc: bool = True
    """Whether the decoupling constraint is on."""

    maac: bool = True
    """Whether the alignment constraint is on."""

    warmup_steps: int = 0
    """Optimizer steps over which λ1 and λ2 rise linearly to their values. While B is near zero the task hardly moves
    A, and the constraints would move it alone. `ImodCallback` counts the steps; in a loop of your own call
    `handle.warm_up(step)` before each."""

    seed: int = 0
    """Seed of the partitions. Together with a module's name it decides that module's masks."""

    media_token_ids: tuple[int, ...] | None = None
    """Placeholder ids that stand for non-text tokens. None: read from the model's configuration."""

    ignored_token_ids: tuple[int, ...] | None = None
    """Ids that are neither text nor non-text. None: the markers around media that the model's configuration names."""

    def __post_init__(self) -> None:
        for name in ("lambda1", "lambda2", "alpha"):
            self._number(name, allowed="a number of at least 0", least=0.0)
        self._number("shared_ratio", allowed="a number from 0 to 1", least=0.0, most=1.0)
        self._number("text_ratio", allowed="a number from 0.000001 to 1000000", least=1e-6, most=1e6)
        if self.reduction not in REDUCTIONS:
            self._refuse("reduction", ", ".join(REDUCTIONS[:-1]) + " or " + REDUCTIONS[-1])
        for name in ("msdc", "maac"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "true or false")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            self._refuse("seed", "a whole number")
        if type(self.warmup_steps) is not int or self.warmup_steps < 0:
            self._refuse("warmup_steps", "a whole number of at least 0")
        for name in ("media_token_ids", "ignored_token_ids"):
            self._token_ids(name)

    @classmethod
    def paper(cls, **changes: Any) -> "ImodConfig":
        """The paper's setting: λ1 = 1 on the sum over tokens, λ2 = 1e-4."""
        return cls(**{"lambda1": 1.0, "lambda2": 1e-4, "reduction": "paper", **changes})

    @classmethod
    def mean(cls, **changes: Any) -> "ImodConfig":
        """The default setting: λ1 = .01 on the token mean, which does not grow with length or batch size."""
        return cls(**changes)

    @property
    def weights(self) -> tuple[float, float]:
        """λ1 and λ2 as they act: 0 where the constraint is switched off."""
        return self.lambda1 * self.msdc, self.lambda2 * self.maac

    @property
    def active(self) -> bool:
        """False when nothing would be injected, and training is plain LoRA bit for bit."""
        return any(self.weights)

    def _number(self, name: str, allowed: str, least: float, most: float = math.inf) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not least <= value <= most:
            self._refuse(name, allowed)

    def _token_ids(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if not isinstance(value, (list, tuple)) or not all(type(token) is int for token in value):
            self._refuse(name, "a list of token ids or null")
        if name == "media_token_ids" and not value:
            self._refuse(name, "a list of at least one token id, or null: without media all would be text")
        object.__setattr__(self, name, tuple(value))

    def _refuse(self, name: str, allowed: str) -> None:
        raise InputError(f"The IMoD setting '{name}' is {getattr(self, name)!r}; it must be {allowed}.")
