"""What every folder needs: modules that load when they are first asked for, a progress bar, a suggestion."""

import difflib
import importlib
from collections.abc import Callable, Iterable


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
