"""Which device and dtype a model gets, and whether its memory is there: told before any work is lost."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from .errors import NoSuchDevice, TooLittleMemory

SMALL = 100_000_000  # parameters; float32 is fast enough below
_CALM = threading.RLock()


def check_device(name: str | None) -> None:
    """NoSuchDevice, in a sentence, unless PyTorch has this device; None is whatever there is."""
    kind, _, number = str(name or "cpu").partition(":")
    found = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if found.get(kind, 0) <= int(number or 0):
        there = ", ".join(f"{kind}:{i}" if i else kind for kind, n in found.items() for i in range(n))
        advice = "leave device out to use what there is, or give device='cpu'"
        raise NoSuchDevice(f"device={str(name)!r}: PyTorch sees {there} on this machine; {advice}")


def check_memory(name: str, needed: float) -> None:
    """TooLittleMemory if a model of `needed` bytes doesn't fit into what is free here or in the container."""
    import psutil

    free = psutil.virtual_memory().available
    limit, used, stat = (Path("/sys/fs/cgroup", f"memory.{k}") for k in ("max", "current", "stat"))
    if limit.is_file() and limit.read_text().strip().isdigit():
        cached = dict(line.split() for line in stat.read_text().splitlines()).get("inactive_file", 0)
        free = min(free, int(limit.read_text()) - int(used.read_text()) + int(cached))
    if needed > free:
        raise TooLittleMemory(
            f"{name} takes {needed / 1e9:.1f} GB of memory while it loads and {max(free, 0) / 1e9:.1f} GB "
            "are free: close other kernels, or take a smaller model (musicgen-small 2 GB, tiny 0.1 GB)"
        )


def named_dtype(name: torch.dtype | str) -> torch.dtype:
    """The dtype of that name; ValueError, in a sentence, unless it is one that a language model can have."""
    known = ("float32", "float16", "bfloat16")
    if (short := str(name).removeprefix("torch.")) not in known:
        advice = "leave dtype out to use what suits the device"
        raise ValueError(f"dtype={name!r} isn't one of {', '.join(known)}; {advice}")
    return getattr(torch, short)


def pick_dtype(device: str, lm: torch.nn.Module) -> torch.dtype:
    """What suits a device and the size of a language model; see `load`."""
    if sum(p.numel() for p in lm.parameters()) < SMALL or device == "mps":
        return torch.float32
    if device == "cuda":
        return torch.float16
    native = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return torch.bfloat16 if any(getattr(torch.cpu, f, lambda: False)() for f in native) else torch.float32


@contextlib.contextmanager
def calm(lm: torch.nn.Module) -> Iterator[None]:
    """One thread for a small model: two gain little, and wait for each other when the machine is busy.

    The number is the process's, so one block at a time.
    """
    if sum(p.numel() for p in lm.parameters()) >= SMALL:
        yield
        return
    with _CALM:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@torch.no_grad()
def pick_device(lm: torch.nn.Module) -> str:
    """CUDA, else MPS if it computes `lm` as the CPU does, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    if not torch.backends.mps.is_available():
        return "cpu"
    codes = torch.arange(8).expand(1, lm.num_codebooks, 8)
    text = torch.randn(1, 4, lm.dim, generator=torch.Generator().manual_seed(0)), torch.ones(1, 4)
    name = lm.condition_provider.text_conditions[0]
    run = lambda to: lm.to(to)(codes.to(to), [], {name: tuple(t.to(to) for t in text)}).cpu()
    agree = torch.allclose(run("mps"), run("cpu"), rtol=1e-2, atol=1e-2)
    if not agree:
        warnings.warn("MPS doesn't compute what the CPU does with this torch; using the CPU", stacklevel=2)
    return "mps" if agree else "cpu"
