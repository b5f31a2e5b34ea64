"""One corpus embedded by several processes: torchrun --nproc_per_node 2 tests/distributed_embedding.py CORPUS SPEECH TEXT OUT

The second process is slow to see what is there, while the first one goes on.
"""

import sys
import time

from accelerate import PartialState

from mister_e_hf.embedding import RECORD, embed_corpus
from mister_e_hf.encoder_experiment import load_encoder

if __name__ == "__main__":
    corpus, speech, text, out = sys.argv[1:]
    encoders = {"speech": load_encoder(speech), "text": load_encoder(text)}
    state = PartialState(cpu=True)
    assert state.num_processes == 2

    def wait(event, words):
        if event == "open" and str(words[0]).endswith(RECORD):
            time.sleep(2)

    if state.process_index == 1:
        sys.addaudithook(wait)
    embed_corpus(corpus, encoders, out, shard_turns=8)
