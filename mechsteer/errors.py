"""Errors whose message is all there is to say: a notebook shows that sentence, without the way there."""

import contextlib
import re
from collections.abc import Iterator

__all__ = ["MissingWeights", "NoCheckout", "NoSuchDevice", "Told", "TooLittleMemory", "Unusable"]

AGAIN = "fetch it again from the project's repository (git checkout -- data)"


class Told(Exception):  # noqa: N818  (what it is called depends on what it tells)
    """The part that the others share: IPython prints the message where it would print a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"\x1b[31m{type(self).__name__}\x1b[0m: {self}"]


class MissingWeights(Told, FileNotFoundError):
    """A model's files aren't on this machine and can't be had; says where they were looked for."""


class NoCheckout(Told, FileNotFoundError):
    """The package is installed without its repository, which alone holds the embedded model and its music."""


class NoSuchDevice(Told, ValueError):
    """The device that was asked for isn't there."""


class TooLittleMemory(Told, MemoryError):
    """A model or a batch needs more memory than is free; says how much, and what needs less."""


class Unusable(Told, ValueError):
    """A file is there and isn't what it should be: damaged, or of another kind; says what to do."""


@contextlib.contextmanager
def reading(path, mend: str) -> Iterator[None]:
    """Turn whatever readers of files complain of inside the block into Unusable, which names the file."""
    try:
        yield
    except (Told, FileNotFoundError):
        raise
    except Exception as error:  # every format has many ways to complain
        why = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0][:120]
        raise Unusable(f"{path} is damaged, or isn't what it should be ({why}): {mend}") from error


@contextlib.contextmanager
def memory_told(advice: str) -> Iterator[None]:
    """Turn PyTorch's page about full memory into TooLittleMemory, which says what to do."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        told = re.search(r"CUDA out of memory|can't allocate memory", str(error))
        if not told and type(error).__name__ != "OutOfMemoryError":
            raise
        raise TooLittleMemory(f"the memory is full: {advice} ({told[0] if told else error})") from error
