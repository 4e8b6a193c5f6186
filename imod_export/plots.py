"""The report's figures as SVG inside data URLs: error by probe, error by layer, what rounding cost by layer."""

import base64
import io
from collections.abc import Sequence
from typing import Any

from imod_export.layers import LayerError
from imod_export.results import Control, ProbeResult

FLOOR = 1e-9
"""Where a logarithmic axis ends; exact equality is drawn there."""
GOOD, BAD, BASE, SECOND = "#4a7fb5", "#c0392b", "#8795a3", "#d98b2b"
MARKS = "osD^vP*X"


def probes_figure(probes: Sequence[ProbeResult], controls: Sequence[Control], tolerances: dict[str, Any]) -> str:
    """Relative logit error of each probe and link, its limit, and how far the controls are: a data URL."""
    figure, axes = _figure(0.42 * len({p.name for p in probes}) + 1.4)
    names = list(dict.fromkeys(p.name for p in probes))
    kinds = list(dict.fromkeys((p.link, p.arithmetic) for p in probes))
    for mark, (link, arithmetic) in zip(MARKS * len(kinds), kinds, strict=False):
        found = [p for p in probes if (p.link, p.arithmetic) == (link, arithmetic)]
        colours = [BAD if p.faults else GOOD for p in found]
        x, y = [_shown(p.distance.relative) for p in found], [names.index(p.name) for p in found]
        axes.scatter(x, y, c=colours, marker=mark, s=42, zorder=3)
        axes.scatter([], [], c=GOOD, marker=mark, s=42, label=f"{link}, {arithmetic}")
        if limit := tolerances.get(f"{link}, {arithmetic}"):
            axes.axvline(limit["relative"], color=BASE, lw=1, ls=":", zorder=1)
    far = [c for c in controls if c.probe in names]
    x, y = [_shown(c.distance.relative) for c in far], [names.index(c.probe) for c in far]
    axes.scatter(x, y, c=SECOND, marker="|", s=90, zorder=2, label="controls, which must be far")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    return _finish(figure, axes, "relative logit error (dotted: allowed)")


def layers_figure(layers: Sequence[LayerError]) -> str:
    """The part of each layer's update that did not arrive in the merged weight, by depth: a data URL."""
    shown = [layer for layer in layers if layer.transfer is not None]
    figure, axes = _figure(3.0)
    values = [_shown(abs(1 - (layer.transfer or 0))) for layer in shown]
    colours = [GOOD if layer.passed else BAD for layer in shown]
    axes.scatter(values, range(len(shown)), c=colours, s=10)
    axes.set_ylabel("adapted layer, first to last")
    axes.invert_yaxis()
    return _finish(figure, axes, "share of the update missing from the merged layer's output", legend=False)


def rounding_figure(costs: Sequence[dict[str, Any]]) -> str:
    """Strength of each update and the share that rounding lost of it, by depth: a data URL."""
    figure, axes = _figure(3.0)
    depth = range(len(costs))
    axes.scatter([_shown(c["strength"]) for c in costs], depth, c=GOOD, s=10, label="|ΔW| / |W|")
    axes.scatter([_shown(abs(c["lost"])) for c in costs], depth, c=SECOND, s=10, label="share of ΔW lost to rounding")
    axes.set_ylabel("merged weight, first to last")
    axes.invert_yaxis()
    return _finish(figure, axes, "share")


def _figure(height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, max(height, 1.8)), layout="constrained")
    return figure, figure.add_subplot()


def _finish(figure: Any, axes: Any, label: str, legend: bool = True) -> str:
    from matplotlib import rc_context

    axes.set_xscale("log")
    axes.set_xlim(FLOOR / 2, 3)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#dde3e8", lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if legend:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "imod"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _shown(value: float) -> float:
    return min(max(value, FLOOR), 2.0)
