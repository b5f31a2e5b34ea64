"""Train an encoder of stage 1: accelerate launch scripts/train_encoder.py RECIPE --modality text --corpus DIR"""

import sys

from mister_e_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train_encoder", *sys.argv[1:]]))
