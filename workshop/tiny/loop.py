"""The loop that every stage of `train` runs in, which resumes after a kill at any moment; and Muon."""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from mechsteer import paths


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al. 2024), for matrices; steps of RMS 0.2 x `lr`.

    torch.optim.Muon does the same in bfloat16 only, which CPUs without bf16 multiply units run a hundred
    times slower.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.05):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(p.shape)))


def orthogonalise(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix to x, roughly: five Newton-Schulz steps of Jordan's quintic."""
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


def learning_rate(step: int, steps: int, warmup: int = 40, decay: float = 0.45) -> float:
    """Share of the peak rate: a linear start, a plateau, a linear fall over the last `decay` of the run."""
    return max(0.0, min((step + 1) / warmup, (steps - step) / (decay * steps), 1.0))


def loop(name, steps, modules, optimizers, loss_of, work: Path, every: float = 60.0):
    """Run `loss_of(step) -> (loss, values to log)` up to step `steps`; log and checkpoints lie in `work`."""
    path, log = work / f"{name}.pt", work / f"{name}.log"
    start, seconds = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=next(modules.parameters()).device)
        start, seconds = state["step"], state["seconds"]
        modules.load_state_dict(state["modules"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    peaks = [[group.setdefault("peak", group["lr"]) for group in o.param_groups] for o in optimizers]
    began, saved_at, means = time.time() - seconds, time.time(), {}
    for step in range(start, steps):
        rate = learning_rate(step, steps)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, peak, strict=True):
                group["lr"] = lr * rate
        loss, values = loss_of(step)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in modules.parameters() if p.grad is not None], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for key, value in values.items():
            means.setdefault(key, []).append(float(value.detach()))
        last = step + 1 == steps
        if last or (step + 1) % 25 == 0:
            row = {
                "step": step + 1,
                "of": steps,
                "seconds": round(time.time() - began, 1),
                "rate": round(rate, 4),
            }
            row |= {key: round(float(np.mean(v)), 4) for key, v in means.items()}
            means = {}
            with log.open("a") as f:
                f.write(json.dumps(row) + "\n")
            print(name, row, flush=True)
        if last or time.time() - saved_at > every:
            state = {"step": step + 1, "seconds": time.time() - began, "modules": modules.state_dict()}
            with paths.replacing(path) as scratch:
                torch.save(state | {"optimizers": [o.state_dict() for o in optimizers]}, scratch)
            saved_at = time.time()
