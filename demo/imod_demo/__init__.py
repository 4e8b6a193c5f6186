"""The demo: a page on which anyone sees and hears what a model understands. Talks HTTP only; needs no torch.

cli.py           `imod demo`                            app.py       the page as a server: shares, logs, fetches nothing
desk.py          models to ask, examples, files         page.py      components, and what sets off what
talk.py          asking: one or two answers streamed    acts.py      what happens then, in a visitor's order
conversation.py  who said what, with which media        matter.py    what mattered: asked anew without sound, picture
medium.py        a visitor's file, checked              blank.py     grey pictures and silence of the same size
clip.py          any phone's clip for any browser       saw.py       what the model saw: frames, mel, tokens, speed
shelf.py         a visitor's files, deleted after       examples.py  clips to try, rendered or from a folder
guard.py         requests that are refused              view.py, theme.py, static/   the page's own HTML and looks
"""
