"""Weights from the authors' stage-2 code: python scripts/convert_reference_checkpoint.py moe_model.pth out/"""

import argparse

from mister_e_hf.hub.checkpoint import save_checkpoint
from mister_e_hf.models.mister_e.convert_reference import convert_reference_checkpoint

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help=".pth file that the authors' code saved")
    parser.add_argument("folder", help="where the checkpoint folder goes")
    parser.add_argument("--labels", nargs="+", help="class names in the order of the authors' label indices")
    arguments = parser.parse_args()
    id2label = dict(enumerate(arguments.labels)) if arguments.labels else None
    try:
        model = convert_reference_checkpoint(arguments.checkpoint, id2label)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"Wrote {save_checkpoint(arguments.folder, model)}")
