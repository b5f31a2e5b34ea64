"""Train a recipe, stage 2 or all stages: accelerate launch scripts/train.py hub_configs/mister-e-meld-small.yaml --corpus FOLDER"""

import sys

from mister_e_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
