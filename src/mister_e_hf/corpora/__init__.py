"""Corpora as dialogues: from what is on disk to one row per dialogue, its turns in `utterances`.

`schema.py` says what a row holds; `builder.py` is what the corpora share; `iemocap.py`, `meld.py`, `cmu_mosi.py` and
`dialogue_folder.py` read one layout each; `store.py` writes a corpus folder and `publishing.py` pushes it. `demo.py`
generates vectors.
"""
