"""Is a clip like the music that a judge learnt from? `hear` refuses to name the lead of one that isn't.

Relative Mahalanobis distance in a judge's embedding: the squared distance to the nearest lead minus that to
known music as a whole, each in its own covariance (shrunk), along the five axes on which the leads differ
most against their spread; elsewhere the two all but cancel. What lies between the leads or beyond them scores
high. `python -m workshop.tiny.strangers` fits it, and measures what it tells apart.

Source: Ren et al. 2021 (arXiv 2106.09022), after Lee et al. 2018 (arXiv 1807.03888).
"""

import numpy as np
from scipy.special import expit

PARTS = ("mean", "axes", "leads", "spread", "limits", "scale")
SECONDS = (3.0, 5.0, 8.0)  # lengths of clip at which `limits` were set


def scores(x: np.ndarray, known: dict[str, np.ndarray]) -> np.ndarray:
    """Relative distance (clip,) of embeddings (clip, dim), in squared deviations; high is strange."""
    z = (x - known["mean"]) @ known["axes"]  # within a lead, known music has variance 1 on each axis
    nearest = np.square(z[:, None] - known["leads"]).sum(-1).min(1)
    return nearest - (np.square(z) / known["spread"]).sum(-1)


def novelty(x: np.ndarray, seconds: float, known: dict[str, np.ndarray]) -> np.ndarray:
    """Novelty (clip,), 0 to 1: at most .5 for 95 % of known music, whatever the length of the clips."""
    limit = np.interp(seconds, SECONDS, known["limits"])
    return expit((scores(x, known) - limit) / known["scale"])
