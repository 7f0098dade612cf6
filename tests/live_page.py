"""The live panel in a browser: samples as they reach WebAudio, and the slider moved by hand."""

from __future__ import annotations

import base64

import nbformat
import numpy as np
from nbformat.v4 import new_code_cell, new_notebook

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
CODE = """
import threading
import numpy as np, xarray as xr
import mechsteer as ms

model = ms.load("tiny")
dims = dict(concept=["guitar", "jazz"], layer=range(model.n_layers), d_model=range(model.d_model))
made = np.random.default_rng(0).standard_normal([len(v) for v in dims.values()])
made = xr.DataArray(made, dims=tuple(dims), coords={k: v for k, v in dims.items() if k != "d_model"})
made = made.assign_coords(norm=("layer", [20.0] * model.n_layers))
made = made.assign_attrs(site="resid", model=model.name, model_hash=model.hash)
before = threading.active_count()
panel = ms.steering_panel(model, made, "jazz piano", strength=0.0)
panel
"""
SPY = """(() => {
    window.heard = [];
    const start = AudioBufferSourceNode.prototype.start;
    AudioBufferSourceNode.prototype.start = function (when, ...more) {
        window.sound = this.context;
        window.heard.push({ when, samples: this.buffer.getChannelData(0), rate: this.buffer.sampleRate });
        return start.call(this, when, ...more);
    };
})()"""
CHUNKS = "n => window.heard.length >= 2 * n"
MOVE = """() => {  // the slider, by hand; then what waits to be played ends at .edge
    const slider = document.querySelector(".mechsteer-panel input[type=range]");
    slider.value = 1.5;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    const last = window.heard.at(-1);
    const chunk = last.samples.length / last.rate;
    const number = Math.floor(window.heard.length / 2);
    return { edge: last.when + chunk, chunk, now: window.sound.currentTime, number };
}"""
HEARD = """first => window.heard.slice(first).map(({ when, rate, samples }) => {
    const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
    return { when, rate, samples: btoa(Array.from(bytes, b => String.fromCharCode(b)).join("")) };
})"""


def book(folder, *cells):
    """A notebook of these code cells; its path."""
    made = new_notebook(metadata=KERNEL, cells=[new_code_cell(code) for code in cells])
    nbformat.write(made, folder / "live.ipynb")
    return folder / "live.ipynb"


def pairs(tab, first: int = 0) -> list[tuple]:
    """(when, twin, steered, seconds) of every chunk that was scheduled, from number `first` on."""
    samples = lambda told: np.frombuffer(base64.b64decode(told), "float32")
    heard = [(h["when"], samples(h["samples"]), h["rate"]) for h in tab.evaluate(HEARD, 2 * first)]
    both = zip(heard[::2], heard[1::2], strict=True)
    return [(when, twin, steered, twin.size / rate) for (when, twin, rate), (_, steered, _) in both]


def play_and_move(tab) -> list[tuple]:
    """Play from strength 0, move the slider, listen to the twin, and stop: the chunks that were heard.

    All by keyboard but the slider's value. The change must begin where the sound ends that was on its way.
    """
    panel = tab.locator(".mechsteer-panel")
    tab.get_by_role("button", name="Play").press("Enter")
    tab.wait_for_function(CHUNKS, arg=5, polling=50)
    moved = tab.evaluate(MOVE)
    tab.wait_for_function(CHUNKS, arg=5 + 12, polling=50)
    tab.get_by_role("button", name="unsteered twin").press("Space")
    assert tab.get_by_role("button", name="unsteered twin").get_attribute("aria-pressed") == "true"
    tab.get_by_role("button", name="Stop").press("Enter")
    tab.wait_for_function("() => document.querySelector('.mechsteer-panel code').innerText.includes('take')")
    assert "token by token" in panel.locator(".status").inner_text()
    assert "panel.played" in panel.locator("code").inner_text()
    chunks = pairs(tab)
    tab.wait_for_timeout(700)
    assert tab.evaluate("window.heard.length") == 2 * len(chunks), "what was stopped asks for nothing"
    assert all(np.abs(twin).max() > 0 for _, twin, _, _ in chunks)
    k = next(k for k, (_, twin, steered, _) in enumerate(chunks) if (twin != steered).any())
    between = sum(seconds for when, _, _, seconds in chunks[:k] if when >= moved["edge"] - 1e-6)
    assert between <= 2 * moved["chunk"], "the change begins where the sound ends that was on its way"
    assert all((twin != steered).any() for _, twin, steered, _ in chunks[k + 3 :])
    return chunks
