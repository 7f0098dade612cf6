"""What words do without any direction: between two captions, and another caption from some second on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mechsteer.model.model import Model


@contextlib.contextmanager
def between(model: Model, source: str, target: str, share: float) -> Iterator[None]:
    """Inside, the prompt `source` has a text embedding that lies so far on the way to that of `target`.

    The captions must have as many tokens, as the embeddings are mixed token by token (ValueError).
    """
    encode = model.conditions

    def mixed(prompts, rows):
        texts = [prompts] * rows if prompts is None or isinstance(prompts, str) else list(prompts)
        ends = [encode(texts, rows), encode([target if text == source else text for text in texts], rows)]
        found = {}
        for name, (away, mask) in ends[0].items():
            to, other = ends[1][name]
            if to.shape != away.shape or not (mask == other).all():
                raise ValueError(
                    f"{source!r} and {target!r} have other numbers of tokens: no way between them"
                )
            found[name] = ((1 - share) * away + share * to, mask)
        return found

    model.conditions = mixed
    try:
        yield
    finally:
        del model.conditions
