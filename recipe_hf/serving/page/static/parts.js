// What several views show alike: a fact, a problem, an empty place, a notice, a dialog.

import { $, h, moment } from "./dom.js";

/** A fact as it is told: the prompt and, set off, its answer; or its statement. */
export function factText(fact) {
  const told = fact.prompt ? `${fact.prompt.trim()} ${fact.answer.trim()}` : fact.statement;
  return h(
    "div",
    { class: "fact-text" },
    ...(fact.prompt ? [fact.prompt.trim(), " ", h("strong", {}, fact.answer.trim())] : [fact.statement]),
    fact.statement !== told && h("small", {}, `Looked up as: ${fact.statement}`),
  );
}

/** Its metadata, and when it is valid; `filter`, if given, is what a click on one of the metadata does. */
export function factTags(fact, filter = null) {
  const now = new Date().toISOString();
  const name = filter ? "button" : "span";
  return [
    ...Object.entries(fact.metadata ?? {}).map(([key, value]) =>
      h(
        name,
        {
          class: "tag",
          ...(filter && { type: "button", title: "Only such facts", onclick: () => filter(key, value) }),
        },
        `${key}: ${asText(value)}`,
      ),
    ),
    fact.valid_from &&
      h("span", { class: `tag ${fact.valid_from > now ? "caution" : ""}` }, "valid from ", moment(fact.valid_from)),
    fact.valid_until &&
      h(
        "span",
        { class: `tag ${fact.valid_until <= now ? "caution" : ""}` },
        "valid until ",
        moment(fact.valid_until),
      ),
  ];
}

/** A metadata value as people write it: text as it is, unless it would read as something else; the rest as JSON. */
export function asText(value) {
  return typeof value === "string" && fromText(value) === value ? value : JSON.stringify(value);
}

/** What a person wrote for a metadata value: JSON where it is JSON, or else text. */
export function fromText(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** A row of a list of facts: number, text, tags and what else, buttons. */
export function factRow(fact, more = [], actions = []) {
  return h(
    "li",
    { "data-id": fact.id },
    h(
      "span",
      { class: "fact-id" },
      h("span", { class: "sr" }, "Fact "),
      h("span", { "aria-hidden": "true" }, "#"),
      String(fact.id),
    ),
    h("div", { class: "fact-body" }, factText(fact), h("div", { class: "fact-more" }, ...more)),
    h("div", { class: "fact-actions" }, ...actions),
  );
}

/** A small button of a row; `about` completes its name for those who do not see the row. */
export function action(name, about, act, attributes = {}) {
  return h(
    "button",
    { type: "button", class: "quiet small", "aria-label": `${name} ${about}`, onclick: act, ...attributes },
    name,
  );
}

/** What went wrong, in the server's words. */
export function problemBox(problem, retry = null) {
  const errors = (problem.errors ?? []).slice(0, 5);
  return h(
    "div",
    { class: "problem", role: "alert" },
    h("p", {}, h("strong", {}, problem.title ?? "Something went wrong on this page.")),
    h("p", {}, problem.title ? problem.detail : String(problem)),
    errors.length > 0 && h("ul", {}, ...errors.map(({ at, detail }) => h("li", {}, `${at}: ${detail}`))),
    retry && h("div", { class: "row" }, h("button", { type: "button", class: "small", onclick: retry }, "Try again")),
  );
}

export function emptyBox(title, text, ...actions) {
  return h("div", { class: "empty" }, h("h2", {}, title), h("p", {}, text), h("div", { class: "row" }, ...actions));
}

/** A notice at the foot, read out, with something to do about it. It goes by itself, or when it is closed. */
export function notify(text, { undo = null, label = "Undo" } = {}) {
  const close = () => notice.remove();
  const act = () => {
    close();
    undo();
  };
  const notice = h(
    "div",
    { class: "notice" },
    h("span", {}, text),
    undo && h("button", { type: "button", class: "small", onclick: act }, label),
    h("button", { type: "button", class: "small icon", "aria-label": "Close notice", onclick: close }, "×"),
  );
  $("#notices").replaceChildren(notice);
  wait(notice, undo ? 15000 : 6000);
}

// Nothing goes while a person is at it.
function wait(notice, milliseconds) {
  setTimeout(() => {
    if (notice.matches(":hover, :focus-within")) wait(notice, milliseconds);
    else notice.remove();
  }, milliseconds);
}

/** Opens a dialog; what had the focus gets it back when it is closed. Clicks beside it close it, unless it is kept. */
export function openDialog(dialog, { keep = false } = {}) {
  if (dialog.open) return;
  const before = document.activeElement;
  dialog.addEventListener("close", () => before?.isConnected && before.focus(), { once: true });
  dialog.onclick = (event) => {
    if (event.target.closest("[data-close]") || (event.target === dialog && !keep)) dialog.close();
  };
  dialog.showModal();
}
