"""The embedded model's language model: audiocraft's `LMModel` with a text conditioner of nine slots.

The conditioner reads free text (`captions.parse`). Every attribute owns one slot, one key of the
cross-attention: the learnt vector of what the text says of it, the mean where it names two ("piano and
guitar"), the slot's own "unsaid" vector where it says nothing. A tempo in bpm is interpolated between the
vectors of anchors 15 bpm apart, so that it is a continuous dial. A text that names a tonic and a mode also
names a key. Unconditional means all slots unsaid.
"""

import warnings
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import nn

from ..model._audiocraft import DelayedPatternProvider, LMModel, conditioners
from .captions import parse
from .vocabulary import LEADS, MODES, STYLES

SLOTS = {  # what a text can say, and in which values: None, "unsaid", comes to each
    "lead": tuple(LEADS),
    "style": STYLES,
    "drums": (True, False),
    "tempo": ("slow", "medium", "fast", *np.arange(60.0, 181.0, 15.0).tolist()),
    "mode": MODES,
    "tonic": tuple(range(12)),
    "key": tuple(product(range(12), MODES)),
    "register": ("low", "mid", "high"),
    "loudness": ("soft", "medium", "loud"),
}


@dataclass(frozen=True)
class LMConfig:
    """Sizes of the LM; `max_duration` in seconds."""

    dim: int = 256
    num_heads: int = 4
    num_layers: int = 6
    n_q: int = 6
    card: int = 512
    max_duration: float = 30.0


class SlotConditioner(conditioners.TextConditioner):
    """Text to a vector per slot: `tokenize` gives weights [B, item], `forward` [B, slot, dim] and a mask."""

    def __init__(self, output_dim: int, dim: int = 64):
        super().__init__(dim, output_dim)
        self.items = [(slot, value) for slot, values in SLOTS.items() for value in (None, *values)]
        self.index = {item: i for i, item in enumerate(self.items)}
        self.vectors = nn.Embedding(len(self.items), dim)
        owner = torch.tensor([list(SLOTS).index(slot) for slot, _ in self.items])
        self.register_buffer("owner", nn.functional.one_hot(owner, len(SLOTS)).float(), persistent=False)
        self.reported = set()

    def weights(self, said: dict) -> np.ndarray:
        """What a text says (slot to list of values) as weights [item] that sum to 1 in every slot."""
        row = np.zeros(len(self.items), dtype=np.float32)
        said = said | {"key": list(product(said.get("tonic", ()), said.get("mode", ())))}
        for slot, values in SLOTS.items():
            mentions = said.get(slot) or [None]
            for value in mentions:
                share = 1 / len(mentions)
                if isinstance(value, float) and slot == "tempo":
                    anchors = [v for v in values if isinstance(v, float)]
                    place = np.interp(value, anchors, range(len(anchors)))
                    low = min(int(place), len(anchors) - 2)
                    row[self.index[slot, anchors[low]]] += share * (low + 1 - place)
                    row[self.index[slot, anchors[low + 1]]] += share * (place - low)
                else:
                    row[self.index[slot, value]] += share
        return row

    def tokenize(self, texts) -> torch.Tensor:
        rows = []
        for text in texts:
            said, unknown = parse(text or "")
            if new := set(unknown) - self.reported:
                self.reported |= new
                told = f"words outside the embedded model's vocabulary are ignored: {', '.join(sorted(new))}"
                warnings.warn(told, stacklevel=2)
            rows.append(self.weights(said))
        return torch.from_numpy(np.stack(rows)).to(self.vectors.weight.device)

    def forward(self, weights: torch.Tensor):
        table = self.vectors.weight
        vectors = torch.einsum("bi,is,id->bsd", weights.to(table.dtype), self.owner, table)
        return self.output_proj(vectors), torch.ones(vectors.shape[:2], device=vectors.device)


def build_lm(config: LMConfig) -> LMModel:
    """audiocraft's LM as MusicGen sets it (delay pattern, pre-norm, cross-attention to text), at our size.

    Unlike MusicGen's, its self-attention has rotary positions beside the sinusoids: so short a training else
    hardly learns to find what comes back after a beat or a bar. Weights are for the caller to load or draw.
    """
    fused = {"cross": ["description"], "prepend": [], "sum": [], "input_interpolate": []}
    sizes = {name: size for name, size in vars(config).items() if name != "max_duration"}
    blocks = {"hidden_scale": 4, "norm": "layer_norm", "norm_first": True, "activation": "gelu"}
    blocks |= {"dropout": 0.0, "causal": True, "memory_efficient": True, "cross_attention": True}
    blocks |= {"bias_proj": False, "bias_ff": False, "bias_attn": False, "positional_embedding": "sin_rope"}
    delays = DelayedPatternProvider(config.n_q, delays=list(range(config.n_q)))
    texts = conditioners.ConditioningProvider({"description": SlotConditioner(config.dim)})
    lm = LMModel(delays, texts, conditioners.ConditionFuser(fused), **sizes, **blocks)
    rope = lm.transformer.rope
    rope.register_buffer("frequencies", rope.frequencies, persistent=False)  # no weight, shared by all layers
    return lm
