"""Score a checkpoint on a corpus: python scripts/evaluate_checkpoint.py runs/demo --corpus FOLDER"""

import sys

from mister_e_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
