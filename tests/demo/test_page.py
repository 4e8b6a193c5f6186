"""The page in a real browser, on real servers: what a visitor sees is what the API says."""

import re

import pytest
import soundfile
from PIL import Image

from imod_demo.blank import without
from imod_demo.medium import MAX_BYTES
from imod_serve.client import Client
from imod_serve.messages import Turn

from .chromium import axe_script
from .clips import tone, write_clip
from .conftest import ANSWER_SECONDS, opened
from .visitor import alone, ask, bubbles, finished, upload, words

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
MAX_TOKENS = 64
"""The page's own setting."""


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A file of each kind that the page passes on as it is."""
    folder = tmp_path_factory.mktemp("media")
    Image.effect_noise((64, 48), 90).convert("RGB").save(folder / "picture.png")
    soundfile.write(folder / "sound.wav", tone(16_000, 1)[0], 16_000, subtype="PCM_16")
    write_clip(folder / "clip.mp4")
    return folder


COMBINATIONS = [(), ("picture.png",), ("sound.wav",), ("clip.mp4",), ("picture.png", "sound.wav")]


@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: "+".join(names) or "words")
def test_the_streamed_answer_is_the_apis(page, client, media, names):
    paths = [media / name for name in names]
    if paths:
        upload(page, *paths)
    ask(page)
    turn = alone(*paths)
    reference = client.chat([turn], max_tokens=MAX_TOKENS)
    shown = bubbles(page)[-1]
    assert words(shown) == words(reference.text)
    others = [
        client.chat([alone(*(media / n for n in o))], max_tokens=MAX_TOKENS).text for o in COMBINATIONS if o != names
    ]
    assert len({words(text) for text in [shown, *others]}) > 3, "media change nothing, so equality proves nothing"
    keys = " ".join(page.locator("#figures-1 .keys").inner_text().split())
    assert sum(int(n) for n in re.findall(r"(\d+) (?:words|picture|sound|clip)", keys)) == reference.prompt_tokens
    assert [kind for kind in ("picture", "clip", "sound") if kind in keys] == [
        kind for kind in ("picture", "clip", "sound") if kind in str(names) or (kind == "sound" and "clip.mp4" in names)
    ]


def test_an_example_fills_the_page_and_a_second_question_goes_with_the_first(page, client):
    page.locator("#examples button").first.click()
    page.locator("#tray video").wait_for()
    page.wait_for_function("document.querySelector('#tray video').readyState >= 1")
    assert page.input_value("#question textarea").endswith("?")
    page.click("#ask")
    finished(page)
    first = bubbles(page)[-1]
    page.fill("#question textarea", "And what else?")
    page.click("#ask")
    page.wait_for_function("document.querySelectorAll('#chat-1 .message.bot').length >= 2")
    finished(page)
    assert bubbles(page)[0] == first
    assert page.locator("#saw .frames img").count() == 2, "the tiny model is given two frames"
    assert page.locator("#saw img.mel").count() == page.locator("#saw svg.wave").count() == 1


def test_what_mattered_shows_the_apis_answers_and_scores_without_sound_and_picture(page, client, media):
    upload(page, media / "clip.mp4")
    page.check("#switch input")
    ask(page)
    page.locator("#matter-1 .both .change").wait_for()
    turn = alone(media / "clip.mp4")
    said = client.chat([turn], max_tokens=MAX_TOKENS).text
    before = client.score([turn], said)
    changes = {}
    for condition, picture, sound in (("muted", False, True), ("blanked", True, False), ("both", True, True)):
        changed = [without(turn, picture=picture, sound=sound)]
        card = page.locator(f"#matter-1 .{condition}")
        answer = card.locator(".said").inner_text().removesuffix(card.locator(".said .mark").inner_text())
        assert words(answer) == words(client.chat(changed, max_tokens=MAX_TOKENS).text), condition
        changes[condition] = client.score(changed, said) - before
        assert float(card.locator(".change b").inner_text()) == pytest.approx(changes[condition], abs=0.02), condition
        told = re.search(r"log-probability: ([+-][\d.]+) nats", card.locator(".bar").get_attribute("aria-label"))
        assert float(told[1]) == pytest.approx(changes[condition], abs=0.02), condition
    assert max(abs(change) for change in changes.values()) > 0.05, "nothing changes, so equality proves nothing"
    page.uncheck("#switch input")
    page.wait_for_function("!document.querySelector('#matter-1 .matter')")


def test_retry_asks_again_and_start_over_clears_the_page(page, media):
    upload(page, media / "picture.png")
    ask(page)
    answer = bubbles(page)
    page.click("#retry")
    page.wait_for_function("!document.querySelector('#chat-1 .message.bot')")
    finished(page)
    assert bubbles(page) == answer, "greedy decoding says the same again"
    page.click("#new")
    page.wait_for_function("!document.querySelector('#chat-1 .message.user')")
    assert page.locator("#tray .card").count() == 0


@pytest.mark.parametrize("kind", ["video", "photo", "audio"])
def test_camera_and_microphone_are_recorded_and_asked_about(page, kind):
    page.click(f"#drop [data-record={kind}]")
    stop = page.locator("#drop [data-stop]")
    stop.wait_for()
    page.wait_for_timeout(1500)
    stop.click()
    card = page.locator("#tray .card")
    card.wait_for()
    facts = card.locator(".facts").inner_text()
    assert {"video": "with sound", "photo": "picture", "audio": "sound"}[kind] in facts
    ask(page)
    assert bubbles(page)[-1]


def test_a_phones_clip_plays_in_the_browser(page, tmp_path):
    write_clip(tmp_path / "clip.mov", codec="libx265", sound=("aac", 48_000, "5.1"))
    upload(page, tmp_path / "clip.mov")
    page.wait_for_function("document.querySelector('#tray video').readyState >= 2")
    assert page.evaluate("(async () => { const v = document.querySelector('#tray video'); v.muted = true; "
                         "await v.play(); return v.videoWidth })()") == 96  # fmt: skip
    assert "H.264" in page.locator("#tray .changes").inner_text()


def test_a_corrupt_file_gets_a_sentence_and_the_page_goes_on(page, media, tmp_path):
    whole = (media / "clip.mp4").read_bytes()
    (tmp_path / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    page.set_input_files("#drop input[type=file]", str(tmp_path / "broken.mp4"))
    notice = page.locator("#stage [role=alert]")
    notice.wait_for()
    assert "broken.mp4" in notice.inner_text()
    assert "/" not in notice.inner_text()
    assert page.locator("#tray .card").count() == 0
    looked_at(page)
    upload(page, media / "picture.png")
    assert page.locator("#stage [role=alert]").count() == 0
    looked_at(page)
    page.click("#tray .out")
    page.wait_for_function("!document.querySelector('#tray .card')")


def test_a_file_that_is_too_large_is_told_of_beside_one_that_is_taken(page, media, tmp_path):
    with (tmp_path / "large.mp4").open("wb") as file:
        file.truncate(MAX_BYTES + 2**20)
    page.set_input_files("#drop input[type=file]", [str(tmp_path / "large.mp4"), str(media / "picture.png")])
    page.locator("#tray .card").wait_for()
    news = page.locator("[data-news]")
    page.wait_for_function("!document.querySelector('[data-news]').textContent.includes('Looking')")
    assert news.inner_text().startswith("large.mp4 has ")
    assert "trouble" in (news.get_attribute("class") or "")
    page.click("#tray .out")
    page.wait_for_function("!document.querySelector('#tray .card')")
    upload(page, media / "picture.png")
    looked_at(page)


def looked_at(page):
    """Wait until the page no longer says that it looks at a file."""
    page.wait_for_function("document.querySelector('[data-news]').textContent === ''")


def test_the_keyboard_alone_is_enough(page):
    page.focus("#examples button")
    page.keyboard.press("Enter")
    page.locator("#tray .card").wait_for()
    page.focus("#question textarea")
    for target in ("switch", "new", "retry", "ask"):
        page.keyboard.press("Tab")
        assert page.evaluate("id => !!document.activeElement.closest('#' + id)", target), target
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline not in ("none", ""), target
    page.keyboard.press("Enter")
    finished(page)


def test_an_empty_question_is_not_sent(page):
    page.click("#ask")
    page.get_by_text("Type a question first.").wait_for()
    assert bubbles(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious_and_nothing_has_to_be_scrolled_sideways(browser, demo, scheme, width):
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=width < 500, reduced_motion="reduce"
    )
    context.set_default_timeout(ANSWER_SECONDS * 1000)
    page = opened(context.new_page(), demo.url)
    page.evaluate(axe_script())
    empty = _serious(page)
    page.check("#switch input")
    page.locator("#examples button").first.click()
    page.locator("#tray .card").wait_for()
    page.click("#ask")
    page.locator("#matter-1 .change").last.wait_for()
    page.click("#more > button")
    page.locator("#temperature").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert empty == _serious(page) == []
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'data:,'}))")
    assert _serious(page), "a picture without alternative text goes unnoticed, so this check proves nothing"
    context.close()


def _serious(page):
    found = page.evaluate("axe.run(document)")
    assert len(found["passes"]) > 20
    return [
        (v["id"], v["nodes"][0]["html"][:200]) for v in found["violations"] if v["impact"] in ("serious", "critical")
    ]


def test_twenty_visitors_at_once_all_get_their_own_answer(browser, demo, client):
    # A context each: Chromium opens at most six connections to a server for all pages of one.
    contexts = [browser.new_context() for _ in range(20)]
    for context in contexts:
        context.set_default_timeout(2 * ANSWER_SECONDS * 1000)
    pages = [opened(context.new_page(), demo.url) for context in contexts]
    questions = [f"What does visitor {index} hear?" for index in range(20)]
    for page, question in zip(pages, questions, strict=True):
        page.fill("#question textarea", question)
    for page in pages:
        page.evaluate("document.querySelector('#ask').click()")
    for page in pages:
        finished(page)
    shown = [bubbles(page)[-1] for page in pages]
    references = [client.chat([Turn("user", q)], max_tokens=MAX_TOKENS).text for q in questions]
    assert [words(text) for text in shown] == [words(text) for text in references]
    assert len(set(references)) > 1
    for context in contexts:
        context.close()


def test_two_models_answer_side_by_side_behind_a_proxys_path(browser, compared, client, other, media):
    _, address = compared
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(ANSWER_SECONDS * 1000)
    page = opened(context.new_page(), address)
    upload(page, media / "picture.png")
    page.wait_for_function("document.querySelector('#tray img').naturalWidth == 64")
    ask(page, answers=2)
    turn = alone(media / "picture.png")
    wanted = [c.chat([turn], max_tokens=MAX_TOKENS).text for c in (Client(other.url), client)]
    assert [words(bubbles(page, column)[-1]) for column in (1, 2)] == [words(text) for text in wanted]
    assert words(wanted[0]) != words(wanted[1])
    context.close()
