// The page of a listening test: shows what the kernel's Session sends, and sends back what the listener does.
// It knows letters and sounds, never a condition. Every text from outside goes through textContent.
// page.js and player.js come before it.

let counter = 0;

const ABOUT = {
  preference: "Two sounds, A and B. Switch between them as often as you like, then choose one. There is no wrong answer.",
  abx: "Three sounds: A, B and X. X is the same as A or the same as B. Listen for which; if you can't tell, guess.",
  rating: "Several sounds on one page. Listen to all of them, and give each a number from 0 (not at all) to 100 (as much as can be).",
};

function render({ model, el }) {
  const uid = `listening-${++counter}`;
  const root = h("section", { class: "mechsteer-listening", "data-lm-suppress-shortcuts": "true", "aria-label": "Listening test" });
  const body = h("div", { class: "body" });
  const banner = h("div", { class: "banner", role: "alert", hidden: true });
  const live = h("div", { class: "only-spoken", role: "status", "aria-live": "polite" });
  root.append(banner, body, live);
  el.append(root);

  let silence = () => {}; // stops the trial being shown
  let keys = () => false;
  let waiting = null;
  let loop = true;
  let test = "";

  const theme = followTheme(root);

  const ownPage = Boolean(document.body.dataset.voila); // then a listener knows neither notebook nor kernel

  function trouble(text, retry) {
    const [what, act] = ownPage ? ["The connection is lost. Reload this page", () => location.reload()] : [text, retry];
    banner.replaceChildren(h("span", {}, `${what} and enter the same name: all answers you saved are kept.`),
      h("button", { type: "button", onclick: act }, ownPage ? "Reload" : "Try again"));
    banner.hidden = false;
  }

  // Every message may be sent twice without harm, so one that gets no reply in 3 s is: after a reload some are lost.
  function ask(message, tries = 0) {
    clearTimeout(waiting);
    root.setAttribute("aria-busy", "true");
    const again = () => ask(message);
    waiting = setTimeout(() => {
      if (tries >= 2) trouble("No reply yet. If the kernel has stopped, run the notebook again", again);
      if (tries < 20) ask(message, tries + 1);
    }, 3000);
    try {
      model.send({ ...message, id: ++counter });
    } catch (error) {
      trouble(`The kernel can't be reached (${error.message}). Run the notebook again`, again);
    }
  }

  function show(heading, ...children) {
    const title = h("h2", { tabindex: "-1" }, heading);
    const mine = here; // JupyterLab takes the focus when the node that has it goes
    body.replaceChildren(title, ...children.filter((child) => child));
    here = mine;
    focus(title);
  }

  // Who runs a notebook's cells one by one keeps the focus there until the test is clicked or tabbed into.
  let here = ownPage;
  const look = (event) => { here = ownPage || root.contains(event.target); };
  const focus = (node) => here && node.focus({ preventScroll: true });

  const button = (text, onclick, kind = "main") => h("button", { type: "button", class: kind, onclick }, text);
  const facts = (...lines) => h("ul", {}, ...lines.map((line) => h("li", {}, line)));
  const note = (text) => (text ? h("p", { class: "error", role: "alert" }, text) : null);

  function welcome(page) {
    test = `mechsteer-listening-${page.test}`;
    const field = h("input", { type: "text", id: `${uid}-name`, maxlength: "200", autocomplete: "off", spellcheck: "false" });
    field.value = sessionStorage.getItem(test) || "";
    const form = h("form", { onsubmit: (event) => {
      event.preventDefault();
      ask({ do: "name", name: field.value });
    } },
    h("label", { for: field.id }, "Your name, or any name you will use again"),
    h("div", { class: "row" }, field, h("button", { type: "submit", class: "main" }, "Begin")), note(page.error));
    show(page.question,
      h("p", {}, ABOUT[page.kind]),
      facts(`${page.trials} pages, about ${page.minutes} minute${page.minutes > 1 ? "s" : ""}`,
        "Headphones and a quiet place, please",
        "Each answer is saved as you give it, and can't be changed. You can stop at any time and come back under the same name"),
      form);
    focus(field);
  }

  const someoneElse = (text) => button(text, () => {
    sessionStorage.removeItem(test);
    ask({ do: "someone else" });
  }, "quiet");

  function resume(page) {
    show(`Is that you, ${page.name}?`,
      h("p", {}, `There is a listener of that name, who has answered ${page.done} of ${page.total} pages.`),
      h("div", { class: "row" }, button("Yes, go on", () => ask({ do: "name", name: page.name, again: true })),
        someoneElse("No, I'm someone else")));
    keys = () => false;
  }

  function intro(page) {
    const several = page.trials > 1;
    const text = {
      headphones: ["Put on your headphones", h("p", {}, "You will hear three tones at a time and say which is the quietest. "
        + "That tells whether headphones are on, the right way."),
      facts("Set a comfortable volume with the first tones, and leave it there for the whole test",
        `${page.trials} short page${several ? "s" : ""}`)],
      practice: [several ? "First, some practice" : "First, one page for practice",
        h("p", {}, "Try everything out: switching, looping, answering. This answer doesn't count.")],
      main: ["Now the test", h("p", {}, `${page.trials} page${several ? "s" : ""}. Take the time you need. ${ABOUT[page.kind]}`)],
    }[page.stage];
    show(text[0], ...text.slice(1), button("Go on", () => ask({ do: "next", stage: page.stage })));
    keys = (event) => event.key === "Enter" && (ask({ do: "next", stage: page.stage }), true);
  }

  function done(page) {
    show("Thank you!", h("p", { class: "big" }, "✓"), h("p", {}, `All your answers (${page.answered}) are saved. You can close this page.`),
      h("div", { class: "row" }, someoneElse("Another listener")));
    keys = () => false;
  }

  async function trial(page, sounds) {
    const { letters, kind, listen } = page;
    const choices = letters.filter((letter) => letter !== "X");
    const check = kind === "headphones";
    const began = performance.now();
    let choice = null;
    const rated = choices.map(() => null);

    const player = new Player(() => update());
    silence = () => player.pause();
    player.loop = check ? false : loop;

    const tiles = letters.map((letter, k) => h("button", { type: "button", class: "tile", onclick: () => hear(k) },
      h("span", { class: "letter" }, letter), h("span", { class: "state" }, ""), h("span", { class: "fill" })));
    const playButton = button("", () => (player.playing ? player.pause() : player.play()), "play");
    const seek = h("input", { type: "range", min: "0", max: "1000", value: "0", "aria-label": "Position", class: "seek",
      oninput: () => player.seek((seek.value / 1000) * player.duration) });
    const clock = h("span", { class: "clock", "aria-hidden": "true" });
    const looping = h("input", { type: "checkbox", id: `${uid}-loop`, onchange: () => {
      loop = looping.checked;
      player.setLoop(loop);
    } });
    looping.checked = player.loop;
    const hint = h("p", { class: "hint", id: `${uid}-hint` });
    const next = button("Save and go on", save);

    const sliders = kind !== "rating" ? [] : choices.map((letter, k) => h("input", { type: "range", min: "0", max: "100",
      value: "50", class: "vertical", "aria-label": `Rating of ${letter}`, "aria-describedby": hint.id, "data-untouched": "true",
      "aria-valuetext": "not rated yet",
      onfocus: () => player.selected !== k && player.playing && hear(k),
      oninput: (event) => rate(k, Number(event.target.value)) }));
    const numbers = sliders.map(() => h("output", {}, "–"));
    const radios = kind === "rating" ? [] : choices.map((letter) => h("input", { type: "radio", name: `${uid}-answer`,
      value: letter, id: `${uid}-${letter}`, "aria-describedby": hint.id, onchange: () => choose(letter) }));
    const say = (letter) => (kind === "abx" ? `X is ${letter}` : letter);

    function hear(k) {
      player.select(k, check);
      player.play();
      live.textContent = `Playing ${letters[k]}`;
    }
    const ready = () => player.heard.length === letters.length && player.heard.every((s) => s >= listen);
    const answered = () => (kind === "rating" ? rated.every((v) => v !== null) : choice !== null);
    function choose(letter) {
      if (!ready()) return;
      choice = letter;
      radios.forEach((radio) => { radio.checked = radio.value === letter; });
      update();
    }
    function rate(k, value) {
      rated[k] = value;
      sliders[k].removeAttribute("data-untouched");
      sliders[k].removeAttribute("aria-valuetext");
      numbers[k].textContent = value;
      update();
    }
    function save() {
      if (!ready() || !answered() || root.getAttribute("aria-busy") === "true") return;
      player.pause();
      ask({ do: "answer", token: page.token, choice, ratings: rated, heard: player.heard, switches: player.switches,
        seconds: (performance.now() - began) / 1000 });
    }

    let was = null;
    function update() {
      tiles.forEach((tile, k) => {
        const share = Math.min(1, (player.heard[k] || 0) / listen);
        const current = player.selected === k;
        tile.classList.toggle("current", current);
        tile.classList.toggle("sounding", current && player.playing);
        tile.setAttribute("aria-pressed", String(current && player.playing));
        tile.setAttribute("aria-label", `Listen to ${letters[k]}, ${share < 1 ? "not heard yet" : "heard"}`);
        tile.children[1].textContent = current && player.playing ? "playing" : share < 1 ? "listen" : "heard ✓";
        tile.children[2].style.width = `${100 * share}%`;
      });
      playButton.textContent = player.playing ? "❚❚ Pause" : "▶ Play";
      const at = player.position;
      if (document.activeElement !== seek || player.playing) seek.value = (1000 * at) / (player.duration || 1);
      seek.setAttribute("aria-valuetext", `${at.toFixed(0)} of ${(player.duration || 0).toFixed(0)} seconds`);
      clock.textContent = `${at.toFixed(1)} / ${(player.duration || 0).toFixed(1)} s`;
      const open = ready();
      [...radios, ...sliders].forEach((input) => { input.disabled = !open; });
      next.disabled = !(open && answered());
      const state = !open ? "listen" : !answered() ? "answer" : "save";
      if (state !== was) {
        const least = listen < 1 ? "briefly" : `for at least ${listen.toFixed(0)} second${listen >= 1.5 ? "s" : ""}`;
        hint.textContent = {
          listen: `Listen to each sound ${least}; then you can answer.`,
          answer: kind === "rating" ? "Move every slider." : "Choose your answer.",
          save: "You can still change your answer until you save it.",
        }[state];
        if (was === "listen") live.textContent = hint.textContent;
        was = state;
      }
    }

    const label = { headphones: "Headphone check", practice: "Practice", main: "Page" }[page.stage];
    const answers = kind === "rating"
      ? h("div", { class: "sliders", role: "group", "aria-label": "Ratings" },
        h("div", { class: "scale", "aria-hidden": "true" }, ...["100", "75", "50", "25", "0"].map((t) => h("span", {}, t))),
        ...choices.map((letter, k) => h("div", { class: "strip" }, tiles[k], sliders[k], numbers[k])))
      : h("fieldset", { class: "answers" }, h("legend", {}, kind === "abx" ? "Your answer" : check ? "The quietest is" : "Your choice"),
        ...choices.map((letter, k) => h("span", { class: "answer" }, radios[k], h("label", { for: radios[k].id }, say(letter)))));
    show(page.question,
      h("div", { class: "where" }, h("span", {}, `${label} ${page.number} of ${page.total}`),
        h("progress", { max: page.total, value: page.number - 1, "aria-hidden": "true" })),
      kind === "rating" ? answers : h("div", { class: "tiles" }, ...tiles),
      h("div", { class: "transport" }, playButton, seek, clock, check ? null
        : h("span", { class: "loop" }, looping, h("label", { for: looping.id }, "Loop"))),
      kind === "rating" ? null : answers,
      hint, note(page.error), h("div", { class: "row" }, next),
      h("p", { class: "keys" }, h("kbd", {}, letters.join(" ")), " listen  ", h("kbd", {}, "P"), " or ", h("kbd", {}, "Space"), " play, pause  ",
        check ? "" : h("kbd", {}, "L"), check ? "" : " loop  ",
        ...(kind === "rating" ? [h("kbd", {}, choices.map((_, k) => k + 1).join(" ")), " slider, then ", h("kbd", {}, "↑ ↓"), "  "]
          : [h("kbd", {}, choices.map((_, k) => k + 1).join(" ")), " choose  "]), h("kbd", {}, "Enter"), " save"));

    keys = (event) => {
      const key = event.key.length === 1 ? event.key.toUpperCase() : event.key;
      const control = event.target.closest("button, input[type=checkbox]");
      if (letters.includes(key)) hear(letters.indexOf(key));
      else if (key === "P" || (key === " " && !control)) player.playing ? player.pause() : player.play();
      else if (key === "L" && !check) looping.click();
      else if (/^[1-9]$/.test(key) && Number(key) <= choices.length) {
        if (kind !== "rating") {
          choose(choices[key - 1]);
          if (ready()) radios[key - 1].focus(); // so that Enter saves, whatever was clicked before
        }
        else {
          hear(key - 1);
          sliders[key - 1].focus();
        }
      } else if (key === "Enter" && !control) save();
      else return false;
      return true;
    };
    root.setAttribute("aria-busy", "true");
    update();
    await player.load(sounds);
    root.removeAttribute("aria-busy");
    update();
    live.textContent = `${label} ${page.number} of ${page.total}. ${page.question}`;
  }

  const PAGES = { welcome, resume, intro, trial, done };

  function receive(page, sounds) {
    if (!page || !PAGES[page.page]) return;
    clearTimeout(waiting);
    banner.hidden = true;
    root.removeAttribute("aria-busy");
    silence();
    keys = () => false;
    const field = body.querySelector("input[type=text]");
    if (field && page.page !== "welcome" && page.page !== "resume") sessionStorage.setItem(test, field.value);
    theme.look();
    root.dataset.page = page.page === "trial" ? `trial-${page.kind}` : page.page;
    PAGES[page.page](page, sounds || []);
  }
  model.on("msg:custom", receive);

  // In JupyterLab keys count while the test has the focus; on a page of its own, always.
  const scope = ownPage ? document : root;
  const press = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=text]")) return;
    if (root.isConnected && keys(event)) {
      event.preventDefault();
      event.stopPropagation();
    }
  };
  scope.addEventListener("keydown", press, true);
  for (const kind of ["focusin", "pointerdown"]) document.addEventListener(kind, look, true);
  root.addEventListener("keydown", (event) => event.stopPropagation());

  ask({ do: "hello" });
  return () => {
    clearTimeout(waiting);
    silence();
    theme.end();
    model.off("msg:custom", receive);
    scope.removeEventListener("keydown", press, true);
    for (const kind of ["focusin", "pointerdown"]) document.removeEventListener(kind, look, true);
  };
}

export default { render };
