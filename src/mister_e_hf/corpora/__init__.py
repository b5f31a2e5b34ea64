"""
Corpora as dialogues: from files on disk to one row per dialogue, with its turns in `utterances`.

`schema.py` defines a row; `builder.py` holds what the builders share; `iemocap.py`, `meld.py`, `cmu_mosi.py`,
`cmu_mosei.py`, `ch_sims_v2.py`, `cherma.py` and `dialogue_folder.py` read one corpus each, the corpora of clips with
scores by way of `clip_corpus.py`; `plain_pickle.py` and `frame_statistics.py` make vectors of released features;
`dialogues.py` loads a corpus; `store.py` writes a corpus folder and `publishing.py` pushes it; `licences.py` says what
the owners of each published corpus allow; `demo.py` generates a corpus of vectors.
"""
