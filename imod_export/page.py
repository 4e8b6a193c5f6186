"""Pieces of a report's page as HTML: one file without outside resources, so all styles and pictures are in it."""

from collections.abc import Iterable
from html import escape
from math import log10

DECADES = 8
"""A bar's full width: errors from 1e-8 to 1, logarithmic."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25rem .6rem; vertical-align: top }
th { border-bottom: 2px solid #8795a3 } td { border-bottom: 1px solid #dde3e8 }
.number { font-variant-numeric: tabular-nums; white-space: nowrap } .muted { color: #5b6b7a }
.yes { color: #0a6b3b; font-weight: 600 } .no { color: #a11616; font-weight: 600 }
.bar { display: inline-block; height: .7rem; background: #4a7fb5; min-width: 1px } .bar.bad { background: #c0392b }
img { width: 100%; max-width: 62rem } .track { display: inline-block; width: 12rem; background: #eef2f5 }
"""


def image(url: str) -> str:
    """A picture."""
    return f"<img alt='' src='{url}'>"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table; cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def bullets(lines: list[str]) -> str:
    """Faults, one a line."""
    return "<ul>" + "".join(f"<li class='no'>{escape(line)}</li>" for line in lines) + "</ul>"


def number(value: float) -> str:
    """A small error."""
    return f"<span class='number'>{value:.1e}</span>"


def bar(value: float, bad: bool) -> str:
    """An error on the logarithmic scale, red where it is `bad`."""
    share = min(1.0, max(0.0, 1 + log10(max(value, 10**-DECADES)) / DECADES)) if value < float("inf") else 1.0
    return f"<span class='track'><span class='bar{' bad' if bad else ''}' style='width:{share:.0%}'></span></span>"


def mark(good: bool, yes: str = "✓", no: str = "✗") -> str:
    """A verdict in green or red."""
    return f"<span class='yes'>{yes}</span>" if good else f"<span class='no'>{no}</span>"
