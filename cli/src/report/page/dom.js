// Elements and text: what the other scripts build the page from.

const SVG = "http://www.w3.org/2000/svg";

/** An element: attributes by name (`on*` are listeners, null and false are left out), then children (text or nodes). */
function element(space, name, attributes, children) {
  const made = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return made;
}
const h = (name, attributes, ...children) => element(null, name, attributes, children);
const s = (name, attributes, ...children) => element(SVG, name, attributes, children);
const $ = (id) => document.getElementById(id);

/** Three significant digits, no exponent: 1.23, 12.3, 123, 1,235. */
function digits(x) {
  if (!isFinite(x)) return "–";
  const size = Math.abs(x);
  if (size >= 1000) return Math.round(x).toLocaleString("en");
  return x.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}
/** A value in the largest unit that leaves it above 1. */
function scaled(x, step, units) {
  let at = 0;
  while (Math.abs(x) >= step && at + 1 < units.length) { x /= step; at++; }
  return `${at === 0 && Number.isInteger(x) ? x.toLocaleString("en") : digits(x)} ${units[at]}`;
}
const time = (ns) => (ns === null || ns === undefined ? "–" : scaled(ns, 1000, ["ns", "µs", "ms", "s"]));
const bytes = (n) => scaled(n, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const count = (n) => n.toLocaleString("en");
const rate = (n, unit) => `${digits(n)} ${unit}`;
const plural = (n, one, more) => `${count(n)} ${n === 1 ? one : more || one + "s"}`;

/** The hue of a group; neighbours lie far apart. */
const hue = (group) => Math.round((245 + group * 137.508) % 360);
const hued = (group) => (group === undefined || group === null ? null : `--h:${hue(group)}`);

/** Widths of text as the page will draw it. */
const ruler = document.createElement("canvas").getContext("2d");
function width(text, font) {
  ruler.font = font;
  return ruler.measureText(text).width;
}

/** Of controls in a row one is a tab stop; arrow keys, Home and End move among them. */
function roving(container, selector) {
  container.addEventListener("keydown", (event) => {
    const all = [...container.querySelectorAll(selector)];
    const at = all.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : step && (at + step + all.length) % all.length;
    if (at < 0 || to === undefined || !all[to]) return;
    event.preventDefault();
    const name = all[to].dataset.key;
    all[to].click();
    const now = [...container.querySelectorAll(selector)].find((e) => e.dataset.key === name);
    if (now) now.focus();
  });
}

/** A row of choices of which one holds; `choices` are [key, label, title]. */
function segments(container, label, choices, chosen, choose) {
  const there = [...container.children];
  if (there.length === choices.length && there.every((e, i) => e.dataset.key === choices[i][0])) {
    for (const e of there) { e.setAttribute("aria-checked", String(e.dataset.key === chosen)); e.tabIndex = e.dataset.key === chosen ? 0 : -1; }
    return;
  }
  container.replaceChildren(...choices.map(([key, text, title]) =>
    h("button", {
      type: "button", role: "radio", "data-key": key, "aria-checked": String(key === chosen), title,
      tabindex: key === chosen ? 0 : -1, onclick: () => choose(key),
    }, text)));
  container.setAttribute("role", "radiogroup");
  container.setAttribute("aria-label", label);
}

/** Text in base64, deflated, as what it was. */
async function unpack(id) {
  const text = $(id).textContent.trim();
  const raw = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}
