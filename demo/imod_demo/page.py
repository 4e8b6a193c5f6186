"""The page's components, where they stand and what they set off; `acts` does it."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from imod_demo.acts import NOBODY, Acts
from imod_demo.conversation import Conversation
from imod_demo.desk import Desk
from imod_demo.shelf import HOLD_SECONDS
from imod_demo.talk import Target
from imod_demo.view import examples_html, footer_html, header_html, script, stage_html, stage_js

ASKED_AT_ONCE = 32
"""Questions that may be with the servers at the same time; they batch them."""
LOOKED_AT_ONCE = 2
"""Files that are read or converted at the same time."""
LONGEST_QUESTION = 4000
"""Characters."""
LONGEST_ANSWER = 1024
"""Tokens."""
TO_QUESTION = "() => document.querySelector('#composer').scrollIntoView({block: 'nearest'})"
"""On a phone the question stands below the examples."""
LOOKED_AT = """() => {
  const news = document.querySelector('[data-news]');
  if (news.textContent.includes('Looking at')) news.textContent = news.dataset.faults;
}"""
"""What was being looked at lies in the tray, or a notice says why not."""
QUICK: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE: dict[str, Any] = {**QUICK, "queue": False}
SAID: dict[str, Any] = {**QUICK, "concurrency_limit": None}
"""At once too, but by the queue, which tells the visitor what is wrong."""
LOOKING: dict[str, Any] = {**QUICK, "concurrency_id": "files", "concurrency_limit": LOOKED_AT_ONCE}
ASKING: dict[str, Any] = {**QUICK, "concurrency_id": "asking", "concurrency_limit": ASKED_AT_ONCE}


@dataclass(frozen=True)
class Column:
    """The components of one model's side of the page."""

    box: gr.Column
    state: gr.State
    chat: gr.Chatbot
    notice: gr.HTML
    figures: gr.HTML

    @property
    def shown(self) -> list[Any]:
        """What an answer changes."""
        return [self.state, self.chat, self.notice, self.figures]


def build(desk: Desk) -> gr.Blocks:
    """The page for `desk`."""
    with gr.Blocks(
        title="IMoD: ask about what it sees and hears",
        analytics_enabled=False,
        delete_cache=(HOLD_SECONDS // 4, HOLD_SECONDS),
    ) as blocks:
        Page(desk, blocks)
    return blocks


class Page:
    """Lays out the components and wires them."""

    def __init__(self, desk: Desk, blocks: gr.Blocks):
        self.desk, self.acts = desk, Acts(desk)
        self.waiting, self.busy = gr.State(()), gr.State(False)
        self._lay_out()
        self._wire(blocks)

    def _lay_out(self) -> None:
        gr.HTML(header_html(" and ".join(t.label for t in self._first_two())), js_on_load=script("light.js"))
        with gr.Row(elem_id="desk", equal_height=False):
            with gr.Column(scale=5, min_width=320, elem_id="stage"):
                self.stage = gr.HTML(stage_html(), js_on_load=stage_js(), elem_id="drop")
                self.tray_notice = gr.HTML()
                self.tray = gr.HTML(js_on_load=script("pick.js"), elem_id="tray")
                self.examples = gr.HTML(
                    examples_html(self.desk.examples), js_on_load=script("pick.js"), elem_id="examples"
                )
            with gr.Column(scale=7, min_width=320, elem_id="talk"):
                self._lay_out_talk()
        self.saw = gr.HTML(elem_id="saw")
        gr.HTML(footer_html(self.desk.credits))

    def _lay_out_talk(self) -> None:
        with gr.Row(elem_id="columns", equal_height=False):
            self.columns = [self._column(0), self._column(1)]
        with gr.Group(elem_id="composer"):
            self.question = gr.Textbox(
                label="Your question",
                placeholder="Which instrument is louder, the left or the right one?",
                lines=2,
                max_lines=6,
                max_length=LONGEST_QUESTION,
                elem_id="question",
            )
            with gr.Row(elem_id="actions"):
                self.matters = gr.Checkbox(label="What mattered?", elem_id="switch", container=False)
                self.fresh = gr.Button("Start over", size="sm", elem_id="new")
                self.retry = gr.Button("Retry", size="sm", elem_id="retry")
                self.stop = gr.Button("Stop", size="sm", interactive=False, elem_id="stop")
                self.ask = gr.Button("Ask", size="sm", variant="primary", elem_id="ask")
        with gr.Row(elem_id="matters", equal_height=False):
            self.matter_parts = [gr.HTML(elem_id=f"matter-{index + 1}") for index in range(2)]
        with gr.Accordion("More", open=False, elem_id="more"):
            self._lay_out_more()

    def _lay_out_more(self) -> None:
        labels = [target.label for target in self.desk.targets]
        several = len(labels) > 1
        beside = self.desk.beside.label if self.desk.beside else NOBODY
        self.model = gr.Dropdown(labels, value=labels[0], label="Model", visible=several, elem_id="model")
        self.beside = gr.Dropdown(
            [NOBODY, *labels], value=beside, label="Compare with", visible=several, elem_id="beside"
        )
        self.temperature = gr.Slider(
            0.0,
            2.0,
            value=0.0,
            step=0.1,
            label="Temperature",
            info="0: always the likeliest word",
            elem_id="temperature",
        )
        self.max_tokens = gr.Slider(
            1,
            LONGEST_ANSWER,
            value=self.desk.max_tokens,
            step=1,
            label="Longest answer",
            info="tokens",
            elem_id="length",
        )

    def _first_two(self) -> list[Target]:
        return [self.desk.targets[0], *([self.desk.beside] if self.desk.beside else [])]

    def _column(self, index: int) -> Column:
        shown = index < len(self._first_two())
        with gr.Column(visible=shown, min_width=260, elem_classes="voice", elem_id=f"voice-{index + 1}") as box:
            chat = gr.Chatbot(
                label=self._first_two()[index].label if shown else "Compared",
                height=340,
                buttons=["copy"],
                placeholder="Answers appear here.",
                allow_file_downloads=False,
                feedback_options=None,
                elem_id=f"chat-{index + 1}",
            )
            return Column(
                box,
                gr.State(Conversation()),
                chat,
                gr.HTML(elem_id=f"notice-{index + 1}"),
                gr.HTML(elem_id=f"figures-{index + 1}"),
            )

    def _wire(self, blocks: gr.Blocks) -> None:
        acts = self.acts
        self.states = [column.state for column in self.columns]
        self.chosen = [self.model, self.beside]
        shown = [part for column in self.columns for part in column.shown]
        tray = [self.waiting, self.tray, self.tray_notice]
        page = [*shown, *self.matter_parts, self.saw, self.stop, self.busy]
        columns = [part for column in self.columns for part in (column.box, column.chat)]

        asked = gr.on(
            [self.ask.click, self.question.submit],
            acts.begin,
            [self.question, self.waiting, self.busy, *self.chosen, *self.states],
            [*page, *tray, self.question],
            **SAID,
        )
        again = self.retry.click(acts.begin_again, [self.busy, *self.states], page, **SAID)
        answering = [event for start in (asked, again) for event in self._answering(start, shown)]
        running = [*answering, self._finding(self.matters.input, cancels=answering[1::2])]
        self.stop.click(acts.end, None, [self.stop, self.busy], cancels=running, **AT_ONCE)

        looked = self.stage.upload(acts.receive, [self.waiting, self.states[0]], tray, **LOOKING)
        looked.then(None, js=LOOKED_AT, **QUICK)
        self.tray.select(acts.take_out, [self.waiting, self.states[0]], tray, **AT_ONCE)
        self.examples.select(acts.try_example, None, [*page, *tray, self.question], cancels=running, **AT_ONCE).then(
            None, js=TO_QUESTION, **QUICK
        )
        clears = [self.fresh.click, *(column.chat.clear for column in self.columns)]
        gr.on(clears, acts.start_anew, None, [*page, *tray, self.question], cancels=running, **AT_ONCE)
        for choice in self.chosen:
            choice.input(
                acts.change_models, [*self.chosen, *self.states], [*columns, *page, *tray], cancels=running, **AT_ONCE
            )
        blocks.unload(acts.leave)

    def _answering(self, start: Any, shown: list[Any]) -> tuple[Any, Any]:
        """After a question: the answers, then what mattered; meanwhile what the model saw."""
        asking = [self.max_tokens, self.temperature, *self.chosen, *self.states]
        answering = start.success(self.acts.answer, asking, shown, **ASKING)
        start.success(self.acts.look, [self.model, self.states[0]], self.saw, **LOOKING)
        ended = answering.then(self.acts.end, None, [self.stop, self.busy], **AT_ONCE)
        return answering, self._finding(ended.then)

    def _finding(self, listen: Any, **more: Any) -> Any:
        asked = [self.matters, self.max_tokens, *self.chosen, *self.states]
        return listen(self.acts.find_out, asked, self.matter_parts, **ASKING, **more)
