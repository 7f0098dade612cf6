"""A panel to steer by hand: concept, strength, layer and start; the steered clip arrives beside its twin."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
import xarray as xr

from .._shared import number, spelled
from ..directions.files import check_model
from ..model.generation import Generation
from ..model.steering import Steering
from .player import player


@spelled
def steering_panel(
    model,
    directions: xr.DataArray | Sequence[xr.DataArray],
    prompt: str | None = None,
    seed: int = 0,
    duration: float | None = None,
    strength: float = 0.5,
    strongest: float = 2.0,
    layer: int | None = None,
    concept: str | None = None,
    start: float = 0.0,
) -> SteeringPanel:
    """Sliders for one steering, and a button that generates a clip with it beside its unsteered twin.

    Parameters
    ----------
    model : Model
    directions : xr.DataArray or several
        Dims (concept, layer, d_model) or (concept, layer, head, d_head): one finder of what `find_directions`
        gives. A direction is added at the layer where it was read.
    duration : float, s; default 8, or the longest clip of a model that has less.
    strongest : the slider's ends, in multiples of the mean activation norm; negative is away.
    prompt, seed, strength, layer, concept, start : where the controls begin
        No prompt is unconditional; strength is in the same multiples, layer 0-based (default the middle one),
        `start` in s and less than `duration`; the default concept is the first.

    Returns
    -------
    SteeringPanel, a widget. `.steering` is what its sliders say, `.generate()` does what its button does, and
    `.clips` is the last Generation: the twin and the steered clip.

    Raises ValueError if the directions have several finders, name a concept twice, lack `concept` or don't
    fit the model; or if `start` isn't inside the clip. Taught in 00_start_here.
    """
    found = _by_concept(model, [directions] if isinstance(directions, xr.DataArray) else directions)
    if concept is not None and concept not in found:
        raise ValueError(f"no direction for {concept!r}; there are {', '.join(found)}")
    panel = SteeringPanel(model, found, prompt, seed, duration, strength, strongest, layer, start)
    panel.concept.value = concept or panel.concept.value
    return panel


def _by_concept(model, arrays: Sequence[xr.DataArray]) -> dict[str, xr.DataArray]:
    found: dict[str, xr.DataArray] = {}
    for array in arrays:
        extra = sorted(set(map(str, array.dims)) - {"concept", "layer", "head", "d_model", "d_head"})
        if extra or not {"concept", "layer"} <= set(array.dims):
            advice = f": choose one {extra[0]}, with .sel(...)" if extra else ""
            raise ValueError(f"directions have dims (concept, layer, d_model), not {array.dims}{advice}")
        check_model(array, model)
        for name in array["concept"].values:
            if str(name) in found:
                raise ValueError(f"two directions are called {str(name)!r}; leave one out")
            found[str(name)] = array.sel(concept=name)
    return found


class SteeringPanel(widgets.VBox):
    """What `steering_panel` makes: `concept`, `strength`, `layer`, `start`, `prompt`, `seed` and `button`."""

    def __init__(self, model, by_concept, prompt, seed, duration, strength, strongest, layer, start) -> None:
        strength, strongest = number("strength", strength), number("strongest", strongest, 1e-6)
        self.model, self._by_concept = model, by_concept
        self.duration = min(8.0, model.max_duration) if duration is None else duration
        if not 0 <= start < self.duration:
            raise ValueError(f"start={start:g} s isn't inside the clip, which has {self.duration:g} s")
        self.clips: Generation | None = None
        first = next(iter(by_concept.values()))
        layers = [int(i) for i in first["layer"].values]
        wide, style = widgets.Layout(width="98%", max_width="480px"), {"description_width": "70px"}
        make = lambda kind, value, name, **options: kind(
            value=value, description=name, layout=wide, style=style, continuous_update=False, **options
        )
        names, ends = list(by_concept), {"min": -strongest, "max": strongest}
        self.concept = widgets.Dropdown(options=names, description="concept", layout=wide, style=style)
        self.strength = make(widgets.FloatSlider, strength, "strength", step=0.05, **ends)
        at = layers[len(layers) // 2] if layer is None else layer
        if at not in layers:
            raise ValueError(f"layer={at}; the directions have layers {layers}")
        self.layer = make(widgets.SelectionSlider, at, "layer", options=layers)
        latest = max(0.25 * (math.ceil(self.duration / 0.25) - 1), start)  # the last step inside the clip
        self.start = make(widgets.FloatSlider, start, "start, s", min=0.0, max=latest, step=0.25)
        self.prompt = make(widgets.Text, prompt or "", "prompt", placeholder="nothing: unconditional")
        self.seed = make(widgets.IntText, seed, "seed")
        self.button = widgets.Button(description="Generate", button_style="primary", icon="music")
        self.status, self.code, self.players = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.progress = widgets.Output()
        self.button.on_click(lambda _: self.generate())
        sliders = (self.concept, self.strength, self.layer, self.start, self.prompt, self.seed)
        for slider in sliders:
            slider.observe(self._write_code, "value")
        action = widgets.HBox([self.button, self.status], layout=widgets.Layout(align_items="center"))
        super().__init__([*sliders, self.code, action, self.progress, self.players])
        self._write_code()

    @property
    def steering(self) -> Steering:
        """What the sliders say now."""
        direction, when = self._by_concept[self.concept.value], self.start.value
        return Steering(direction, layers=self.layer.value, strength=self.strength.value, start=when)

    def generate(self) -> Generation | None:
        """Make the steered clip, and its twin if prompt or seed are new; show both (None after an error)."""
        prompt, seed = self.prompt.value.strip() or None, self.seed.value
        self.button.disabled, self.status.value = True, f"Generating {self.duration:g} s ..."
        fresh = self.clips is None or (self.clips.prompts[0], self.clips.seeds[0]) != (prompt, seed)
        made = None
        with self.progress:  # which shows the bar of a slow model, and would swallow an error
            try:
                steering = [None, self.steering] if fresh else [self.steering]
                made = self.model.generate(prompt, self.duration, seed, steering)
            except (ValueError, MemoryError) as error:
                self.status.value = html.escape(str(error))
        self.button.disabled = False
        self.progress.clear_output()
        if made is not None:
            self.clips = made if fresh else _with_twin(self.clips[0], made)
            self._show()
        return None if made is None else self.clips

    def _write_code(self, _=None) -> None:
        """The line of Python that does the same, and a word if the clip below is not what the sliders say."""
        said = f"{self.concept.value}, layers={self.layer.value}, strength={self.strength.value:g}"
        said += f", start={self.start.value:g}" if self.start.value else ""
        self.code.value = f"<code>{html.escape(f'ms.Steering({said})')}</code>"
        self.status.value = "" if self.clips is None else "Changed: press Generate to hear it."

    def _show(self) -> None:
        clips, rate = self.clips, self.clips.sample_rate
        steered = f"steered: {self.strength.value:+g} {self.concept.value}, layer {self.layer.value}"
        figures = (player(x, rate, name) for x, name in zip(clips.audio, ("unsteered", steered), strict=True))
        boxes = "".join(f'<div style="flex:1 1 300px;max-width:480px">{figure}</div>' for figure in figures)
        self.players.value = f'<div style="display:flex;flex-wrap:wrap;gap:1em">{boxes}</div>'
        told = ("Same prompt, same random numbers.", "Both clips are the same, code by code.")
        self.status.value = told[bool((clips.codes[0] == clips.codes[1]).all())]


def _with_twin(twin: Generation, steered: Generation) -> Generation:
    """The clip of an earlier call in front of one of the same settings."""
    import torch

    lists = {name: getattr(twin, name) + getattr(steered, name) for name in ("prompts", "seeds", "steering")}
    sound = np.concatenate([twin.audio, steered.audio])
    return dataclasses.replace(steered, audio=sound, codes=torch.cat([twin.codes, steered.codes]), **lists)
