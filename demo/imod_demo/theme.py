"""Colours and type: one colour for what is seen, one for what is heard, ink for words. style.css does the rest.

The fonts come with Gradio; nothing is fetched from elsewhere.
"""

from pathlib import Path

import gradio as gr

CSS = Path(__file__).with_name("static") / "style.css"
SANS = gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700))
MONO = gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700))


def theme() -> gr.themes.Base:
    """Gradio's own parts in the page's colours."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=[SANS, "system-ui", "sans-serif"],
        font_mono=[MONO, "ui-monospace", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        body_background_fill="var(--ground)",
        body_background_fill_dark="var(--ground)",
        body_text_color="var(--ink)",
        body_text_color_dark="var(--ink)",
        body_text_color_subdued="var(--quiet)",
        body_text_color_subdued_dark="var(--quiet)",
        background_fill_primary="var(--sheet)",
        background_fill_primary_dark="var(--sheet)",
        background_fill_secondary="var(--well)",
        background_fill_secondary_dark="var(--well)",
        block_background_fill="var(--sheet)",
        block_background_fill_dark="var(--sheet)",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_label_text_color="var(--quiet)",
        block_label_text_color_dark="var(--quiet)",
        block_title_text_color="var(--ink)",
        block_title_text_color_dark="var(--ink)",
        block_info_text_color="var(--quiet)",
        block_info_text_color_dark="var(--quiet)",
        border_color_primary="var(--line)",
        border_color_primary_dark="var(--line)",
        border_color_accent="var(--hear)",
        border_color_accent_dark="var(--hear)",
        color_accent="var(--hear)",
        color_accent_soft="var(--well)",
        color_accent_soft_dark="var(--well)",
        input_background_fill="var(--sheet)",
        input_background_fill_dark="var(--sheet)",
        input_border_color="var(--line)",
        input_border_color_dark="var(--line)",
        input_border_color_focus="var(--hear)",
        input_border_color_focus_dark="var(--hear)",
        input_placeholder_color="var(--quiet)",
        input_placeholder_color_dark="var(--quiet)",
        button_primary_background_fill="var(--ink)",
        button_primary_background_fill_dark="var(--ink)",
        button_primary_background_fill_hover="var(--strong)",
        button_primary_background_fill_hover_dark="var(--strong)",
        button_primary_text_color="var(--sheet)",
        button_primary_text_color_dark="var(--sheet)",
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover="var(--well)",
        button_secondary_background_fill_hover_dark="var(--well)",
        button_secondary_border_color="var(--line)",
        button_secondary_border_color_dark="var(--line)",
        button_secondary_text_color="var(--ink)",
        button_secondary_text_color_dark="var(--ink)",
        checkbox_background_color_selected="var(--hear)",
        checkbox_background_color_selected_dark="var(--hear)",
        slider_color="var(--hear)",
        slider_color_dark="var(--hear)",
    )
