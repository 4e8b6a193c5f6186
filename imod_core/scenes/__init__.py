"""The embedded audio-visual question set: short clips rendered from real drawings and sampled instruments.

    instruments.py   what can be seen and heard: names, MIDI programs, registers, phrases
    pictures.py      drawings of the instruments in several styles, and the picture of a scene
    sounds.py        takes of the instruments, and the stereo mix of a scene
    composition.py   a scene: who stands where, who sounds, how loud, when
    questions.py     templates of the nine MUSIC-AVQA types
    balance.py       the ledger that keeps answers unguessable from one modality
    captions.py      what a scene's picture and sound are, in words
    plan.py          settings, splits, and the scenes and questions of each
    render.py        scenes as png, wav and mp4
    dataset.py       sample files, notice and manifest

In the manner of MUSIC-AVQA (Li et al., CVPR 2022): its question types and style of answers, none of its data.
"""
