"""Train the embedded model from nothing: `python -m workshop.tiny.train`, after `workshop.tiny.orchestra`.

Stages, in order; each resumes from its newest checkpoint after a kill at any moment:

    features   encoder and quantiser, to predict the encoder's own features from the codes, all at 25 frames/s
    encode     codes of every clip of the orchestra; the encoder is frozen from here on
    decoder    codes to sound, through multi-resolution spectral losses
    lm         codes given captions

`decoder` and `lm` need only `encode` and can run side by side (`--stage lm --threads 1`). A GPU is used where
there is one.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from mechsteer import paths
from mechsteer.tiny.codec import Codec, CodecConfig
from mechsteer.tiny.lm import LMConfig, build_lm

from .captions import caption
from .loop import Muon, loop

STAGES = ("features", "encode", "decoder", "lm")
SHARE_UNSAID, SHARE_FULL = 0.12, 0.45  # of the LM's rows: no caption; a caption that says everything
SHARE_SLIPPED, MOST_SLIPS = (
    0.5,
    0.4,
)  # of the LM's rows: those that hear own slips; at most this share of codes


class Orchestra:
    """The rendered clips of a folder: labels, and audio [clip, sample] read as needed."""

    def __init__(self, folder: Path, device):
        self.labels = pd.read_parquet(folder / "clips.parquet")
        self.audio = np.load(folder / "audio.npy", mmap_mode="r")
        self.train = self.labels.loc[self.labels["split"] == "train", "clip"].to_numpy()
        self.device = device

    def crops(self, clips, starts, samples: int) -> torch.Tensor:
        """Audio [B, 1, sample] from sample `starts` of `clips`."""
        rows = np.stack([self.audio[c, s : s + samples] for c, s in zip(clips, starts, strict=True)])
        return torch.from_numpy(rows.astype(np.float32) / 32768.0)[:, None].to(self.device)


def train_features(codec: Codec, orchestra: Orchestra, work: Path, steps: int, batch: int, warmup: int = 250):
    """Encoder, quantiser, coarse trunk: predict the encoder's features, from step `warmup` through codes."""
    samples = 100 * codec.config.hop
    if not (work / "features.pt").exists():
        clips = np.random.default_rng(0).choice(orchestra.train, 512)
        audio = orchestra.crops(clips, np.zeros(512, int), samples)
        views = codec.features.log_magnitudes(audio).flatten(0, 1)
        codec.features.mean.copy_(views.mean(0))
        codec.features.std.copy_(views.std(0))
    books = [layer._codebook for layer in codec.quantizer.vq.layers]

    def loss_of(step):
        rng = np.random.default_rng([1, step])
        size = 3 * batch if step == warmup else batch  # a larger batch for the k-means start of the codebooks
        starts = rng.integers(0, orchestra.audio.shape[1] - samples + 1, size)
        features = codec.features(orchestra.crops(rng.choice(orchestra.train, size), starts, samples))
        latent = codec.latents(features)
        penalty = latent.new_zeros(())
        if step >= warmup:
            if step % 20 == 0 and step < 0.8 * steps:
                revive(codec, latent.detach(), rng)
            result = codec.quantizer(latent, codec.frame_rate)
            latent, penalty = result.x, result.penalty
        error = F.mse_loss(codec.decoder.views(codec.decoder.coarse(latent)), features)
        used = {f"used{k}": (b.cluster_size > 0.1).sum() for k, b in enumerate(books) if k in (0, 2, 5)}
        return error + 0.25 * penalty, {"mse": error, "commit": penalty, **used}

    codec.train()
    parameters = [p for m in (codec.encoder, codec.decoder) for p in m.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.01)
    loop("features", steps, codec, [optimizer], loss_of, work)


@torch.no_grad()
def revive(codec: Codec, latent: torch.Tensor, rng, threshold: float = 0.3):
    """Move unused codes onto residuals of this batch (the next average undoes audiocraft's own expiry)."""
    residual = latent.transpose(1, 2).reshape(-1, latent.shape[1])
    for layer in codec.quantizer.vq.layers:
        book = layer._codebook
        if book.inited:
            dead = torch.nonzero(book.cluster_size < threshold)[:, 0]
            rows = torch.as_tensor(rng.integers(0, len(residual), len(dead)), device=residual.device)
            picks = residual[rows]
            book.embed[dead], book.embed_avg[dead], book.cluster_size[dead] = picks, picks, 1.0
            residual = residual - book.dequantize(book.quantize(residual))


@torch.no_grad()
def encode_clips(codec: Codec, orchestra: Orchestra, path: Path, batch: int = 32):
    """Codes [clip, codebook, frame] (uint16) of every clip, as .npy."""
    codec.eval()
    parts = []
    n_clips = len(orchestra.labels)
    for first in range(0, n_clips, batch):
        clips = np.arange(first, min(first + batch, n_clips))
        audio = orchestra.crops(clips, np.zeros(len(clips), int), orchestra.audio.shape[1])
        parts.append(codec.encode(audio)[0].cpu().numpy().astype(np.uint16))
        if first % (batch * 50) == 0:
            print("encode", first, "of", n_clips, flush=True)
    with paths.replacing(path) as scratch:
        np.save(scratch, np.concatenate(parts))


def spectral_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Multi-resolution STFT distance of audio [B, 1, sample]: log-magnitude L1 plus spectral convergence."""
    total = x.new_zeros(())
    for n_fft in (256, 512, 1024, 2048, 4096):
        window = torch.hann_window(n_fft, device=x.device)
        a, b = (
            torch.stft(s[:, 0], n_fft, n_fft // 4, window=window, return_complex=True).abs() / window.sum()
            for s in (x, y)
        )
        total = total + F.l1_loss((a + 1e-4).log(), (b + 1e-4).log()) + (a - b).norm() / b.norm()
    return total / 5


def train_decoder(
    codec: Codec, orchestra: Orchestra, codes, work: Path, steps: int, batch: int, frames: int = 50
):
    """The decoder alone, on crops of `frames` code frames; encoder and quantiser stay as they are."""
    codec.eval().requires_grad_(False)
    codec.decoder.requires_grad_(True)
    hop = codec.config.hop

    def loss_of(step):
        rng = np.random.default_rng([2, step])
        clips = rng.choice(orchestra.train, batch)
        starts = rng.integers(0, codes.shape[-1] - frames + 1, batch)
        rows = np.stack([codes[c, :, s : s + frames] for c, s in zip(clips, starts, strict=True)])
        audio = orchestra.crops(clips, starts * hop, frames * hop)
        made = codec.decode(torch.from_numpy(rows.astype(np.int64)).to(audio.device))
        stft = spectral_loss(made, audio)
        views = F.l1_loss(codec.features(made), codec.features(audio))
        return stft + 2 * views, {"stft": stft, "views": views}

    optimizer = torch.optim.AdamW(codec.decoder.parameters(), lr=1e-3, betas=(0.8, 0.98), weight_decay=0.01)
    loop("decoder", steps, codec.decoder, [optimizer], loss_of, work)


def delayed(codes: torch.Tensor, special: int) -> torch.Tensor:
    """Codes [B, K, T] in MusicGen's delay pattern [B, K, T + K]: codebook k of frame t at step t + k + 1."""
    B, K, T = codes.shape
    out = codes.new_full((B, K, T + K), special)
    for k in range(K):
        out[:, k, k + 1 : k + 1 + T] = codes[:, k]
    return out


def next_code_loss(lm, codes: torch.Tensor, conditions, slips: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of every codebook, nats per token: a vector [K].

    `slips` [B]: the share of each row's input codes that are the model's own draws given the true past, as a
    clip it generates is made of its own codes (parallel scheduled sampling, Mihaylova & Martins 2019).
    Targets stay true.
    """
    sequence = delayed(codes, lm.special_token_id)
    heard = sequence[..., :-1]
    if slips is not None and (rows := torch.nonzero(slips)[:, 0]).numel():
        with torch.no_grad():
            chosen = {k: (c[rows], mask[rows]) for k, (c, mask) in conditions.items()}
            own = torch.distributions.Categorical(logits=lm(heard[rows, :, :-1], [], chosen)).sample()
        own = torch.cat([heard[rows, :, :1], own], -1)
        slipped = torch.rand(own.shape, device=own.device) < slips[rows, None, None]
        slipped &= heard[rows] != lm.special_token_id
        heard = heard.index_copy(0, rows, torch.where(slipped, own, heard[rows]))
    logits = lm(heard, [], conditions)
    return torch.stack(
        [
            F.cross_entropy(
                logits[:, k, k : k + codes.shape[-1]].flatten(0, 1),
                sequence[:, k, k + 1 : k + 1 + codes.shape[-1]].flatten(),
            )
            for k in range(codes.shape[1])
        ]
    )


def train_lm(lm, labels: pd.DataFrame, codes, work: Path, steps: int, batch: int, device):
    """The LM on whole clips, captions drawn anew each time; every 250 steps the loss on held-out scores."""
    conditioner = lm.condition_provider.conditioners["description"]
    rows = labels.to_dict("records")
    train, valid = (np.flatnonzero(labels["split"] == split) for split in ("train", "valid"))

    def batch_of(clips, rng):
        captions = []
        for clip in clips:
            draw = rng.random()
            said = (
                "" if draw < SHARE_UNSAID else caption(rows[clip], rng, full=draw < SHARE_UNSAID + SHARE_FULL)
            )
            captions.append(said)
        conditions = {"description": conditioner(conditioner.tokenize(captions))}
        return torch.from_numpy(codes[clips].astype(np.int64)).to(device), conditions

    def loss_of(step):
        rng = np.random.default_rng([3, step])
        lm.train()
        chosen = batch_of(rng.choice(train, batch, replace=False), rng)
        torch.manual_seed(step)
        slips = torch.from_numpy(
            rng.uniform(0, MOST_SLIPS, batch) * (rng.random(batch) < SHARE_SLIPPED)
        ).float()
        losses = next_code_loss(lm, *chosen, slips.to(device))
        values = {"ce": losses.mean(), "ce0": losses[0], "ce1": losses[1]}
        if (step + 1) % 250 == 0:
            with torch.no_grad():
                lm.eval()
                held_out = next_code_loss(lm, *batch_of(valid[:100], np.random.default_rng(4)))
            values |= {"valid": held_out.mean(), "valid0": held_out[0]}
            lm.train()
        return (losses * weights).mean(), values

    # The first books carry rhythm, harmony and timbre; the last ones are mostly noise that can't be foreseen.
    weights = torch.linspace(12, 2, codes.shape[1], device=device) / 7
    matrices = [p for n, p in lm.named_parameters() if n.startswith("transformer.layers") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in lm.parameters() if id(p) not in chosen]
    optimizers = [
        Muon(matrices, lr=6e-3),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.97), weight_decay=0.01),
    ]
    loop("lm", steps, lm, optimizers, loss_of, work)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--orchestra", type=Path, default=Path("data/runs/orchestra"))
    parser.add_argument(
        "--work", type=Path, default=Path("data/runs/tiny"), help="checkpoints, logs and codes"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--feature-steps", type=int, default=900)
    parser.add_argument("--decoder-steps", type=int, default=1700)
    parser.add_argument("--lm-steps", type=int, default=3250)
    parser.add_argument("--lm-batch", type=int, default=16)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if not (args.orchestra / "clips.parquet").exists():
        raise SystemExit(f"{args.orchestra} holds no orchestra; `make orchestra` renders one there first")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    orchestra = Orchestra(args.orchestra, device)
    codec = Codec(CodecConfig()).to(device)
    wanted = STAGES if args.stage == "all" else (args.stage,)
    codes_path = args.work / "codes.npy"
    if "features" in wanted:
        train_features(codec, orchestra, args.work, args.feature_steps, batch=32)
    if {"encode", "decoder"} & set(wanted):
        codec.load_state_dict(
            torch.load(args.work / "features.pt", weights_only=True, map_location=device)["modules"]
        )
    if "encode" in wanted and not codes_path.exists():
        encode_clips(codec, orchestra, codes_path)
    if "decoder" in wanted:
        train_decoder(
            codec, orchestra, np.load(codes_path, mmap_mode="r"), args.work, args.decoder_steps, batch=16
        )
    if "lm" in wanted:
        lm = build_lm(LMConfig(n_q=codec.config.n_q, card=codec.config.bins))
        lm._init_weights("gaussian", "current", zero_bias_init=True)  # MusicGen's
        codes = np.load(codes_path)
        train_lm(lm.to(device), orchestra.labels, codes, args.work, args.lm_steps, args.lm_batch, device)


if __name__ == "__main__":
    main()
