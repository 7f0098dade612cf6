"""Find and read checkpoints in Meta's format; nothing in them is run."""

import hashlib
import os
import re
import socket
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from .._shared import did_you_mean
from ..errors import MissingWeights, Unusable

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
CODECS = ("facebook/encodec_32khz", "facebook/encodec_24khz")  # what a file may name in place of weights
TRAINING_ONLY = ("embed_avg", "cluster_size", "inited")  # a quantiser's running averages
SIZES = ("small", "medium", "large", "stereo-small", "stereo-medium", "stereo-large")
NAMES = ("tiny", *(f"facebook/musicgen-{size}" for size in SIZES))


def locate(source: str | Path, filename: str) -> Path:
    """The path of one file of a checkpoint: in a folder, in the local hub cache, or downloaded into it.

    Raises MissingWeights, naming every place that was looked in, and what to do.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if (folder / filename).is_file():
            return folder / filename
        held = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise MissingWeights(
            f"{folder} has no {filename} (it holds {held}). A folder of Meta's format has {LM_FILE} and "
            f"{CODEC_FILE}; audiocraft.utils.export writes both from a training run."
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or str(source).startswith("."):
        raise MissingWeights(
            f"no model {str(source)!r}: there is no such folder, and models of the Hugging Face hub are "
            f"called like owner/name. {did_you_mean(source, NAMES, 'The embedded model is called tiny.')}"
        )
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    cache = os.environ.get("AUDIOCRAFT_CACHE_DIR") or constants.HF_HUB_CACHE
    hub = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    off = "offline mode is on, HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else ""
    state = off or ("" if _reachable(hub) else "no connection")
    try:
        return Path(hf_hub_download(str(source), filename, cache_dir=cache, local_files_only=bool(state)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        hint = did_you_mean(source, {*NAMES} - {str(source)})
        raise MissingWeights(
            f"no weights of {str(source)!r}: looked for {filename} in a folder of that name (there is none), "
            f"in the hub cache {cache} and on {hub} ({state or type(error).__name__}). {hint} Load it once "
            "with a connection, give the folder with the files, or use the embedded model: ms.load('tiny')."
        ) from error


def _reachable(host: str) -> bool:
    """Whether a connection can be made: asked first, as the hub's own client tries for half a minute."""
    try:
        if not urllib.request.getproxies():
            socket.create_connection((host, 443), timeout=5).close()
    except OSError:
        return False
    return True


def read_file(path: Path) -> dict:
    """One checkpoint file as a dict of tensors and plain values.

    Raises Unusable when it is damaged, isn't a checkpoint, or holds objects that need code to be run.
    """
    try:
        package = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged files raise of every kind, and torch's own text says how to run code
        what = f"it is damaged, or holds more than tensors and plain values ({type(error).__name__})"
        raise Unusable(f"{path} was not loaded: {what}") from error
    keys = set(package) if isinstance(package, dict) else set()
    if not ("pretrained" in keys or {"best_state", "xp.cfg"} <= keys):
        raise Unusable(f"{path} isn't an exported audiocraft checkpoint: it lacks best_state and xp.cfg")
    return package


def weights_hash(*states: Mapping[str, torch.Tensor]) -> str:
    """Twelve hex digits that name weights: names, shapes and up to 1,024 values of every tensor in use."""
    digest = hashlib.sha256()
    for state in states:
        for name, tensor in sorted(state.items()):
            if name.endswith(TRAINING_ONLY):
                continue
            values = tensor.detach().reshape(-1)
            values = values[:: max(1, len(values) // 1024)][:1024].float().cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:12]


def codec_hash(state: Mapping[str, torch.Tensor]) -> str:
    """The `weights_hash` of what a codec's codes depend on: all but the decoder."""
    return weights_hash({name: tensor for name, tensor in state.items() if "decoder" not in name.split(".")})
