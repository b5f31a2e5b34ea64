"""Push a checkpoint folder with every stage: python scripts/push_to_hub.py runs/demo ORG/NAME"""

import sys

from mister_e_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
