"""Train the two judges on the rendered orchestra, and measure them on scores they never heard.

    python -m workshop.tiny.judge --orchestra data/runs/orchestra --out data/tiny

writes `judge.safetensors` (the network), `ears.safetensors` (the linear models) and `judge.json`, a table of
accuracies with 95 % intervals. Only original recordings of `train` scores are used. Minutes of one core; the
spectra are kept in the work folder, so a second run is quicker. `python -m workshop.tiny.strangers` must
follow: it fits which music new judges refuse. Accuracy of lead is of all clips, refused or not.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from mechsteer import paths
from mechsteer.measures._spectra import RATE, log_mel, note_spectrum
from mechsteer.measures.intervals import share
from mechsteer.measures.judges import _statistics
from mechsteer.measures.judges._network import SLACK, Network, beat_bpm
from mechsteer.measures.judges.hear import JUDGES, hear, tempo_class
from mechsteer.tiny.vocabulary import LEADS, MODES, STYLES

CLASSES = {"lead": list(LEADS), "style": list(STYLES)}
_FRAMES = 8  # frames of log-mel per frame of notes


def choose(clips: pd.DataFrame, train: int) -> pd.DataFrame:
    """The rows used: `train` clips of train scores (one in seven paired), one lead per test score and style.

    Drawn by a hash of the clip's number, so that a larger orchestra leaves the test clips as they are.
    """
    shuffled = clips.iloc[np.argsort(pd.util.hash_array(clips["clip"].to_numpy()))]
    learn = shuffled[shuffled["split"] == "train"]
    paired = learn[learn["paired"]][: train // 7]
    learn = pd.concat([paired, learn[~learn["paired"]][: train - len(paired)]])
    test = shuffled[shuffled["split"] == "test"].drop_duplicates(["score", "style"])
    return pd.concat([learn, test]).sort_values("clip", ignore_index=True)


def cached_spectra(
    audio: np.ndarray, clips: np.ndarray, work: Path, block: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel (clip, band, frame) and notes (clip, note, frame) of clips, float16; a killed run goes on."""
    work.mkdir(parents=True, exist_ok=True)
    parts = []
    for first in range(0, len(clips), block):
        chosen = clips[first : first + block]
        path = work / f"spectra-{chosen[0]:06d}-{chosen[-1]:06d}-{len(chosen)}.npz"
        if not path.exists():
            sound = audio[chosen].astype(np.float32) / 32768
            arrays = {"mel": log_mel(sound), "notes": note_spectrum(sound)}
            with paths.replacing(path) as scratch:
                np.savez(scratch, clips=chosen, **{k: v.astype(np.float16) for k, v in arrays.items()})
        with np.load(path) as held:
            if not np.array_equal(held["clips"], chosen):
                raise ValueError(f"{path} holds other clips; give another --work folder")
            parts.append((held["mel"], held["notes"]))
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def targets(clips: pd.DataFrame) -> dict[str, np.ndarray]:
    """Class numbers of lead, style, drums and key (12 * mode + tonic from A), and tempo in bpm."""
    return {
        "lead": clips["lead"].map(CLASSES["lead"].index).to_numpy(),
        "style": clips["style"].map(CLASSES["style"].index).to_numpy(),
        "drums": clips["drums"].to_numpy().astype(int),
        "key": clips["mode"].map(MODES.index).to_numpy() * 12 + (clips["tonic"].to_numpy() - 9) % 12,
        "tempo": clips["tempo"].to_numpy(),
    }


def soft_target(tempo: np.ndarray, bpm: np.ndarray, width: float) -> np.ndarray:
    """A bump (clip, tempo) around each tempo on the logarithmic axis `bpm`, `width` steps wide; sums to 1."""
    step = abs(np.log2(bpm[1] / bpm[0]))
    bump = np.exp(-0.5 * (np.log2(tempo[:, None] / bpm) / step / width) ** 2)
    return bump / bump.sum(1, keepdims=True)


# --- the network ---


def augment(mel: torch.Tensor, notes: torch.Tensor, rng) -> tuple[torch.Tensor, torch.Tensor]:
    """What recordings differ in and music doesn't: equaliser, low-pass, smearing in time, a noise floor."""
    B, bands, _ = mel.shape
    uniform = lambda low, high: torch.from_numpy(rng.uniform(low, high, (B, 1, 1)).astype(np.float32))
    sometimes = lambda: torch.from_numpy(rng.random((B, 1, 1)) < 0.3)
    noise = lambda like: torch.from_numpy(rng.standard_normal(like.shape, dtype=np.float32))
    equaliser = _curves(B, bands, rng)
    mel = mel + equaliser
    slope = (torch.arange(bands)[:, None] - uniform(36, 64)).clamp(min=0)
    mel = torch.where(sometimes(), mel - 0.8 * slope, mel)
    smeared = F.avg_pool1d(mel, 5, 1, 2, count_include_pad=False)
    mel = torch.where(sometimes(), torch.lerp(mel, smeared, uniform(0, 1)), mel)
    mel = torch.logaddexp(mel, uniform(-11.5, -6) + _curves(B, bands, rng) + 0.4 * noise(mel))
    notes = notes * torch.exp(0.5 * _curves(B, notes.shape[1], rng)) + uniform(0, 0.02) * noise(notes).abs()
    return mel, notes


def crop(mel: np.ndarray, notes: np.ndarray, first: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`length` frames of the note spectra from `first`, and the log-mel frames of that time."""
    cut = lambda x, k: torch.from_numpy(x[..., k * first : k * (first + length) + 1].astype(np.float32))
    return cut(mel, _FRAMES), cut(notes, 1)


def _curves(B, bands, rng, knots=6, spread=0.7):
    """Smooth random curves over frequency, (clip, band, 1), standard normal times `spread` at the knots."""
    heights = torch.from_numpy(rng.normal(0, spread, (B, 1, knots)).astype(np.float32))
    return F.interpolate(heights, bands, mode="linear", align_corners=True).transpose(1, 2)


def train_network(
    mel, notes, goal, epochs: float = 6, batch: int = 32, rate: float = 3e-3, seed: int = 0
) -> Network:
    """The network, on random crops of 3 to 8 s, with tempi shifted along the axis of periods."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = Network(len(CLASSES["lead"]), len(CLASSES["style"]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
    steps = int(epochs * len(mel) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    goal = {name: torch.tensor(values) for name, values in goal.items()}
    bpm, order, mean, began = beat_bpm().numpy(), np.empty(0, int), {}, time.monotonic()
    for step in range(steps):
        if len(order) < batch:
            order = rng.permutation(len(mel))
        rows, order = np.sort(order[:batch]), order[batch:]
        frames = mel.shape[-1] // _FRAMES
        length = int(rng.choice([frames * 3 // 8, frames // 2, frames * 5 // 8, frames]))
        first = int(rng.integers(0, frames - length + 1))
        shift = int(rng.integers(-SLACK, SLACK + 1))
        out = network(*augment(*crop(mel[rows], notes[rows], first, length), rng), shift)
        tempo = goal["tempo"][rows].numpy() * 2 ** (-shift / 24)
        inside = torch.from_numpy((tempo > bpm[-2]) & (tempo < bpm[1]))
        bump = torch.from_numpy(soft_target(tempo, bpm, 0.8).astype(np.float32))
        classes = ("lead", "style", "drums")
        losses = {n: F.cross_entropy(out[n], goal[n][rows], label_smoothing=0.02) for n in classes}
        losses["key"] = F.cross_entropy(out["key"].flatten(1), goal["key"][rows])
        beat = F.cross_entropy(out["beat"], bump, reduction="none") * inside
        losses["beat"] = beat.sum() / inside.sum().clamp(min=1)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()
        mean = {n: 0.95 * mean.get(n, loss.item()) + 0.05 * loss.item() for n, loss in losses.items()}
        if step % 50 == 0 or step + 1 == steps:
            told = ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
            print(
                f"network: step {step + 1} of {steps}, {time.monotonic() - began:.0f} s; {told}", flush=True
            )
    return network.eval()


# --- the linear models ---


def train_statistics(mel, notes, goal, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of `judges._statistics`, fitted on every clip as it is and as `augment` and a crop leave it."""
    rng = np.random.default_rng(seed)
    texture, turned, around = [], [], []
    for first in range(0, 2 * len(mel), 100):
        rows = np.arange(first, min(first + 100, 2 * len(mel))) % len(mel)
        again = first >= len(mel)
        frames = notes.shape[-1] - 1
        length = int(rng.integers(3 * frames // 8, frames + 1)) if again else frames
        x, y = crop(mel[rows], notes[rows], 0, length)
        x, y = augment(x, y, rng) if again else (x, y)
        x, y = x.numpy(), y.numpy()
        texture.append(_statistics.sound_and_rhythm(x))
        turned.append(_statistics.turned(_statistics.pitch_classes(y)))
        around.append(_statistics.around(_statistics.tempogram(x)))
    data = {"texture": texture, "turned": turned, "around": around}
    data = {name: np.concatenate(parts) for name, parts in data.items()}
    weights = {}
    for name, x in data.items():
        flat = x.reshape(-1, x.shape[-1])
        weights |= {f"{name}.mean": flat.mean(0), f"{name}.spread": flat.std(0) + 1e-4}
        data[name] = _statistics.standardise(x, weights, name).astype(np.float32)
    goal = {name: np.concatenate([values, values]) for name, values in goal.items()}
    for name in ("lead", "style", "drums"):
        model = LogisticRegression(C=0.1, max_iter=400).fit(data["texture"], goal[name])
        coefficients, bias = model.coef_, model.intercept_
        if len(bias) == 1:  # two classes: the score of the second against the first
            coefficients, bias = (np.stack([-x[0], x[0]]) / 2 for x in (coefficients, bias))
        weights |= {f"{name}.weight": coefficients, f"{name}.bias": bias}
    mode, tonic = np.divmod(goal["key"], 12)
    hit = np.zeros((len(mode), 12, 2))
    hit[np.arange(len(mode)), tonic, mode] = 1
    weights |= _templates("key", data["turned"], hit, np.ones((len(mode), 1, 2), bool))
    style = np.eye(len(CLASSES["style"]), dtype=bool)[goal["style"]][:, None]
    hit = soft_target(goal["tempo"], _statistics.BPM, 0.7)[..., None] * style
    return weights | _templates("beat", data["around"], hit, style)


def _templates(name, x, hit, allowed, penalty=3e-4):
    """Linear templates (class, feature) held against candidates: softmax over all pairs should give `hit`.

    x : float (clip, candidate, feature); hit : (clip, candidate, class), sums to 1; allowed : which classes
        count.
    """
    clips, candidates, size = x.shape
    flat, classes = x.reshape(-1, size), hit.shape[-1]
    allowed = np.broadcast_to(allowed, hit.shape)

    def loss(parameters):
        weight, bias = parameters[:-classes].reshape(classes, size), parameters[-classes:]
        scores = (flat @ weight.T.astype(np.float32)).reshape(hit.shape) + bias
        scores = log_softmax(np.where(allowed, scores, -1e9).reshape(clips, -1), axis=1).reshape(hit.shape)
        slope = ((np.exp(scores) - hit) / clips).reshape(-1, classes)
        gradient = (slope.T.astype(np.float32) @ flat).astype(np.float64) + 2 * penalty * weight
        value = -(hit * np.where(allowed, scores, 0)).sum() / clips + penalty * np.square(weight).sum()
        return value, np.concatenate([gradient.ravel(), slope.sum(0)])

    start = np.zeros(classes * (size + 1))
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 60}).x
    return {f"{name}.weight": best[:-classes].reshape(classes, size), f"{name}.bias": best[-classes:]}


# --- the table ---


def measure_judges(audio: np.ndarray, clips: pd.DataFrame, seconds: float, weights: Path) -> list[dict]:
    """The judges in `weights` on the first `seconds` of clips: share right and interval, each attribute."""
    rows = []
    heard = hear(audio[clips["clip"], None, : round(seconds * RATE)], RATE, weights=weights)
    for judge, table in heard.groupby("judge"):
        table, truth = table.reset_index(drop=True), clips.reset_index(drop=True)
        table["lead"] = table.filter(like="p_lead_").idxmax(axis=1).str.removeprefix("p_lead_")
        right = {name: table[name] == truth[name] for name in ("lead", "style", "drums", "mode", "tonic")}
        right["tempo_class"] = table["tempo_class"] == tempo_class(truth["tempo"])
        right["tempo within 4 %"] = (table["tempo"] / truth["tempo"] - 1).abs() <= 0.04
        common = {"judge": judge, "seconds": seconds, "n": len(truth)}
        common |= {"scores": int(truth["score"].nunique())}
        for name, hits in right.items():
            values = dict(zip(("accuracy", "low", "high"), share(hits), strict=True))
            rows.append(
                common | {"attribute": name} | {key: round(value, 4) for key, value in values.items()}
            )
        r = float(np.corrcoef(table["tempo"], truth["tempo"])[0, 1])
        rows.append(common | {"attribute": "tempo", "r": round(r, 4)})
    return rows


def save(arrays: dict[str, np.ndarray], path: Path, half: bool) -> None:
    """Weights as safetensors, with the names of the classes; `half` stores float16."""
    from safetensors.numpy import save_file

    shrink = lambda x: x.astype(np.float16 if half else np.float32) if x.dtype.kind == "f" else x
    arrays = {name: np.ascontiguousarray(shrink(np.asarray(x))) for name, x in arrays.items()}
    with paths.replacing(path) as scratch:
        save_file(arrays, scratch, metadata={"classes": json.dumps(CLASSES)})


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Train and measure the two judges.")
    parser.add_argument("--orchestra", type=Path, default=Path("data/runs/orchestra"))
    parser.add_argument("--out", type=Path, default=Path("data/tiny"))
    parser.add_argument(
        "--work", type=Path, default=Path("data/runs/judge"), help="where the spectra are kept"
    )
    parser.add_argument("--clips", type=int, default=4000, help="training clips (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument(
        "--only", choices=("network", "statistics", "measure"), help="one step instead of all"
    )
    options = parser.parse_args(arguments)
    if not (options.orchestra / "clips.parquet").exists():
        raise SystemExit(f"{options.orchestra} holds no orchestra; `make orchestra` renders one there first")
    audio = np.load(options.orchestra / "audio.npy", mmap_mode="r")
    clips = choose(pd.read_parquet(options.orchestra / "clips.parquet"), options.clips)
    learn, test = (clips[clips["split"] == split] for split in ("train", "test"))
    if options.only != "measure":
        mel, notes = cached_spectra(audio, learn["clip"].to_numpy(), options.work)
        goal = targets(learn)
    if options.only in (None, "statistics"):
        save(train_statistics(mel, notes, goal), options.out / JUDGES["features"], half=False)
    if options.only in (None, "network"):
        network = train_network(mel, notes, goal, options.epochs)
        arrays = {name: value.numpy() for name, value in network.state_dict().items()}
        save(arrays, options.out / JUDGES["cnn"], half=True)
    if options.only in (None, "measure"):
        rows = [row for seconds in (8.0, 5.0) for row in measure_judges(audio, test, seconds, options.out)]
        command = f"python -m workshop.tiny.judge --clips {options.clips} --epochs {options.epochs:g}"
        card = {"command": command, "train_clips": len(learn), "interval": "Wilson, 95 %", "test": rows}
        paths.replace(options.out / "judge.json", json.dumps(card, indent=1) + "\n")
        print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
