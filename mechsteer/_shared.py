"""What every folder needs: modules that load when first asked for, a progress bar, checks of input."""

import contextlib
import difflib
import functools
import importlib
import inspect
import math
import threading
from collections.abc import Callable, Iterable, Iterator


def modules(package: str, names: str) -> tuple[Callable, Callable]:
    """`__getattr__` and `__dir__` of a package whose modules, named in one string, load on first use."""
    known = names.split()

    def load(name: str):
        if name in known:
            return importlib.import_module(f".{name}", package)
        raise AttributeError(f"{package} has no module {name!r}; it has {', '.join(known)}")

    return load, lambda: sorted(known)


def progress(steps: Iterable | None = None, show: bool = True, **options):
    """tqdm's bar as it looks everywhere here: only for what takes longer than 2 s, and gone when done."""
    from tqdm.auto import tqdm

    return tqdm(steps, **{"delay": 2, "mininterval": 0.5, "leave": False, "disable": not show, **options})


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """ "Did you mean 'guitar'?" if one of `known` is close to `name`, else `otherwise`."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], 1, 0.6)
    return f"Did you mean {close[0]!r}?" if close else otherwise


def spelled(function: Callable, also: Iterable[str] = ()) -> Callable:
    """Refuse a keyword that a function (or class) doesn't have, with the likely one: a TypeError.

    `also` are the keywords that its own last parameter, `**options`, may hold.
    """
    if isinstance(function, type):
        function.__init__ = spelled(function.__init__)
        return function
    known = [*inspect.signature(function).parameters, *also]
    name = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*given, **options):
        for option in options.keys() - set(known):
            hint = did_you_mean(option, known, f"It takes {', '.join(k for k in known if k != 'self')}")
            raise TypeError(f"{name}() has no option {option!r}. {hint}")
        return function(*given, **options)

    return call


def number(what: str, value, least: float = -math.inf, most: float = math.inf, whole: bool = False):
    """The value as an int or float; ValueError, in a sentence, unless it is real, finite and in range."""
    try:
        single = not isinstance(value, str | bytes | bool) and getattr(value, "shape", ()) == ()
        found = int(value) if whole else float(value)
        if single and math.isfinite(value) and least <= found <= most and (not whole or found == value):
            return found
    except (TypeError, ValueError, OverflowError):  # complex, None, a list, NaN as an int, 10**400
        pass
    within = f" from {least:g} to {most:g}" if most < math.inf else f" of {least:g} or more"
    kind = "a whole number" if whole else "a finite number"
    raise ValueError(f"{what}={value!r:.80} isn't {kind}{within if least > -math.inf else ''}")


class OneAtATime:
    """Lets one thread at a time use what two would spoil for each other, such as a model's hooks and caches.

    `with alone("nll"): ...`; other threads wait. Within the block called "trace" nothing else may begin.
    """

    def __init__(self):
        self._lock, self._tracing = threading.RLock(), False

    @contextlib.contextmanager
    def __call__(self, call: str) -> Iterator[None]:
        with self._lock:
            if self._tracing:
                raise RuntimeError(
                    f"{call} inside `with model.trace(...)` would run through the trace's own interventions: "
                    f"save() what you need, and begin {call} after the block"
                )
            self._tracing = call == "trace"
            try:
                yield
            finally:
                self._tracing = False
