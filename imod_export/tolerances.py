"""How far two forms of one model may be apart, and why. The command and the tests read the numbers here.

Measured with low-rank adapters on the tiny base (0.2 M parameters, 3 layers) and the smol base (135 M, 30 layers, and
the quickstart's run on it), six probes each; a limit is two to four times the worst seen in 16 bits and ten times in
32. A forgotten layer and a halved scale that hide below a 16-bit limit are caught by `EFFECT_SHARE` and `TRANSFER`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """Limits of one comparison."""

    relative: float
    """RMS of the logits' difference over the RMS of their spread around each position's mean."""
    kl: float
    """Nats, of the reference from the other, the largest over the positions."""
    near_tie: float
    """Logits: where the reference's best two are closer, either may win."""
    reason: str


ARITHMETIC = {
    "float32": Tolerance(1e-4, 1e-6, 1e-3, "sums in another order; seen up to 7e-6 relative, 2e-10 nats"),
    "bfloat16": Tolerance(2e-1, 1e-1, 5e-1, "8 bits in every activation; seen up to 7e-2 relative, 3e-2 nats"),
    "float16": Tolerance(3e-2, 5e-3, 1e-1, "11 bits in every activation; seen up to 1e-2 relative, 3e-4 nats"),
}
"""Attached against merged, both computed in this dtype, which is also the one on disk."""

ROUNDING = {
    "float32": ARITHMETIC["float32"],
    "bfloat16": Tolerance(6e-2, 1e-2, 3e-1, "merged weights rounded to 8 bits; seen up to 2e-2, 5e-4 nats"),
    "float16": Tolerance(1e-2, 1e-3, 5e-2, "merged weights rounded to 11 bits; seen up to 3e-3, 4e-5 nats"),
}
"""Attached against merged, both computed in float32, merged weights stored in this dtype."""

ONNX = {
    "fp32": Tolerance(1e-4, 1e-6, 1e-3, "the same sums in another order; seen up to 6e-6 relative, 3e-10 nats"),
    "fp16": Tolerance(
        5e-2, 3e-2, 2e-1, "11 bits in every product and the cache; seen up to 2.4e-2 relative, 1e-2 nats"
    ),
    "int8": Tolerance(4e-1, 8e-1, 2.0, "weights and activations of 8 bits in blocks of 32; seen up to 0.14, 0.3 nats"),
    "q4": Tolerance(1.3, 1e1, 8.0, "4 bits change what a small model says: seen up to 1.1, 4 nats; other models: 1.4"),
}
"""transformers in float32 against the ONNX graphs of each form, by the logits."""

ONNX_PART = {"fp32": 1e-4, "fp16": 2e-2, "int8": 5e-2, "q4": 5e-1}
"""One graph alone: RMS error of embeddings over their RMS."""

ONNX_WEIGHT = {"int8": 1e-2, "q4": 1.2e-1}
"""RMS error of a weight over its RMS: rounding in blocks of 32 makes 5e-3 and 8e-2 of normally distributed ones."""

STOCHASTIC = {
    "float32": ARITHMETIC["float32"],
    "bfloat16": Tolerance(1.2e-1, 4e-2, 4e-1, "stochastic rounding to 8 bits: twice the noise of rounding to nearest"),
    "float16": Tolerance(2e-2, 2e-3, 1e-1, "stochastic rounding to 11 bits: twice the noise of rounding to nearest"),
}
"""As `ROUNDING`, where the merged weights were rounded by chance."""

EFFECT_SHARE = 0.5
"""The merge may miss the adapter by at most this share of what the adapter does to the logits: at 1 it is as far away
as the base. It sees a wrong scale where an adapter's whole effect lies below a dtype's tolerance."""

TURNED_ALIKE = 0.25
"""Least cosine between what other media change in the merged model's logits and in another form's: 0 where they do not
reach it, 1 in float32, and seen from 0.39 up where 4 bits changed nearly all else."""

TRANSFER = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
"""How far from 1 the part of a layer's update may be that its merged weight shows; seen 5e-6, 0.10 and 5e-3. Rounding
to bfloat16 swallows updates below half a unit in the last place; where a quarter is gone, float32 is the answer."""

SAVED_MODULE = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11}
"""Largest difference of a saved tensor's values over its largest value: they are copied, or rounded once."""
