"""Measure the embedded model and write its card: `python -m workshop.tiny.card`.

Everything is measured on scores that neither the codec, the LM nor the judges were trained on. Writes
`data/tiny/card.json` (every measure with n, its 95 % interval or the range of its runs, and the command), and
with `--figures` the spectrograms and short clips to listen to.
"""

import argparse
import datetime
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from mechsteer import paths
from mechsteer.activations.clips import clips
from mechsteer.activations.collect import collect
from mechsteer.directions.scores import accuracy_by_layer
from mechsteer.measures.intervals import mean_interval, share
from mechsteer.measures.judges.hear import embedding, hear, tempo_class
from mechsteer.model.model import load
from mechsteer.tiny.loading import folder
from mechsteer.tiny.vocabulary import LEADS, STYLES

from .captions import caption
from .compose import Score
from .same_notes import chroma_correlation, pitch_agreement
from .train import Orchestra

COMMAND = "python -m workshop.tiny.card"
HEARD = ("lead", "style", "drums", "mode")
JUDGES = ("cnn", "features")
SPEED = "speed, x real time"
READABLE = "readable at layer"


def share_row(hits, **what) -> dict:
    """A proportion with its Wilson interval."""
    return what | {"n": len(hits)} | share(hits)._asdict()


def mean_row(values, **what) -> dict:
    """A mean with its bootstrap interval over clips; clips without a value are left out."""
    return what | {"n": int(np.isfinite(values).sum())} | mean_interval(values)._asdict()


def correlation_row(x, y, **what) -> dict:
    """Pearson's r with Fisher's interval."""
    r = stats.pearsonr(x, y)
    ci = r.confidence_interval()
    return what | {"value": r.statistic, "n": len(x), "lo": ci.low, "hi": ci.high}


def heard_right(asked: pd.DataFrame, audio, sample_rate: int, measure: str) -> list[dict]:
    """How often each judge hears the labels asked for; tempo as class and as correlation in bpm."""
    rows = []
    for judge in JUDGES:
        found = likeliest(hear(audio, sample_rate, judge=judge))
        what = {"measure": measure, "judge": judge}
        rows += [share_row(found[a].to_numpy() == asked[a].to_numpy(), attribute=a, **what) for a in HEARD]
        classes = asked["tempo"].map(tempo_class).to_numpy()
        rows.append(share_row(found["tempo_class"].to_numpy() == classes, attribute="tempo class", **what))
        rows.append(correlation_row(asked["tempo"], found["tempo"], attribute="tempo, r", **what))
    return rows


def likeliest(heard: pd.DataFrame) -> pd.DataFrame:
    """What a judge hears if it must name one of the six leads, whether it knows such music or not."""
    p = heard.filter(regex="^p_lead_")
    return heard.assign(lead=p.idxmax(axis=1).str.removeprefix("p_lead_"))


def draw_test(orchestra: Orchestra) -> pd.DataFrame:
    """One clip per test score and style, its lead drawn: 240 clips of scores never trained on."""
    test = orchestra.labels[orchestra.labels["split"] == "test"]
    return test.groupby(["score", "style"]).sample(1, random_state=0).reset_index(drop=True)


def prompts_for(asked: pd.DataFrame) -> list[str]:
    """A full caption in varied words for each row."""
    rng = np.random.default_rng(1)
    return [caption(row, rng, full=True) for row in asked.to_dict("records")]


def independent_labels(n: int) -> pd.DataFrame:
    """Attributes drawn anew and independently, as prompts ask for them."""
    rng = np.random.default_rng(2)
    drawn = [Score.draw(11, i).labels() for i in range(n)]
    return pd.DataFrame(drawn).assign(lead=rng.choice(list(LEADS), n), style=rng.choice(STYLES, n))


def layer_rows(model) -> list[dict]:
    """Cross-validated accuracy (tempo: R2) of each label at the input and every layer, by folds of scores."""
    table = clips("orchestra")
    acts = collect(model, table[table["split"] == "test"], progress=False)
    table = accuracy_by_layer(acts, [*HEARD, "tempo"], methods=("logistic", "mse"), progress=False)
    metrics = {"accuracy": "logistic", "r2": "mse"}  # metric -> the method that it is of
    table = table[table["concept"].isin(("all", "drums", "mode", "tempo")) & table["metric"].isin(metrics)]
    table = table[table["method"] == table["metric"].map(metrics)]
    keys = ["label", "site", "layer", "metric"]
    return [
        {"measure": READABLE, "attribute": label, "site": site, "metric": metric}
        | {"layer": None if pd.isna(layer) else int(layer)}
        | {"value": fold["score"].mean(), "lo": fold["score"].min(), "hi": fold["score"].max()}
        | {"n": acts.sizes["clip"], "interval": f"range of {len(fold)} folds"}
        for (label, site, layer, metric), fold in table.groupby(keys, dropna=False)
    ]


def speed_rows(model, seconds: float = 8.0) -> list[dict]:
    """Seconds of audio made per second, decoding included; median of three (one at batch 32)."""
    rows = []
    for batch, repeats in ((1, 3), (32, 1)):
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            model.generate(["a jazz tune with a flute lead"] * batch, duration=seconds, progress=False)
            times.append(time.perf_counter() - began)
        rate = batch * seconds / np.asarray(times)
        found = {"value": np.median(rate), "lo": rate.min(), "hi": rate.max(), "interval": "range"}
        rows.append({"measure": SPEED, "attribute": f"batch {batch}", "n": repeats} | found)
    return rows


ALONE = {"speed": (SPEED, speed_rows), "layers": (READABLE, layer_rows)}  # what needs the shipped music only


def measure_model(model, orchestra: Orchestra, n: int) -> tuple[list[dict], dict]:
    """All rows of the card, and the audio that the figures show."""
    rate, hop = model.sample_rate, int(model.sample_rate / model.frame_rate)
    test = draw_test(orchestra).iloc[:n]
    length = orchestra.audio.shape[1]
    original = orchestra.crops(test["clip"], np.zeros(len(test), int), length).numpy()
    codes = model.encode(original, rate)
    rebuilt = model.decode(codes)[..., :length]
    rows = heard_right(test, original, rate, "original") + heard_right(test, rebuilt, rate, "reconstruction")
    what = {"measure": "reconstruction"}
    rows.append(mean_row(chroma_correlation(original, rebuilt, rate), attribute="chroma correlation", **what))
    rows.append(mean_row(pitch_agreement(original, rebuilt, rate), attribute="pitch within 50 cents", **what))
    rows.append(mean_row(model.nll(codes, prompts=prompts_for(test)), measure="nll with caption, nats/token"))
    rows.append(mean_row(model.nll(codes), measure="nll without caption, nats/token"))
    print(pd.DataFrame(rows).round(3).to_string(), flush=True)

    asked = independent_labels(n)
    seconds = codes.shape[-1] * hop / rate
    options = {"duration": seconds, "progress": False}
    prompted = model.generate(prompts_for(asked), seed=0, guidance=3.0, **options).audio
    rows += heard_right(asked, prompted, rate, "full prompt, guidance 3")
    free = model.generate([None] * n, seed=10_000, **options).audio
    leads = likeliest(hear(free, rate, judge="cnn"))["lead"].value_counts()
    leads = leads.reindex(sorted(asked["lead"].unique()), fill_value=0)
    what = {"measure": "unprompted", "attribute": f"rarest lead ({leads.idxmin()})", "judge": "cnn"}
    rows.append(share_row(np.arange(n) < leads.min(), **what))
    spread = lambda audio: np.sqrt(embedding(audio, rate, judge="features").var(0).mean())
    what = {"measure": "unprompted", "attribute": "embedding spread against real", "judge": "features"}
    rows.append(what | {"n": n, "value": spread(free) / spread(original)})
    shown = {"original": original, "reconstruction": rebuilt, "prompted": prompted, "unprompted": free}
    return rows, shown | {"test": test, "asked": asked}


def training_facts(work: Path) -> dict:
    """Steps and hours of each stage, from its log; `history.txt` says where a run wasn't `train`'s."""
    facts = {}
    for stage in ("features", "decoder", "lm"):
        last = json.loads((work / f"{stage}.log").read_text().strip().splitlines()[-1])
        facts[stage] = {"steps": last["step"], "hours": round(last["seconds"] / 3600, 2)}
    history = work / "history.txt"
    return facts | ({"history": history.read_text().strip()} if history.exists() else {})


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU"


TABLE = (  # what the guide shows of the card: (row, measure, attribute, judge)
    ("codec: lead heard", "reconstruction", "lead", "cnn"),
    ("codec: style heard", "reconstruction", "style", "cnn"),
    ("codec: drums heard", "reconstruction", "drums", "cnn"),
    ("codec: chroma correlation", "reconstruction", "chroma correlation", None),
    ("codec: pitch within 50 cents", "reconstruction", "pitch within 50 cents", None),
    ("full prompt: lead heard", "full prompt, guidance 3", "lead", "cnn"),
    ("full prompt: style heard", "full prompt, guidance 3", "style", "cnn"),
    ("full prompt: drums heard", "full prompt, guidance 3", "drums", "cnn"),
    ("full prompt: mode heard (chance .5)", "full prompt, guidance 3", "mode", "cnn"),
    ("full prompt: tempo class (chance .33)", "full prompt, guidance 3", "tempo class", "cnn"),
    ("full prompt: tempo asked and heard, r", "full prompt, guidance 3", "tempo, r", "cnn"),
    ("unprompted: share of the rarest lead", "unprompted", None, "cnn"),
    ("unprompted: embedding spread against real", "unprompted", "embedding spread against real", "features"),
    ("seconds of audio made per second, batch 1", SPEED, "batch 1", None),
    ("seconds of audio made per second, batch 32", SPEED, "batch 32", None),
)


def guide_table(card: dict) -> str:
    """The card's main measures as a Markdown table; the second judge's figure stands beside the first's."""

    def find(measure, attribute, judge):
        rows = [r for r in card["measures"] if r["measure"] == measure and r.get("judge") == judge]
        return next((r for r in rows if attribute in (None, r.get("attribute"))), None)

    lines = ["| measure | value | 95 % interval | n | second judge |", "|---|---|---|---|---|"]
    for name, measure, attribute, judge in TABLE:
        row = find(measure, attribute, judge)
        second = find(measure, attribute, "features") if judge == "cnn" and attribute else None
        interval = f"{row['lo']:.2f} to {row['hi']:.2f}" if "lo" in row and "interval" not in row else ""
        other = f"{second['value']:.2f}" if second else ""
        lines.append(f"| {name} | {row['value']:.2f} | {interval} | {row['n']} | {other} |")
    return "\n".join(lines)


def write_guide(card: dict, path: Path):
    """Put the table between the two `card` marks of a page."""
    before, rest = path.read_text().split("<!-- card -->\n")
    after = rest.split("<!-- /card -->")[1]
    paths.replace(path, f"{before}<!-- card -->\n{guide_table(card)}\n<!-- /card -->{after}")


def rounded(rows: list[dict]) -> list[dict]:
    """Rows as the card keeps them: plain numbers of four digits."""
    plain = lambda v: v.item() if isinstance(v, np.generic) else v
    return [
        {k: round(float(v), 4) if k in ("value", "lo", "hi") else plain(v) for k, v in row.items()}
        for row in rows
    ]


def write(card: dict):
    """card.json, and its table in the guide."""
    paths.replace(folder() / "card.json", json.dumps(card, indent=1) + "\n")
    print(pd.DataFrame(card["measures"]).to_string())
    write_guide(card, paths.project() / "workshop/site/guide/embedded_model.md")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--orchestra", type=Path, default=Path("data/runs/orchestra"))
    parser.add_argument("--work", type=Path, default=Path("data/runs/tiny"), help="training logs")
    parser.add_argument("--n", type=int, default=240, help="clips per measure")
    parser.add_argument(
        "--figures", action="store_true", help="also write figures/tiny_* and figures/audio/tiny_*"
    )
    parser.add_argument(
        "--only", choices=ALONE, help="measure this anew and leave the rest; speed is best on an idle machine"
    )
    args = parser.parse_args()
    model = load("tiny")
    if args.only:
        card = json.loads((folder() / "card.json").read_text())
        if card["model_hash"] != model.hash:
            raise SystemExit("the card is of other weights; measure all of it: leave --only out")
        measure, rows = ALONE[args.only]
        kept = [row for row in card["measures"] if row["measure"] != measure]
        write(card | {"measures": kept + rounded(rows(model))})
        return
    orchestra = Orchestra(args.orchestra, "cpu")
    rows = layer_rows(model) + speed_rows(model)
    print(pd.DataFrame(rows).round(3).to_string(), flush=True)
    heard, shown = measure_model(model, orchestra, args.n)
    build = json.loads((args.orchestra / "build.json").read_text())
    card = {
        "model": "tiny",
        "model_hash": model.hash,
        "measured": datetime.date.today().isoformat(),
        "command": f"{COMMAND} --n {args.n}",
        "data": build,
        "sizes_mb": {
            p.name: round(p.stat().st_size / 1e6, 2) for p in sorted(folder().glob("*.safetensors"))
        },
        "parameters": {
            part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("codec", "lm")
        },
        "training": training_facts(args.work),
        "hardware": hardware(),
        "measures": rounded(heard + rows),
    }
    write(card)
    if args.figures:
        from .pictures import draw

        draw(model, shown)


if __name__ == "__main__":
    main()
