"""Find and read checkpoints in Meta's format: `state_dict.bin` and `compression_state_dict.bin`, never running code."""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
TRAINING_ONLY = ("embed_avg", "cluster_size", "inited")  # a quantiser's running averages


def locate(source: str | Path, filename: str) -> Path:
    """The path of one file of a checkpoint: in a folder, in the local hub cache, or downloaded into it.

    Raises
    ------
    FileNotFoundError  naming every place that was looked in, and what to do.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if (folder / filename).is_file():
            return folder / filename
        held = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{folder} has no {filename} (it holds {held}). A folder of Meta's format has {LM_FILE} and {CODEC_FILE}; "
            "audiocraft.utils.export writes both from a training run."
        )
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    cache = os.environ.get("AUDIOCRAFT_CACHE_DIR") or constants.HF_HUB_CACHE
    try:
        return Path(hf_hub_download(str(source), filename, cache_dir=cache))
    except (HFValidationError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        offline = "offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else f"{type(error).__name__}"
        raise FileNotFoundError(
            f"no weights for {str(source)!r}. Looked for {filename} in a folder of that name (there is none), in the "
            f"hub cache {cache} and on huggingface.co ({offline}). Load it once with a connection, give the path of a "
            "folder with the files, or use the embedded model: ms.load('tiny')."
        ) from error


def read(path: Path) -> dict:
    """One checkpoint file as a dict of tensors and plain values.

    Raises
    ------
    ValueError  when the file is damaged, isn't a checkpoint, or holds objects that only running code could rebuild.
    """
    try:
        package = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was not loaded: it holds more than tensors and plain values, or is damaged"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error})") from error
    if not isinstance(package, dict) or not ("pretrained" in package or {"best_state", "xp.cfg"} <= set(package)):
        raise ValueError(f"{path} isn't an exported audiocraft checkpoint: it lacks best_state and xp.cfg")
    return package


def fingerprint(*states: Mapping[str, torch.Tensor]) -> str:
    """Twelve hex digits that name these weights: names, shapes and up to 1,024 values of every tensor that is used."""
    digest = hashlib.sha256()
    for state in states:
        for name, tensor in sorted(state.items()):
            if name.endswith(TRAINING_ONLY):
                continue
            values = tensor.detach().reshape(-1)
            values = values[:: max(1, len(values) // 1024)][:1024].float().cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:12]


def codec_fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """The `fingerprint` of what a codec's codes depend on: all but its decoder, which may be trained on by itself."""
    return fingerprint({name: tensor for name, tensor in state.items() if "decoder" not in name.split(".")})
