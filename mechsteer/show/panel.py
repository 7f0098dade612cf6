"""A panel to steer by hand while the music plays, and to see what is heard and what is read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets
import xarray as xr

from .._shared import number, spelled
from ..directions.files import check_model
from ..errors import Told
from ..measures._spectra import slaney_filters
from ..model.generation import Generation
from ..model.steering import BRANCHES, Steering
from .player import player

HERE = Path(__file__).parent
CHUNK, AHEAD, HOLD = 0.16, 0.2, 0.32  # s: sound at a time, tokens before their sound, between two changes
COLUMNS, BANDS, N_FFT, QUIETEST = 2, 48, 1024, -75.0  # of the spectrogram: columns a frame; dB of full scale
SECONDS, MOST = 4.0, 6.0  # s: of music in the picture without a page, and of time that it may take


@spelled
def steering_panel(
    model,
    directions: xr.DataArray | Sequence[xr.DataArray],
    prompt: str | None = None,
    seed: int = 0,
    strength: float = 0.5,
    strongest: float = 2.0,
    layer: int | None = None,
    concept: str | None = None,
) -> SteeringPanel:
    """Play, and steer while it plays: music that goes on until it is stopped, beside its unsteered twin.

    Concept, strength and branch move on the way; layer, prompt and seed are chosen before. Both twins come
    from the same random numbers, so that one can switch between them in place.

    Parameters
    ----------
    model : Model
    directions : xr.DataArray or several
        Dims (concept, layer, d_model) or (concept, layer, head, d_head): one finder of what `find_directions`
        gives. A direction is added at the layer where it was read, and the strip shows what it reads there.
    strongest : the slider's ends, in multiples of the mean activation norm; negative is away.
    prompt, seed, strength, layer, concept : where the controls begin
        No prompt is unconditional; strength is in the same multiples, layer 0-based (default the middle one);
        the default concept is the first.

    Returns
    -------
    SteeringPanel, a widget. `.played` is the last take, a Generation of the twin and the steered clip, whose
    `steering` is what the sliders did: `model.stream` makes it again, token by token. Without a browser, as
    in a stored notebook, a picture and a short clip stand in its place.

    Raises ValueError if the directions have several finders, name a concept twice, lack `concept` or `layer`
    or don't fit the model, or if the model can't stream. Taught in 00_start_here.
    """
    found: dict[str, xr.DataArray] = {}
    for array in [directions] if isinstance(directions, xr.DataArray) else directions:
        extra = sorted(set(map(str, array.dims)) - {"concept", "layer", "head", "d_model", "d_head"})
        if extra or not {"concept", "layer"} <= set(array.dims):
            advice = f": choose one {extra[0]}, with .sel(...)" if extra else ""
            raise ValueError(f"directions have dims (concept, layer, d_model), not {array.dims}{advice}")
        check_model(array, model)
        for name in array["concept"].values:
            if str(name) in found:
                raise ValueError(f"two directions are called {str(name)!r}; leave one out")
            found[str(name)] = array.sel(concept=name)
    return SteeringPanel(model, found, prompt, seed, strength, strongest, layer, concept)


class SteeringPanel(anywidget.AnyWidget):
    """What `steering_panel` makes. The page asks for one chunk after another, and nothing runs in between.

    Attributes
    ----------
    directions : dict, concept to its direction
    played : Generation or None, the last take: the unsteered twin and the steered clip
    """

    _esm = "\n".join((HERE / name).read_text("utf-8") for name in ("page.js", "panel.js"))
    _css = HERE / "panel.css"
    setup = traitlets.Dict().tag(sync=True)

    def __init__(self, model, directions, prompt, seed, strength, strongest, layer, concept) -> None:
        first = next(iter(directions.values()))
        layers = [int(i) for i in first["layer"].values]
        layer = layers[len(layers) // 2] if layer is None else layer
        concept = concept or next(iter(directions))
        if concept not in directions:
            raise ValueError(f"no direction for {concept!r}; there are {', '.join(directions)}")
        if layer not in layers:
            raise ValueError(f"layer={layer}; the directions have layers {layers}")
        if model.engine is None:
            raise ValueError("this model runs in audiocraft's own loop, which can't stream")
        strongest = number("strongest", strongest, 1e-6)
        self.model, self.directions = model, directions
        self.played: Generation | None = None
        self._stream, self._play, self._now, self._since = None, None, None, 0
        strength = number("strength", strength, -strongest, strongest)
        begin = dict(concept=concept, strength=strength, layer=layer, branch="both", prompt=prompt or "")
        begin["seed"] = number("seed", seed, 0, 2**53, whole=True)
        lists = dict(concepts=list(directions), layers=layers, branches=list(BRANCHES))
        rates = dict(rate=model.sample_rate, frameRate=model.frame_rate, columns=COLUMNS, bands=BANDS)
        super().__init__(setup={**lists, **rates, "strongest": strongest, "begin": begin})
        self.on_msg(self._on_page)

    def play(
        self, concept: str, strength: float, layer: int, branch="both", prompt="", seed: int = 0
    ) -> None:
        """Begin a take; `next` gives its sound."""
        self._now, site = None, self.directions[concept].attrs.get("site", "resid")
        how = dict(steering=[None, None], chunk=CHUNK, lookahead=AHEAD, read=(site, layer))
        self._stream = self.model.stream(prompt.strip() or None, seed=seed, **how)
        self._tail, self.layer = np.zeros((2, N_FFT), "float32"), layer
        self.steer(concept, strength, branch)

    def steer(self, concept: str, strength: float, branch: str = "both") -> None:
        """Steer by this after what was handed out, if it is new and the last change is `HOLD` old.

        A change costs as many steps as tokens are ahead of the sound; so a moving slider keeps up.
        """
        old = self._now is None or self._stream.frames - self._since >= HOLD * self.model.frame_rate
        if old and (concept, strength, branch) != self._now:
            where = dict(layers=self.layer, strength=strength, branch=branch)
            steering = Steering(self.directions[concept], **where) if strength else None
            self._stream.steer([None, steering])
            self._now, self._since = (concept, strength, branch), self._stream.frames

    def next(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The twin's and the steered sound (clip, sample), its spectrogram (clip, column, band) in bytes, and
        what the concept's probe reads (clip, frame)."""
        sound = next(self._stream).mean(axis=1)
        return sound, self._spectrogram(sound), self._reading()

    def stop(self) -> Generation:
        """End the take, and keep it in `played`."""
        self.played, self._stream, self._play = self._stream.finish(), None, None
        return self.played

    def _reading(self) -> np.ndarray:
        """The probe's score where the direction has one (-1 to +1 between the classes), else a cosine."""
        probe, read = self.directions[self._now[0]].sel(layer=self.layer), self._stream.readings
        along = (read * probe.values).sum(-1)
        if "slope" in probe.coords:
            along = probe["slope"].values * along + probe["bias"].values
        else:
            along = along / np.maximum(np.linalg.norm(read, axis=-1) * np.linalg.norm(probe.values), 1e-9)
        return along if along.ndim == 2 else along.mean(-1)  # over heads

    def _spectrogram(self, sound: np.ndarray) -> np.ndarray:
        step = round(self.model.sample_rate / self.model.frame_rate / COLUMNS)
        whole = np.concatenate([self._tail, sound], axis=1)
        self._tail = whole[:, -N_FFT:]
        windows = np.lib.stride_tricks.sliding_window_view(whole, N_FFT, axis=1)[:, step::step]
        power = np.abs(np.fft.rfft(windows * np.hanning(N_FFT))) ** 2 / (N_FFT / 4) ** 2
        bands = power @ slaney_filters(N_FFT, BANDS, self.model.sample_rate, None)
        level = 1 - 10 * np.log10(np.maximum(bands, 1e-12)) / QUIETEST
        return (255 * level.clip(0, 1)).astype("uint8")

    def _on_page(self, _, message: dict, __) -> None:
        """One answer to every message: `next` (which begins a take where it has to), or `stop`."""
        answer, buffers = {"reply": message.get("id"), "play": message.get("play")}, []
        try:
            if message.get("kind") == "stop":
                if self._stream is not None and message["play"] == self._play:
                    take = self.stop()
                    answer |= {"seconds": take.audio.shape[-1] / take.sample_rate, "code": self._again()}
            else:
                more, buffers = self._more(message)
                answer |= more
        except (Told, ValueError, KeyError, MemoryError) as error:
            answer["error"] = str(error)
        self.send(answer, buffers)

    def _more(self, message: dict) -> tuple[dict, list]:
        now = {name: message[name] for name in ("concept", "strength", "branch")}
        began = time.perf_counter()
        if message["play"] != self._play:
            if not message.get("first"):
                return {"ended": True}, []  # another view plays
            self.play(**now, **{name: message[name] for name in ("layer", "prompt", "seed")})
            self._play = message["play"]
        first = self._stream.frames
        self.steer(**now)
        sound, picture, reading = self.next()
        told = dict(first=first, frames=self._stream.frames - first, strength=self._now[1], code=self._code())
        told |= dict(reading=reading.round(3).tolist(), seconds=time.perf_counter() - began)
        return told, [*sound.astype("float32"), *(np.ascontiguousarray(rows) for rows in picture)]

    def _name(self) -> str:
        """What the notebook calls this panel."""
        try:
            names = get_ipython().user_ns  # noqa: F821  (IPython gives it)
        except NameError:
            names = {}
        return next((k for k, v in names.items() if v is self and not k.startswith("_")), "panel")

    def _code(self) -> str:
        concept, strength, branch = self._now
        said = f"{self._name()}.directions[{concept!r}], layers={self.layer}, strength={strength:g}"
        return f"ms.Steering({said})" if branch == "both" else f"ms.Steering({said}, branch={branch!r})"

    def _again(self) -> str:
        take = f"take = {self._name()}.played\nmodel.stream(take.prompts, take.settings['duration'], "
        return f"{take}take.seeds, take.steering).finish()"

    def sketch(self) -> str:
        """HTML of a short take, steered from its middle on, and its strips: what stands where no page runs.

        Stops early where the model is slow. Becomes `played` if nothing else was.
        """
        begin, kept, frames = dict(self.setup["begin"]), self.played, round(SECONDS * self.model.frame_rate)
        aim, end, concept = begin.pop("strength"), time.monotonic() + MOST, begin["concept"]
        self.play(**begin, strength=0.0)
        sounds, readings, strengths = [], [], []
        while (done := self._stream.frames) < frames and (time.monotonic() < end or not done):
            self.steer(concept, aim if 2 * done >= frames else 0.0)
            sound, _, reading = self.next()
            sounds, readings = [*sounds, sound[1:]], [*readings, reading]
            strengths += [self._now[1]] * reading.shape[1]
        take, reading = self.stop(), np.concatenate(readings, axis=1)
        self.played = kept or take
        said = f"{begin['prompt'] or 'no prompt'} (seed {take.seeds[1]}), steered by {aim:+g} {concept}"
        far = np.quantile(np.abs(reading), 0.99)  # where the colours end
        ends = f"−{far:.1f} blue, +{far:.1f} red" if reading.min() < 0 < reading.max() else "0 is dark"
        told = f"what the probe of {concept} reads ({ends}): steered, and below it the unsteered twin"
        strips = {f"strength: 0, then {aim:+g}": [strengths], told: reading}
        sound = np.concatenate(sounds, axis=1)
        return player(sound, take.sample_rate, f"{said} from the middle on", strips=strips)

    def _repr_mimebundle_(self, **options):
        made = super()._repr_mimebundle_(**options)
        data = made[0] if isinstance(made, tuple) else made
        if data is not None and self._stream is None:
            data["text/html"] = self.sketch()
        return made
