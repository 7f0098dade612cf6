"""The rows of a call: one value for all clips, or one for each."""

from .._shared import number


def listed(values) -> list:
    """One for all rows, or one per row, as a list."""
    single = isinstance(values, str | bytes) or not hasattr(values, "__iter__")
    return [values] if single else list(values)


def each(values, n: int, what: str) -> list:
    """The same, as a list of `n`; ValueError for another number, and for prompts that aren't text."""
    values = listed(values)
    if len(values) not in (1, n):
        raise ValueError(f"{len(values)} {what} for {n} rows; give one for all, or one each")
    if what == "prompts" and (odd := [v for v in values if not (v is None or isinstance(v, str))]):
        raise ValueError(f"prompts are text, or None for no text, not {odd[0]!r:.80}")
    return values * n if len(values) == 1 else values


def in_rows(prompts, seed, steering, audio_prompt=None) -> list[list]:
    """Prompts, seeds, steerings and audio prompts, as many as the longest list has; see `Model.generate`."""
    seeds = [number("seed", s, 0, 2**63 - 1, whole=True) for s in listed(seed)]
    lists = {"prompts": listed(prompts), "seeds": seeds, "steerings": listed(steering)}
    lists["audio prompts"] = listed(audio_prompt)
    n = max(map(len, lists.values()))
    if not hasattr(seed, "__iter__") and len(lists["prompts"]) > 1:
        lists["seeds"] = [seeds[0] + i for i in range(len(lists["prompts"]))]
    return [each(values, n, what) for what, values in lists.items()]
