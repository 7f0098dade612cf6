"""Errors whose message is all there is to say: a notebook shows that sentence, without the way there."""

__all__ = ["MissingWeights", "NoSuchDevice", "Told", "TooLittleMemory"]


class Told(Exception):  # noqa: N818  (what it is called depends on what it tells)
    """The part that the others share: IPython prints the message where it would print a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"\x1b[31m{type(self).__name__}\x1b[0m: {self}"]


class MissingWeights(Told, FileNotFoundError):
    """A model's files aren't on this machine and can't be had; says where they were looked for."""


class NoSuchDevice(Told, ValueError):
    """The device that was asked for isn't there."""


class TooLittleMemory(Told, MemoryError):
    """A model or a batch needs more memory than is free; says how much, and what needs less."""
