"""Write a MusicGen checkpoint in Meta's format: random weights, few and narrow layers, everything else as
released.

The fields and values are those of the released musicgen-small and its 32 kHz EnCodec, as audiocraft's
`export` writes them; only sizes differ. Its text encoder is a T5 of one layer in a local hub cache, under the
name MusicGen asks for.
"""

from pathlib import Path

import torch
import yaml

DIM, HEADS, LAYERS, CARD = 64, 4, 3, 256
WORDS = ["jazz", "piano", "rock", "guitar", "slow", "fast", "a", "with", "drums", "calm", "violin", "solo"]


def lm_config(stereo: bool = False) -> dict:
    """`xp.cfg` of a text-to-music language model."""
    n_q = 8 if stereo else 4
    delays = [i // 2 for i in range(8)] if stereo else [0, 1, 2, 3]
    return {
        "device": "cuda",
        "dtype": "float16",
        "sample_rate": 32000,
        "channels": 2 if stereo else 1,
        "lm_model": "transformer_lm",
        "compression_model_n_q": None,
        "interleave_stereo_codebooks": {"use": stereo, "per_timestep": False},
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": delays, "flatten_first": 0, "empty_initial": 0},
        },
        "transformer_lm": {
            "dim": DIM,
            "num_heads": HEADS,
            "num_layers": LAYERS,
            "hidden_scale": 4,
            "n_q": n_q,
            "card": CARD,
            "dropout": 0.0,
            "emb_lr": None,
            "activation": "gelu",
            "norm_first": True,
            "bias_ff": False,
            "bias_attn": False,
            "bias_proj": False,
            "past_context": None,
            "causal": True,
            "custom": False,
            "memory_efficient": True,
            "attention_as_float32": False,
            "layer_scale": None,
            "positional_embedding": "sin",
            "xpos": False,
            "checkpointing": "none",
            "weight_init": "gaussian",
            "depthwise_init": "current",
            "zero_bias_init": True,
            "norm": "layer_norm",
            "cross_attention": False,
            "qk_layer_norm": False,
            "qk_layer_norm_cross": False,
            "attention_dropout": None,
            "kv_repeat": 1,
            "two_step_cfg": False,
        },
        "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
        "attribute_dropout": {},
        "fuser": {
            "cross_attention_pos_emb": False,
            "cross_attention_pos_emb_scale": 1,
            "sum": [],
            "prepend": [],
            "cross": ["description"],
            "input_interpolate": [],
        },
        "conditioners": {
            "description": {
                "model": "t5",
                "t5": {"name": "t5-base", "finetune": False, "word_dropout": 0.3, "normalize_text": False},
            }
        },
        "dataset": {
            "segment_duration": 30,
            "train": {"merge_text_p": 0.25, "drop_desc_p": 0.5, "drop_other_p": 0.5},
        },
    }


def codec_config() -> dict:
    """`xp.cfg` of an EnCodec at 32 kHz and 50 frames per second."""
    return {
        "device": "cuda",
        "sample_rate": 32000,
        "channels": 1,
        "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": "${sample_rate}",
            "channels": "${channels}",
            "causal": False,
            "renormalize": False,
        },
        "seanet": {
            "dimension": 16,
            "channels": "${channels}",
            "causal": "${encodec.causal}",
            "n_filters": 2,
            "n_residual_layers": 1,
            "ratios": [8, 5, 4, 4],
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": "weight_norm",
            "norm_params": {},
            "kernel_size": 7,
            "residual_kernel_size": 3,
            "last_kernel_size": 7,
            "dilation_base": 2,
            "pad_mode": "constant",
            "true_skip": True,
            "compress": 2,
            "lstm": 2,
            "disable_norm_outer_blocks": 0,
            "decoder": {"trim_right_ratio": 1.0, "final_activation": None, "final_activation_params": None},
            "encoder": {},
        },
        "rvq": {
            "n_q": 4,
            "q_dropout": False,
            "bins": CARD,
            "decay": 0.99,
            "kmeans_init": True,
            "kmeans_iters": 2,
            "threshold_ema_dead_code": 2,
            "orthogonal_reg_weight": 0.0,
            "orthogonal_reg_active_codes_only": False,
        },
        "no_quant": {},
    }


def write_text_encoder(cache: Path, name: str = "t5-base") -> None:
    """A T5 encoder of one layer and a small vocabulary, laid out as a hub cache keeps it."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    snapshot = cache / f"models--{name}" / "snapshots" / ("0" * 40)
    vocabulary = [
        "<pad>",
        "</s>",
        "<unk>",
        *("▁" + word for word in WORDS),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz0123456789",
    ]
    tokenizer = T5Tokenizer(vocab=[(token, -float(i)) for i, token in enumerate(vocabulary)])
    config = T5Config(vocab_size=len(tokenizer), d_model=768, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    refs = cache / f"models--{name}" / "refs"
    refs.mkdir(parents=True, exist_ok=True)
    (refs / "main").write_text("0" * 40)


def write(folder: Path, cache: Path, stereo: bool = False, seed: int = 0) -> Path:
    """Write the checkpoint to `folder`, and its text encoder into the hub cache `cache`; returns `folder`."""
    from omegaconf import OmegaConf

    from mechsteer.model._audiocraft import builders

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        write_text_encoder(cache)
        config = lm_config(stereo)
        lm = builders.get_lm_model(OmegaConf.create(config | {"device": "cpu", "dtype": "float32"}))
        config_of_codec = codec_config()
        codec = builders.get_compression_model(OmegaConf.create(config_of_codec | {"device": "cpu"}))
        codec.train()(torch.randn(8, 1, 32000))  # fills the codebooks, by k-means of these
    for file, model, cfg in (("state_dict", lm, config), ("compression_state_dict", codec, config_of_codec)):
        package = {
            "best_state": model.state_dict(),
            "xp.cfg": yaml.safe_dump(cfg),
            "version": "1.3.0",
            "exported": True,
        }
        torch.save(package, folder / f"{file}.bin")
    return folder
