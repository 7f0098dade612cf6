// What our pages share: making nodes, and light or dark as the page around them is.

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Keep root.dataset.theme "light" or "dark"; returns { look, end }, to look again and to stop.
function followTheme(root) {
  const look = () => {
    const host = getComputedStyle(document.body);
    const colour = host.getPropertyValue("--jp-layout-color0").trim() || host.backgroundColor;
    const probe = h("span", { style: `color: ${colour}` });
    root.append(probe);
    const [red, green, blue, alpha] = (getComputedStyle(probe).color.match(/[\d.]+/g) || []).map(Number);
    probe.remove();
    const known = red !== undefined && alpha !== 0;
    const told = document.body.dataset.jpThemeLight; // JupyterLab and voila say it themselves
    const dark = told ? told === "false" : known ? 0.299 * red + 0.587 * green + 0.114 * blue < 128 : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "dark" : "light";
  };
  look();
  const watch = new MutationObserver(look);
  watch.observe(document.body, { attributes: true });
  return { look, end: () => watch.disconnect() };
}
