"""Speed of the package on a GPU, as a share of the rate at which the card multiplies matrices.

    python scripts/benchmarks/gpu.py                        all rows, at most four and a half minutes
    python scripts/benchmarks/gpu.py --rows stage2 prediction --json gpu.json
    python scripts/benchmarks/gpu.py --quick                a test run with tiny sizes on the CPU

Weights and inputs are random. Operations are counted on real tokens: padding, and what is computed a second time to
save memory, are not counted. After the time limit no further row is measured, and a message says so.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_egmf import measure_egmf
from gpu_encoders import measure_embedding, measure_training
from gpu_measures import Device
from gpu_stage2 import measure_prediction, measure_stage2

# Each measures on a device, given its matrix rate, and prints its rows; True asks for tiny sizes.
ROWS: dict[str, Callable[[Device, float, bool], list[dict[str, Any]]]] = {
    "stage2": measure_stage2,
    "prediction": measure_prediction,
    "stage1": measure_training,
    "embedding": measure_embedding,
    "egmf": measure_egmf,
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="what to measure (default: all)")
    parser.add_argument("--device", help="by default the GPU, or with --quick the CPU")
    parser.add_argument(
        "--minutes", type=float, default=4.5, help="after which nothing new is measured (default: 4.5)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one step")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    options = parser.parse_args(arguments)
    name = options.device or ("cpu" if options.quick else "cuda")
    if torch.device(name).type == "cuda" and not torch.cuda.is_available():
        parser.error("There is no GPU; --quick tries everything on the CPU")
    transformers.utils.logging.disable_progress_bar()
    device = Device(name, 600 if options.quick else options.minutes)
    rate = device.matrix_rate(256 if options.quick else 8192 if device.is_gpu else 2048)
    results: dict[str, Any] = {"device": str(device), "matrix_rate": rate}
    print(f"{device}\nbfloat16 matrix product: {rate / 1e12:,.2f} TFLOP/s, the rate that all are compared with")
    for name in options.rows:
        print(f"\n{name}\n", flush=True)
        results[name] = ROWS[name](device, rate, options.quick)
    if not device.has_time:
        print("\nthe time limit was reached, so some rows were not measured; raise --minutes")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
