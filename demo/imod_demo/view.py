"""The page's own pieces of HTML: header, media cards, examples, notices."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from imod_demo.examples import Example
from imod_demo.medium import KINDS, MAX_BYTES, MAX_CLIP_SECONDS, MAX_SOUND_SECONDS, Medium

STATIC = Path(__file__).with_name("static")
MARK = (
    '<svg class="mark" viewBox="0 0 48 48" aria-hidden="true"><circle class="see" cx="19" cy="20" r="13"/>'
    '<path class="hear" d="M24 34v-8M31 40V20M38 36V24M17 38v-6"/></svg>'
)


def header_html(models: str) -> str:
    """Name, promise, models, and the switch between light and dark."""
    return (
        f'<header class="top"><div class="name">{MARK}<span>IMoD</span></div>'
        f'<p class="models"><span>asking</span> {escape(models)}</p>'
        '<button type="button" class="light" data-light aria-label="Switch between light and dark">'
        '<svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="8"/><path d="M12 4a8 8 0 0 1 0 16z"/>'
        "</svg></button></header>"
        '<div class="hero"><h1>Ask about what it <em class="see">sees</em> and what it <em class="hear">hears</em></h1>'
        "<p>Give it a clip, a sound or a picture and ask. Then mute the sound or blank the picture, "
        "and find out what the answer rests on.</p></div>"
    )


def stage_html() -> str:
    """Where files come in."""
    return (STATIC / "stage.html").read_text(encoding="utf-8")


def stage_js() -> str:
    """What the stage does, with this page's limits."""
    limits = {"MAX_BYTES": MAX_BYTES, "MAX_CLIP_SECONDS": MAX_CLIP_SECONDS, "MAX_SOUND_SECONDS": MAX_SOUND_SECONDS}
    found = script("stage.js")
    for name, value in limits.items():
        found = found.replace(f'"{name}"', f'"{value:.0f}"')
    return found


def script(name: str) -> str:
    """A script of the page, by its file's name."""
    return (STATIC / name).read_text(encoding="utf-8")


def tray_html(waiting: Sequence[Medium], told: Sequence[Medium]) -> str:
    """Cards of the media: those that go with the next question can be taken out, the others have been asked about."""
    cards = [_card(medium, None) for medium in told] + [_card(medium, index) for index, medium in enumerate(waiting)]
    return f'<ul class="tray" aria-label="Media">{"".join(cards)}</ul>' if cards else ""


def _card(medium: Medium, index: int | None) -> str:
    name = escape(medium.name)
    changes = f'<span class="changes">{escape("; ".join(medium.changes))}</span>' if medium.changes else ""
    if index is None:
        state = '<span class="state">in the conversation</span>'
    else:
        state = f'<button type="button" class="out" data-pick="{index}" aria-label="Take out {name}">Take out</button>'
    return (
        f'<li class="card {medium.kind}">{_player(medium)}<div class="label"><b>{name}</b>'
        f'<span class="facts">{escape(medium.facts)}</span>{changes}</div>{state}</li>'
    )


def _player(medium: Medium) -> str:
    address, name = file_address(medium.path), escape(medium.name)
    if medium.kind == "image":
        return f'<img src="{address}" alt="The picture {name}">'
    if medium.kind == "audio":
        return f'<audio src="{address}" controls preload="metadata" aria-label="The sound {name}"></audio>'
    return f'<video src="{address}" controls playsinline preload="metadata" aria-label="The clip {name}"></video>'


def examples_html(examples: Sequence[Example]) -> str:
    """A strip of examples to click on."""
    if not examples:
        return ""
    shown = "".join(_example(index, example) for index, example in enumerate(examples))
    return f'<h2 class="small">Or try one of these</h2><ul class="examples">{shown}</ul>'


def _example(index: int, example: Example) -> str:
    kinds = " and ".join(KINDS[medium.kind] for medium in example.media)
    picture = (
        f'<img src="{file_address(example.thumbnail)}" alt="" loading="lazy" width="96" height="96">'
        if example.thumbnail
        else '<span class="noise"><svg viewBox="0 0 96 96" aria-hidden="true">'
        '<path d="M18 40v16M30 28v40M42 36v24M54 18v60M66 32v32M78 42v12"/></svg></span>'
    )
    return (
        f'<li><button type="button" data-pick="{index}">{picture}<span class="kind">{kinds}</span>'
        f"<span>{escape(example.question)}</span></button></li>"
    )


def footer_html(credits: str) -> str:
    """What becomes of files, and whose work the examples are."""
    whose = f"<details><summary>What the examples are made of</summary><pre>{escape(credits)}</pre></details>"
    return (
        '<footer class="foot"><p>Your files stay on this page\'s server while the page is open, '
        f"and are deleted when you leave.</p>{whose if credits else ''}</footer>"
    )


def notice_html(sentence: str) -> str:
    """Something went wrong, said where it happened; empty for no sentence."""
    return f'<p class="notice" role="alert">{escape(sentence)}</p>' if sentence else ""


def file_address(path: Path) -> str:
    """Relative to the page, so that it holds behind a reverse proxy's path too."""
    return f"gradio_api/file={quote(str(path))}"
