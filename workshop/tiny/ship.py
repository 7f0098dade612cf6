"""Put what training made under `data/`: `python -m workshop.tiny.ship [weights] [orchestra]` (default: both).

- `data/tiny/codec.safetensors`, `lm.safetensors`: float16 weights of the newest checkpoints, configurations
  in the metadata;
- `data/orchestra.parquet`: a row per shipped clip; `data/orchestra_codes.npz`: uint16 [clip, codebook, frame]
  in the same order, and `codec`, the hash of the codec that made them; `data/orchestra_notes.parquet`,
  `data/orchestra_chords.parquet`: what sounds when.

Shipped clips are the paired ones: every test score under six leads and four styles, every paired training
score under six leads.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from mechsteer import paths
from mechsteer.model._checkpoints import codec_hash
from mechsteer.tiny.codec import CodecConfig
from mechsteer.tiny.lm import LMConfig

SMALL = {"compression": "zstd", "compression_level": 19}
AVERAGES = ("cluster_size", "embed_avg")  # the quantiser's, used in training only


def ship_weights(work: Path, out: Path):
    """Write the newest checkpoints of `work` as float16 safetensors into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    read = lambda name: torch.load(work / f"{name}.pt", weights_only=True, map_location="cpu")
    codec = read("features")["modules"]
    if (work / "decoder.pt").exists():
        codec |= {f"decoder.{k}": v for k, v in read("decoder")["modules"].items()}
    codec = {
        k: v for k, v in codec.items() if not k.endswith(AVERAGES) and not k.startswith("decoder.views.")
    }
    steps = {
        stage: read(stage)["step"]
        for stage in ("features", "decoder", "lm")
        if (work / f"{stage}.pt").exists()
    }
    config = CodecConfig()
    _save(codec, config.__dict__, steps, out / "codec.safetensors")
    if (work / "lm.pt").exists():
        sizes = LMConfig(n_q=config.n_q, card=config.bins).__dict__
        _save(read("lm")["modules"], sizes, steps, out / "lm.safetensors")


def _save(weights: dict, config: dict, steps: dict, path: Path):
    half = _half(weights)
    with paths.replacing(path) as scratch:
        save_file(half, scratch, metadata={"config": json.dumps(config), "steps": json.dumps(steps)})
    count = sum(v.numel() for v in weights.values())
    print(f"{path.name} {path.stat().st_size / 1e6:.1f} MB, {count} numbers {steps}")


def _half(weights: dict) -> dict:
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in weights.items()}


def ship_orchestra(orchestra: Path, work: Path, out: Path):
    """Write the paired clips' codes, labels, notes and chords into `out`.

    `work` holds `codes.npy` and the codec that made them, `features.pt`: its hash goes with the codes,
    rounded as it ships, so that a model loaded from what is shipped knows them as its own.
    """
    codec = torch.load(work / "features.pt", weights_only=True, map_location="cpu")["modules"]
    clips = pd.read_parquet(orchestra / "clips.parquet")
    clips = clips[clips["paired"]]
    codes = np.load(work / "codes.npy", mmap_mode="r")[clips["clip"].to_numpy()].astype(np.uint16)
    with paths.replacing(out / "orchestra.parquet") as scratch:
        clips.reset_index(drop=True).to_parquet(scratch, index=False, **SMALL)
    with paths.replacing(out / "orchestra_codes.npz") as scratch:
        np.savez_compressed(scratch, codes=codes, codec=codec_hash(_half(codec)))
    for table in ("notes", "chords"):
        rows = pd.read_parquet(orchestra / f"{table}.parquet")
        rows = rows[rows["clip"].isin(clips["clip"])]
        rows = rows.round({"onset": 3, "offset": 3})  # ms
        small = {c: np.float32 for c in ("onset", "offset")} | {
            c: np.uint8 for c in ("pitch", "velocity") if c in rows
        }
        _write_events(rows.astype(small), out / f"orchestra_{table}.parquet")
    for path in sorted(out.glob("orchestra*")):
        print(path.name, f"{path.stat().st_size / 1e6:.1f} MB")


def _write_events(rows: pd.DataFrame, path: Path):
    """The times byte by byte, which halves them: neighbours share the upper bytes, and few values repeat."""
    times = ["onset", "offset"]
    others = [column for column in rows if column not in times]
    split = dict.fromkeys(times, "BYTE_STREAM_SPLIT")
    with paths.replacing(path) as scratch:
        rows.to_parquet(scratch, index=False, use_dictionary=others, column_encoding=split, **SMALL)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", choices=("weights", "orchestra", []), default=[])
    parser.add_argument("--orchestra", type=Path, default=Path("data/runs/orchestra"))
    parser.add_argument("--work", type=Path, default=Path("data/runs/tiny"))
    args = parser.parse_args()
    if "weights" in args.what or not args.what:
        ship_weights(args.work, paths.data() / "tiny")
    if "orchestra" in args.what or not args.what:
        ship_orchestra(args.orchestra, args.work, paths.data())


if __name__ == "__main__":
    main()
