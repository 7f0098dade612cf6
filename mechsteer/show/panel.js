// The live panel: asks the kernel for one chunk of sound after another, plays them without a gap, and draws what
// came with them. The kernel does nothing unless it is asked. page.js comes before it.

const AHEAD = 0.3; // s of sound that wait to be played; more when they run out, and less again when they last
const SHOWN = 10; // s in the strip
const COLOURS = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];
const LUT = Array.from({ length: 256 }, (_, i) => {
  const at = (i / 255) * (COLOURS.length - 1), k = Math.min(Math.floor(at), COLOURS.length - 2);
  return COLOURS[k].map((c, j) => Math.round(c + (at - k) * (COLOURS[k + 1][j] - c)));
});
const STEERED = "steered", TWIN = "unsteered twin";
let panels = 0;

function render({ model, el }) {
  const { concepts, layers, branches, strongest, begin, rate, frameRate, columns, bands } = model.get("setup");
  const uid = `panel-${++panels}`;
  const root = h("section", { class: "mechsteer-panel", "data-lm-suppress-shortcuts": "true", "aria-label": "Steer while it plays" });
  el.append(root);

  const field = (name, node) => h("label", { for: (node.id = `${uid}-${name}`) }, h("span", {}, name), node);
  const choice = (values, value) => h("select", {}, ...values.map((v) => h("option", { value: v, selected: v === value }, String(v))));
  const concept = choice(concepts, begin.concept);
  const strength = h("input", { type: "range", min: -strongest, max: strongest, step: 0.05, value: begin.strength });
  const branch = choice(branches, begin.branch);
  const layer = choice(layers, begin.layer);
  const prompt = h("input", { type: "text", placeholder: "none: unconditional" });
  const seed = h("input", { type: "number", min: 0, step: 1, value: begin.seed });
  prompt.value = begin.prompt;
  const amount = h("output", { class: "amount", for: `${uid}-strength` });
  const slider = h("div", { class: "slider" }, field("strength", strength), amount);
  const button = h("button", { type: "button", class: "main" }, "Play");
  const heard = [STEERED, TWIN].map((name) => h("button", { type: "button", "aria-pressed": String(name === STEERED) }, name));
  const hear = h("div", { class: "hear", role: "group", "aria-label": "What you hear" }, h("span", {}, "hear"), ...heard);
  const status = h("div", { class: "status", role: "status", "aria-live": "polite" });
  const canvas = h("canvas", { width: 1000, height: 300, role: "img", "aria-label": "Spectrogram, strength and reading" });
  const now = h("div", { class: "now" });
  const code = h("code", {});
  root.append(
    h("div", { class: "row" }, button, hear, now),
    h("div", { class: "row live" }, field("concept", concept), slider, field("branch", branch)),
    h("div", { class: "row" }, field("layer", layer), field("prompt", prompt), field("seed", seed)),
    h("div", { class: "strip" }, canvas), status, h("pre", {}, code),
  );
  const fixed = [layer, prompt, seed];
  const theme = followTheme(root);

  let context = null, gains = [], playing = false, waiting = null, count = 0, play = "", origin = 0, edge = 0;
  let ahead = AHEAD, underruns = 0, made = 0, spent = 0, listening = 0, waits = 0, timer = null, drawn = 0;
  let track = { frames: [], steered: null, twin: null };

  const settings = () => ({
    concept: concept.value, strength: Number(strength.value), branch: branch.value,
    layer: Number(layer.value), prompt: prompt.value, seed: Math.max(0, Math.floor(Number(seed.value) || 0)),
  });
  const say = (text) => { if (status.textContent !== text) status.textContent = text; };
  const moved = () => {
    amount.value = (strength.value > 0 ? "+" : "") + Number(strength.value).toFixed(2);
    strength.setAttribute("aria-valuetext", `${amount.value} times the mean activation`);
    if (playing) ask(); // at once, if nothing is on its way
  };

  function ask(first = false) {
    if (waiting !== null) return;
    waiting = ++count;
    waits = performance.now();
    model.send({ kind: "next", id: waiting, play, first, ...settings() });
  }

  async function start() {
    context = context || new AudioContext({ sampleRate: rate });
    if (!gains.length) {
      gains = [TWIN, STEERED].map(() => { const g = new GainNode(context); g.connect(context.destination); return g; });
    }
    choose(listening);
    await context.resume();
    [playing, play, waiting] = [true, `${uid}-${Date.now()}`, null];
    [edge, underruns, made, spent, ahead] = [0, 0, 0, 0, AHEAD];
    track = { frames: [], steered: strip(), twin: strip() };
    fixed.forEach((node) => { node.disabled = true; });
    button.textContent = "Stop";
    say("The first sound is being made ...");
    ask(true);
    timer = setInterval(tick, 20);
    follow();
  }

  function stop(keep = true) {
    if (!playing) return;
    playing = false;
    clearInterval(timer);
    gains.forEach((gain) => gain.disconnect());
    gains = [];
    fixed.forEach((node) => { node.disabled = false; });
    button.textContent = "Play";
    if (keep) model.send({ kind: "stop", id: ++count, play });
  }

  function tick() { // nothing else asks, so a closed page asks for nothing
    if (!root.isConnected) return stop(false);
    if (context.state === "running" && edge && context.currentTime > edge && waiting !== null && !track.dry) {
      track.dry = true;
      underruns += 1;
      ahead = Math.min(1.5, ahead * 1.4);
    }
    if (!edge || edge - context.currentTime < ahead) ask();
    ahead = Math.max(AHEAD, ahead - 0.0005); // 25 ms a second
    const pace = made / Math.max(spent, 0.001);
    const slow = performance.now() - waits > 3000 && waiting !== null;
    const advice = pace < 1 ? "this machine makes less than it plays, so take model.generate, or a smaller model"
      : "other work on this machine, or another cell of this notebook, held it up";
    if (slow) say("Waiting for the kernel: it is busy with another cell, or has stopped.");
    else if (edge) say(`${pace.toFixed(1)} times real time; ${underruns} underrun${underruns === 1 ? "" : "s"}${underruns ? `: ${advice}; sound now waits ${ahead.toFixed(2)} s` : ""}`);
  }

  const strip = () => h("canvas", { width: Math.round(SHOWN * frameRate * columns), height: bands });

  function paint(picture, bytes, first) {
    const [height, width] = [picture.height, bytes.length / bands], ink = picture.getContext("2d");
    for (let c = 0; c < width; c++) {
      const column = ink.createImageData(1, height);
      for (let b = 0; b < bands; b++) column.data.set([...LUT[bytes[c * bands + b]], 255], 4 * (height - 1 - b));
      ink.putImageData(column, (first * columns + c) % picture.width, 0);
    }
  }

  function receive(answer, buffers) {
    if (answer.reply === waiting) waiting = null;
    if (answer.play !== play) return;
    if (answer.error) { stop(false); say(answer.error); return; }
    if (answer.ended) { stop(false); say("This panel plays on another page."); return; }
    if (answer.seconds !== undefined && answer.first === undefined) {
      code.textContent = answer.code;
      say(`Kept: ${answer.seconds.toFixed(1)} s with all you did; the lines below make it again, token by token.`);
      return;
    }
    if (!playing) return;
    const view = (k) => new Uint8Array(buffers[k].buffer, buffers[k].byteOffset, buffers[k].byteLength);
    const sounds = [0, 1].map((k) => new Float32Array(view(k).slice().buffer));
    if (!edge || context.currentTime > edge) { // the beginning, or after an underrun: a moment from now, on a sample
      const from = (Math.ceil((context.currentTime + 0.03) * rate)) / rate;
      origin = from - answer.first / frameRate;
      edge = from;
    }
    track.dry = false;
    sounds.forEach((sound, k) => {
      const buffer = context.createBuffer(1, sound.length, rate);
      buffer.copyToChannel(sound, 0);
      const source = new AudioBufferSourceNode(context, { buffer });
      source.connect(gains[k]);
      source.start(edge);
    });
    edge += sounds[0].length / rate;
    made += sounds[0].length / rate;
    spent += answer.seconds;
    paint(track.twin, view(2), answer.first);
    paint(track.steered, view(3), answer.first);
    for (let f = 0; f < answer.frames; f++) {
      const [twin, steered] = answer.reading.map((row) => row[Math.min(f, row.length - 1)]);
      track.frames.push({ frame: answer.first + f, strength: answer.strength, concept: concept.value, twin, steered });
    }
    track.frames = track.frames.slice(-Math.ceil(SHOWN * frameRate));
    code.textContent = answer.code;
    tick();
  }

  function draw() {
    const ink = canvas.getContext("2d"), wide = canvas.width, gutter = 128, css = getComputedStyle(root);
    const [text, line, accent, muted] = ["--text", "--line", "--accent", "--muted"].map((n) => css.getPropertyValue(n));
    const frame = edge ? Math.max(0, (context.currentTime - origin) * frameRate) : 0;
    const span = SHOWN * frameRate, left = Math.max(0, frame - 0.85 * span);
    const x = (f) => gutter + ((f - left) / span) * (wide - gutter);
    ink.clearRect(0, 0, wide, canvas.height);
    ink.font = "13px system-ui, sans-serif";
    const note = (words, px, py, align) => {
      ink.fillStyle = muted;
      ink.textAlign = align;
      ink.fillText(words, px, py);
    };
    const picture = listening === 0 ? track.steered : track.twin, last = track.frames.at(-1);
    if (picture && last) {
      const end = (last.frame + 1) * columns; // the picture is a ring: at most two pieces of it
      for (let c = Math.ceil(Math.max(left, track.frames[0].frame)) * columns; c < end; ) {
        const at = c % picture.width, n = Math.min(end - c, picture.width - at);
        ink.drawImage(picture, at, 0, n, bands, x(c / columns), 0, x((c + n) / columns) - x(c / columns), 118);
        c += n;
      }
    }
    note(`${(rate / 2000).toFixed(0)} kHz`, gutter - 8, 12, "right");
    note("sound", gutter - 8, 64, "right");
    note("0 (mel)", gutter - 8, 116, "right");
    const furthest = track.frames.reduce((most, p) => Math.max(most, Math.abs(p.steered), Math.abs(p.twin)), 1.2);
    const band = (name, middle, end, lines) => {
      ink.strokeStyle = line;
      ink.lineWidth = 1;
      ink.setLineDash([]);
      for (const py of [middle - 34, middle, middle + 34]) {
        ink.beginPath();
        ink.moveTo(gutter, py);
        ink.lineTo(wide, py);
        ink.stroke();
      }
      note(`+${end}`, gutter - 8, middle - 26, "right");
      note(name, gutter - 8, middle + 4, "right");
      note(`−${end}`, gutter - 8, middle + 36, "right");
      for (const [key, colour, dash] of lines) {
        ink.beginPath();
        ink.setLineDash(dash);
        ink.strokeStyle = colour;
        ink.lineWidth = 2.5;
        track.frames.filter((p) => p.frame >= left).forEach((p, i) => {
          const py = middle - 34 * (p[key] / end);
          if (!i) ink.moveTo(x(p.frame), py);
          else if (key === "strength") ink.lineTo(x(p.frame), py); // holds until it changes
          ink.lineTo(x(p.frame + (key === "strength" ? 1 : 0)), py);
        });
        ink.stroke();
      }
      ink.setLineDash([]);
    };
    band("strength", 158, strongest, [["strength", accent, []]]);
    band(`reads ${concept.value}`, 236, furthest.toFixed(1), [["twin", muted, [5, 4]], ["steered", accent, []]]);
    for (let s = Math.ceil(left / frameRate / 2) * 2; s * frameRate < left + span; s += 2) note(`${s} s`, x(s * frameRate), 290, "center");
    if (edge) {
      ink.fillStyle = text;
      ink.fillRect(x(frame) - 1, 0, 2, 272);
    }
    const at = track.frames.findLast((point) => point.frame <= frame);
    if (at) now.textContent = `${(frame / frameRate).toFixed(1)} s · strength ${at.strength.toFixed(2)} · reads ${at.steered.toFixed(2)} (twin ${at.twin.toFixed(2)})`;
  }

  function follow(when = 0) { // 12 pictures a second are enough, and leave the machine to the music
    if (!playing) return;
    if (when - drawn > 80) {
      drawn = when;
      draw();
    }
    requestAnimationFrame(follow);
  }

  function choose(which) {
    listening = which;
    heard.forEach((node, k) => node.setAttribute("aria-pressed", String(k === which)));
    gains.forEach((gain, k) => gain.gain.setTargetAtTime(k === 1 - which ? 1 : 0, context.currentTime, 0.01));
    draw();
  }

  heard.forEach((node, k) => node.addEventListener("click", () => choose(k)));
  button.addEventListener("click", () => (playing ? stop() : start()));
  strength.addEventListener("input", moved);
  [concept, branch].forEach((node) => node.addEventListener("change", moved));
  const message = (content, buffers) => receive(content, buffers);
  model.on("msg:custom", message);
  moved();
  choose(0);
  say("Press Play: the music goes on until you stop it.");

  return () => {
    stop();
    model.off("msg:custom", message);
    theme.end();
    if (context) context.close();
  };
}

export default { render };
