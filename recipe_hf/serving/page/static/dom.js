// Elements, built without markup: what comes from the server is always text.

const PROPERTIES = new Set(["checked", "disabled", "hidden", "selected", "value"]);
const SVG = "http://www.w3.org/2000/svg";

export const $ = (selector, root = document) => root.querySelector(selector);

/** An element: `h("p", { class: "note", onclick: act }, "text", child)`, without children that are null or false. */
export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same of SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** `1,234 facts`, `1 fact`. */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

export function percent(probability) {
  if (probability > 0 && probability < 0.01) return "under 1%";
  if (probability < 1 && probability > 0.99) return "over 99%";
  return `${Math.round(probability * 100)}%`;
}

/** A moment as the server writes it, to the minute, in UTC as everything here. */
export function moment(text) {
  const short = `${text.slice(0, 10)} ${text.slice(11, 16)}`;
  return h("time", { datetime: text, title: text }, short.endsWith(" 00:00") ? short.slice(0, 10) : short);
}

/** `act`, called once things have been quiet for a while. */
export function later(act, milliseconds = 250) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds);
  };
}

/** A busy button: disabled and saying so while `work` runs. */
export async function whileBusy(button, work) {
  button.setAttribute("aria-disabled", "true");
  button.classList.add("busy");
  try {
    return await work();
  } finally {
    button.removeAttribute("aria-disabled");
    button.classList.remove("busy");
  }
}
