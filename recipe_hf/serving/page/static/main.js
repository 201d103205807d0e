// The frame: which view is shown, the session, the colours, the keys.

import { $, svg } from "./dom.js";
import { ask } from "./ask.js";
import { facts } from "./facts.js";
import { files } from "./files.js";
import { history } from "./history.js";
import { notify, openDialog, problemBox } from "./parts.js";
import { begin, bindSession, session } from "./session.js";

const VIEWS = { ask, facts, history, files };
const THEMES = ["", "light", "dark"];
const THEME_NAMES = { "": "as the system", light: "light", dark: "dark" };
const SINGLE_KEYS = "recipe-hf.single-keys";

// ------------------------------------------------------------------ views

function viewName() {
  const wanted = location.hash.slice(1);
  return Object.hasOwn(VIEWS, wanted) ? wanted : session.model === null ? "facts" : "ask";
}

function showView({ focus = true } = {}) {
  const name = viewName();
  $("#starting").hidden = true;
  for (const other of Object.keys(VIEWS)) $(`#view-${other}`).hidden = other !== name;
  for (const link of document.querySelectorAll(".bar nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = $(`#${name}-title`);
  document.title = `${title.textContent} · recipe-hf`;
  if (focus) title.focus();
  VIEWS[name].show();
}

async function start() {
  try {
    await begin();
  } catch (problem) {
    const again = () => location.reload();
    $("#main").replaceChildren(problemBox(problem, again));
    return;
  }
  $("nav a[href='#ask']").hidden = session.model === null;
  for (const view of Object.values(VIEWS)) view.reset?.();
  showView({ focus: false });
}

// ------------------------------------------------------------------ colours

const SUN = "M10 3v2M10 15v2M3 10h2M15 10h2M5 5l1.5 1.5M13.5 13.5L15 15M15 5l-1.5 1.5M6.5 13.5L5 15";

function drawTheme() {
  const chosen = localStorage.getItem("recipe-hf.theme") ?? "";
  const button = $("#switch-theme");
  button.title = `Colours: ${THEME_NAMES[chosen]}`;
  button.setAttribute("aria-label", button.title);
  const drawn = { fill: "none", stroke: "currentColor", "stroke-width": 1.6, "stroke-linecap": "round" };
  const shapes = {
    "": [svg("circle", { cx: 10, cy: 10, r: 6 }), svg("path", { d: "M10 4a6 6 0 0 1 0 12z", fill: "currentColor" })],
    light: [svg("circle", { cx: 10, cy: 10, r: 3 }), svg("path", { d: SUN })],
    dark: [svg("path", { d: "M15.5 12.3A6.5 6.5 0 0 1 7.7 4.5a6.5 6.5 0 1 0 7.8 7.8z" })],
  };
  const picture = svg("svg", { viewBox: "0 0 20 20", width: 20, height: 20, "aria-hidden": "true", ...drawn });
  picture.append(...shapes[chosen]);
  button.replaceChildren(picture);
}

function switchTheme() {
  const chosen = localStorage.getItem("recipe-hf.theme") ?? "";
  const next = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
  if (next) localStorage.setItem("recipe-hf.theme", next);
  else localStorage.removeItem("recipe-hf.theme");
  document.documentElement.dataset.theme = next;
  drawTheme();
  notify(`Colours: ${THEME_NAMES[next]}.`);
}

// ------------------------------------------------------------------ keys

function pressed(event) {
  if (event.key === "Escape" && !$("dialog[open]")) ask.stop();
  const isFree = !event.target.closest("input, textarea, select, dialog") && !event.isComposing;
  if (!isFree || event.ctrlKey || event.metaKey || event.altKey || localStorage.getItem(SINGLE_KEYS) === "off") return;
  const shortcuts = {
    "/": () => VIEWS[viewName()].find?.(),
    "?": () => openDialog($("#help")),
    n: () => session.edits && facts.add(),
    t: switchTheme,
    ...Object.fromEntries(Object.keys(VIEWS).map((name, at) => [String(at + 1), () => (location.hash = name)])),
  };
  const act = shortcuts[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
}

// ------------------------------------------------------------------ all together

bindSession(start);
drawTheme();
// Before it is known who asks, nothing is shown.
const isKnown = () => session.role !== undefined;
window.addEventListener("hashchange", () => isKnown() && Object.hasOwn(VIEWS, location.hash.slice(1)) && showView());
window.addEventListener("keydown", pressed);
$(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("#main").focus();
});
$("#switch-theme").addEventListener("click", switchTheme);
$("#open-help").addEventListener("click", () => openDialog($("#help")));
$("#single-keys").checked = localStorage.getItem(SINGLE_KEYS) !== "off";
$("#single-keys").addEventListener("change", (event) =>
  localStorage.setItem(SINGLE_KEYS, event.target.checked ? "on" : "off"),
);
start();
