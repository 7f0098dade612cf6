"""Listeners who aren't there: answers by rule, to try out design and analysis. Always marked as simulated.

The rule: each listener has a strength for every condition (the stated one, plus own deviations of listener
and item), and chooses between two clips with the probability 1 / (1 + exp(difference)). Nothing is heard.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .design import Design, trials


def simulate(
    design: Design,
    listeners: int = 20,
    strengths: Mapping[str, float] | None = None,
    listener_sd: float = 0.5,
    item_sd: float = 0.5,
    careless: int = 0,
    seed: int = 0,
) -> list[dict]:
    """Answers of simulated listeners, as lines like those of an answer file with `simulated` true in each.

    Parameters
    ----------
    strengths : condition -> log odds; default 0 for all, so that nothing but chance decides.
    listener_sd, item_sd : how much the difference between two conditions varies with the listener and with
        the item, in log odds, as in `listening.power.power`.
    careless : so many of the listeners always answer A (or 100), and guess in the headphone check.

    In ABX, X is told rightly with probability 1 / (1 + exp(-|difference|)); ratings are 50 + 12 strength
    + noise.
    """
    strengths, number = strengths or {}, {name: k for k, name in enumerate(design.conditions)}
    if unknown := sorted(set(strengths) - set(number)):
        raise ValueError(f"no condition {', '.join(unknown)}; there are {', '.join(number)}")
    rng = np.random.default_rng(seed)
    mean = np.array([strengths.get(name, 0.0) for name in number])
    of_item = item_sd / 2**0.5 * rng.standard_normal((len(design.items), len(mean)))
    lines: list[dict] = []
    for listener in range(1, listeners + 1):
        made = {"listener": listener, "simulated": True}
        lines.append({"kind": "listener", "name": f"simulated {listener:02d}", **made})
        mine = mean + listener_sd / 2**0.5 * rng.standard_normal(len(mean))
        absent = listener > listeners - careless
        for trial in trials(design, listener):
            line = {"kind": "answer", "trial": trial.key, **made, **trial.facts()}
            if trial.kind == "headphones":
                odds = np.ones(3) / 3 if absent else np.where([s == "quiet" for s in trial.slots], 0.96, 0.02)
                pick = int(rng.choice(3, p=odds))
            else:
                worth = (mine + of_item[trial.item])[[number[slot] for slot in trial.slots]]
                if trial.kind == "rating":
                    given = np.clip(50 + 12 * worth + 8 * rng.standard_normal(len(worth)), 0, 100).round()
                    given = np.full(len(worth), 100.0) if absent else given
                    lines.append(line | {"ratings": dict(zip(trial.slots, given.tolist(), strict=True))})
                    continue
                gap = worth[0] - worth[1]
                if trial.kind == "abx":
                    line["x"] = trial.x
                    gap = abs(gap) * (1 if trial.x == trial.slots[0] else -1)
                pick = 0 if absent or rng.random() < 1 / (1 + np.exp(-gap)) else 1
            lines.append(line | {"choice": "ABC"[pick], "chosen": trial.slots[pick]})
    return lines
