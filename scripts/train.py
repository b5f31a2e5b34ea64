"""Train stage 2 or all stages of a recipe: accelerate launch scripts/train.py RECIPE --corpus FOLDER"""

import sys

from mister_e_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
