"""What a visitor does on the page and reads there."""

import re

from imod_serve.messages import Turn

QUESTION = "Where is the louder instrument?"


def upload(page, *paths):
    """Give files and wait until their cards are there."""
    before = page.locator("#tray .card").count()
    page.set_input_files("#drop input[type=file]", [str(path) for path in paths])
    page.locator("#tray .card").nth(before + len(paths) - 1).wait_for()


def ask(page, question=QUESTION, answers=1):
    page.fill("#question textarea", question)
    page.click("#ask")
    finished(page, answers)


def finished(page, answers=1):
    """Wait until as many answers are complete: their figures stand below."""
    page.wait_for_function(
        """count => [...document.querySelectorAll('.voice')].filter(v => v.querySelector('.keys .speed')
           && !document.querySelector('#stop:not([disabled])')).length >= count""",
        arg=answers,
    )


def bubbles(page, column=1, who="bot"):
    return [text.strip() for text in page.locator(f"#chat-{column} .message.{who}").all_inner_texts()]


def words(text):
    """Letters and digits: blanks in a row are one in a browser, and Markdown eats signs that have a meaning there."""
    return "".join(re.findall(r"[^\W_]", text))


def alone(*paths, text=QUESTION):
    by_kind = {kind: tuple(p for p in paths if p.stem == kind) for kind in ("picture", "sound", "clip")}
    return Turn("user", text, by_kind["picture"], by_kind["sound"], by_kind["clip"])
