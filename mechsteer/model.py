"""The one module that touches audiocraft and nnsight: load a MusicGen, look inside it, steer it.

Everything else in the package talks to `Model`, which is the same for the embedded model and for Meta's checkpoints.
"""

import contextlib
import importlib.machinery
import importlib.util
import io
import logging
import sys
import types
import warnings

import torch


def _stand_in_for_xformers() -> None:
    """Give audiocraft the names of `xformers.ops` it asks for, where xformers isn't installed.

    audiocraft's attention goes through torch by default; of xformers it only calls `ops.unbind`, which is
    `torch.unbind`. xformers has no macOS wheel and prints a page of warnings elsewhere.
    """
    if "xformers" in sys.modules or importlib.util.find_spec("xformers"):
        return
    package, ops = (types.ModuleType(name) for name in ("xformers", "xformers.ops"))
    for module in (package, ops):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, loader=None)
    ops.unbind = torch.unbind
    ops.memory_efficient_attention = torch.nn.functional.scaled_dot_product_attention
    ops.LowerTriangularMask = type("LowerTriangularMask", (), {})
    package.ops = ops
    sys.modules.update({"xformers": package, "xformers.ops": ops})


_stand_in_for_xformers()
with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")
    logging.getLogger("torch.distributed.elastic.multiprocessing.redirects").setLevel(logging.ERROR)
    from audiocraft.models import CompressionModel, LMModel, MusicGen
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
    from audiocraft.modules.conditioners import (
        AttributeDropout,
        BaseConditioner,
        ClassifierFreeGuidanceDropout,
        ConditionFuser,
        ConditioningAttributes,
        ConditioningProvider,
        TextConditioner,
    )
    from audiocraft.quantization import QuantizedResult, ResidualVectorQuantizer

__all__ = [
    "AttributeDropout",
    "BaseConditioner",
    "ClassifierFreeGuidanceDropout",
    "CompressionModel",
    "ConditionFuser",
    "ConditioningAttributes",
    "ConditioningProvider",
    "DelayedPatternProvider",
    "LMModel",
    "MusicGen",
    "QuantizedResult",
    "ResidualVectorQuantizer",
    "TextConditioner",
]
