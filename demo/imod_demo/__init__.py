"""The demo: a page on which anyone sees and hears what a model understands. Talks HTTP only; needs no torch.

cli.py           `imod demo`                         app.py      the page: components and what happens on a click
settings.py      what the operator decides           talk.py     asking: streamed answers, one column a model
medium.py        a visitor's file, checked           blank.py    grey pictures and silent sounds of the same size
clip.py          any phone's clip, for any browser   matter.py   what mattered: the question asked anew without
conversation.py  who said what, with which media     saw.py      what the model saw: frames, waveform, mel, tokens
shelf.py         a visitor's files, deleted after    examples.py clips to try, rendered or from a folder
guard.py         requests that are refused           theme.py    colours and type; static/ has the page's files
"""
