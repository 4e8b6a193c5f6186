"""Chat templates in the families' formats: one body, and a head that says how a family spells turns and media."""

import json

KINDS = {
    "image": ("image", "image_url"),
    "video": ("video", "video_url"),
    "audio": ("audio", "audio_url", "input_audio"),
}
"""Names that a part of a message has in transformers and in OpenAI's API."""
BODY = """\
{{- start -}}
{%- if system and messages and messages[0]['role'] != 'system' -%}
{{- begin + 'system\\n' + system + end -}}
{%- endif -%}
{%- for message in messages -%}
{{- begin + (assistant if message['role'] == 'assistant' else message['role']) + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in media -%}{{- media[part['type']] -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- end -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- begin + assistant + '\\n' -}}{%- endif -%}
"""


def chat_template(
    media: dict[str, str],
    *,
    begin: str = "<|im_start|>",
    end: str = "<|im_end|>\n",
    assistant: str = "assistant",
    system: str = "",
    start: str = "",
) -> str:
    """A jinja template.

    Args:
        media: what stands for a picture, a video, a sound.
        begin, end: of a turn; the role follows `begin`.
        assistant: what the model's own turns are called.
        system: first turn of a conversation that has none of its own.
        start: before all turns.
    """
    spelled = {name: media[kind] for kind in media for name in KINDS[kind]}
    head = {"start": start, "begin": begin, "end": end, "assistant": assistant, "system": system, "media": spelled}
    return "".join(f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in head.items()) + BODY
