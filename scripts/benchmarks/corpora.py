"""Time and memory of reading a corpus of generated recordings: python scripts/benchmarks/corpora.py

Each size runs in its own process. Memory is the peak above that of the same process before it read anything. Seconds
of audio decoded per second are given for each kind of file, with the ratio to the first.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

TURNS, SECONDS = 10, 4
KINDS = {
    "wav, 16 kHz mono": ("wav", 16_000, 1),
    "wav, 44.1 kHz stereo": ("wav", 44_100, 2),
    "flac, 44.1 kHz stereo": ("flac", 44_100, 2),
}


def write_folder(folder: Path, dialogues: int):
    """Write dialogues of noise, one file per turn, and their table."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["dialogue_id", "order", "text", "file_name", "emotion"])
        for dialogue in range(dialogues):
            for turn in range(TURNS):
                name = f"{dialogue}_{turn}.wav"
                soundfile.write(folder / name, 0.1 * generator.standard_normal(16_000 * SECONDS), 16_000)
                table.writerow([f"d{dialogue}", turn, f"turn {turn} of {dialogue}", name, ["joy", "anger"][turn % 2]])


def measure(folder: Path, work: Path) -> dict:
    """Build and write one corpus, in this process."""
    import datasets

    from mister_e_hf import DialogueFolder
    from mister_e_hf.corpora.store import write_corpus

    datasets.disable_progress_bars()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    builder = DialogueFolder(folder, cache_dir=str(work / "cache"))
    builder.download_and_prepare()
    built = time.perf_counter()
    write_corpus(builder.as_dataset(), work / "corpus", embed_audio=True)
    written = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = sum(path.stat().st_size for path in (work / "corpus").iterdir())
    return {"read": built - start, "write": written - built, "mib": (peak - before) / 1024, "size": size / 2**20}


def decoding(work: Path) -> dict[str, float]:
    """Seconds of audio decoded per second, by kind of file."""
    from mister_e_hf import load_audio

    speeds = {}
    for name, (suffix, rate, channels) in KINDS.items():
        path = work / f"audio.{suffix}"
        soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((rate * SECONDS, channels)), rate)
        load_audio(path)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < 1:
            load_audio(path)
            count += 1
        speeds[name] = count * SECONDS / (time.perf_counter() - start)
    return speeds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, nargs="+", default=[25, 100, 400], help="sizes (default: 25 100 400)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(measure(arguments.folder / "source", arguments.folder)))
        return
    print(f"{'dialogues':>9} {'audio, s':>9} {'read, s':>8} {'write, s':>8} {'peak, MiB':>9} {'tables, MiB':>11}")
    for dialogues in arguments.dialogues:
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder) / "source", dialogues)
            words = [sys.executable, __file__, "--folder", folder]
            call = subprocess.run(
                words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, encoding="utf-8"
            )
            found = json.loads(call.stdout)
        print(
            f"{dialogues:>9} {dialogues * TURNS * SECONDS:>9,} {found['read']:>8.1f} {found['write']:>8.1f} "
            f"{found['mib']:>9.0f} {found['size']:>11.0f}"
        )
    with tempfile.TemporaryDirectory() as folder:
        speeds = decoding(Path(folder))
    first = next(iter(speeds.values()))
    for name, speed in speeds.items():
        print(f"{name:22} {speed:>8,.0f} s of audio a second  {speed / first:.2f}")


if __name__ == "__main__":
    main()
