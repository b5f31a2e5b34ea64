"""Embed a corpus with trained encoders: accelerate launch scripts/embed.py RECIPE --corpus FOLDER --out VECTORS"""

import sys

from mister_e_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
