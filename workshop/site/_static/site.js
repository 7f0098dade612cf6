// Figures come to life when one scrolls to them, links to sounds play in place, and players of one cell can be switched.
"use strict";

// From the disk a page may not read others, so that search names pages without quoting them.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

const ROOT = document.documentElement;
const address = (path) => new URL(path, new URL(ROOT.dataset.content_root, location.href)).href;
const CONFIG = { showSendToCloud: false, plotlyServerURL: "", displaylogo: false };

// ---- Figures -------------------------------------------------------------------------------------------------

let plotly = null; // one copy for all figures, loaded when the first is needed
const loadPlotly = () =>
  (plotly ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = address("figures/plotly.min.js");
    script.onload = () => done(window.Plotly);
    script.onerror = failed;
    document.head.append(script);
  }));

const GREYS = { white: [255, 255, 255], black: [0, 0, 0], grey: [128, 128, 128], gray: [128, 128, 128] };

/** A colour for a dark page: greys change sides, all others say what they said. */
function darkened(colour) {
  let parts = GREYS[colour];
  const hex = /^#([0-9a-f]{3}|[0-9a-f]{6})$/i.exec(colour);
  const rgb = /^rgba?\(([^)]+)\)$/.exec(colour);
  if (hex) parts = (hex[1].length === 3 ? [...hex[1]].map((c) => c + c) : hex[1].match(/../g)).map((c) => parseInt(c, 16));
  if (rgb) parts = rgb[1].split(",").map(Number);
  if (!parts || Math.max(...parts.slice(0, 3)) - Math.min(...parts.slice(0, 3)) > 12) return colour;
  const level = Math.round(232 - (parts[0] * 204) / 255);
  return `rgba(${level},${level},${level},${parts[3] ?? 1})`;
}

/** A copy of a figure with its greys for the page's theme; what is mapped to numbers stays. */
function recoloured(value, key = "") {
  if (Array.isArray(value)) return key === "colorscale" ? value : value.map((one) => recoloured(one, key));
  if (value && typeof value === "object") {
    return Object.fromEntries(
      Object.entries(value).map(([name, one]) =>
        [name, /^(sequential|diverging|sequentialminus)$/.test(name) ? one : recoloured(one, name)]),
    );
  }
  return typeof value === "string" && /color(way)?$/.test(key) ? darkened(value) : value;
}

function themed(figure) {
  const copy = structuredClone(figure);
  if (ROOT.dataset.theme !== "dark") return copy;
  const dark = recoloured(copy);
  dark.layout.paper_bgcolor = dark.layout.plot_bgcolor = "rgba(0,0,0,0)";
  return dark;
}

/** Draw a figure, as wide as it was made and scaled to its place, since its title was measured for that width. */
async function draw(holder) {
  const Plotly = await loadPlotly();
  const figure = (holder.figure ??= JSON.parse(holder.querySelector("script").textContent));
  const plot = holder.querySelector(".live-plot");
  const { data, layout } = themed(figure);
  await Plotly.react(plot, data, layout, { ...CONFIG, responsive: false });
  fit(holder);
  holder.classList.add("is-live");
}

function fit(holder) {
  if (!holder.figure) return;
  const scale = holder.classList.contains("is-tapped") ? 1 : Math.min(1, holder.clientWidth / holder.figure.layout.width);
  holder.querySelector(".live-plot").style.transform = scale < 1 ? `scale(${scale})` : "";
}

const NARROW = 560; // px; below it a scaled figure couldn't be read, so that the picture stays until it is tapped

function prepare(holder) {
  if (holder.clientWidth >= NARROW || !holder.querySelector("img")) return draw(holder);
  if (holder.querySelector(".live-hint")) return;
  const hint = Object.assign(document.createElement("button"), { className: "live-hint", textContent: "Explore" });
  hint.onclick = () => {
    hint.remove();
    holder.classList.add("is-tapped");
    draw(holder);
  };
  holder.append(hint);
}

function figures() {
  const holders = document.querySelectorAll(".live-figure");
  const seen = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      seen.unobserve(entry.target);
      prepare(entry.target);
    }),
    { rootMargin: "300px" },
  );
  holders.forEach((holder) => seen.observe(holder));
  const live = () => document.querySelectorAll(".live-figure.is-live");
  new MutationObserver(() => live().forEach(draw)).observe(ROOT, { attributeFilter: ["data-theme"] });
  addEventListener("resize", () => live().forEach(fit));
}

// ---- Sounds --------------------------------------------------------------------------------------------------

const sounds = new Set(); // of links; players are found in the page

/** Stop whatever plays but `sound`; the moment it had come to, or null. */
function stopOthers(sound) {
  let moment = null;
  for (const other of [...document.querySelectorAll("audio"), ...sounds]) {
    if (other === sound || other.paused) continue;
    moment = other.currentTime;
    other.pause();
  }
  return moment;
}

function playsInPlace(link) {
  let sound = null;
  link.addEventListener("click", (event) => {
    event.preventDefault();
    if (!sound) {
      sound = new Audio(link.href);
      sounds.add(sound);
      sound.ontimeupdate = () => link.style.setProperty("--played", `${(100 * sound.currentTime) / sound.duration}%`);
      sound.onplay = () => link.classList.add("is-playing");
      sound.onpause = () => link.classList.remove("is-playing");
      link.sound = sound;
    }
    if (!sound.paused) return sound.pause();
    const moment = stopOthers(sound);
    if (moment !== null) sound.currentTime = moment;
    sound.play();
  });
}

/** Buttons that play another clip of a cell from the moment that the one before had come to. */
function switches(output) {
  const players = [...output.querySelectorAll("audio")];
  if (players.length < 2 || output.querySelector("button, input")) return;
  const bar = document.createElement("div");
  bar.className = "switch";
  bar.append("Switch while it plays:");
  players.forEach((player, k) => {
    const letter = String.fromCharCode(65 + k);
    const caption = player.closest("figure")?.querySelector("figcaption");
    const button = Object.assign(document.createElement("button"), { textContent: letter, title: caption?.textContent ?? "" });
    if (caption) caption.prepend(`${letter}: `);
    button.onclick = () => {
      const moment = stopOthers(player) ?? players.find((one) => one.currentTime > 0 && !one.ended)?.currentTime ?? 0;
      player.currentTime = moment;
      player.play();
    };
    player.addEventListener("play", () => button.setAttribute("aria-pressed", "true"));
    player.addEventListener("pause", () => button.setAttribute("aria-pressed", "false"));
    bar.append(button);
  });
  players[0].closest("figure").before(bar);
}

document.addEventListener("DOMContentLoaded", () => {
  figures();
  document.querySelectorAll("a.sound").forEach(playsInPlace);
  document.querySelectorAll(".cell_output .output").forEach(switches);
  document.addEventListener("play", (event) => stopOthers(event.target), true);
});
