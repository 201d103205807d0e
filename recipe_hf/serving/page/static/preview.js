// What would become of the facts, and of some questions, if a fact were saved; nothing is.

import { knowledge } from "./api.js";
import { h, percent, whileBusy } from "./dom.js";
import { problemBox } from "./parts.js";

const STAYS = {
  add: "What says the same in other words would stay, and may go on being used: choose above to replace it too.",
  edit: "What says the same in other words would stay, and may go on being used: remove it, where it is no longer so.",
};

/** The panel of the editor: `read()` gives the fact as it is written, `onConflict()` what to do with others. */
export function previewPanel({ read, fact, questions, onConflict }) {
  const asked = h("textarea", { id: "preview-questions", rows: 2, "aria-describedby": "preview-hint" });
  asked.value = questions.join("\n");
  const button = h("button", { type: "button", class: "small", onclick: () => whileBusy(button, show) }, "Preview");
  const result = h("div", { "aria-live": "polite" });
  const element = h(
    "section",
    { class: "preview", "aria-labelledby": "preview-title" },
    h("h3", {}, h("span", { id: "preview-title" }, "Before you save"), button),
    h(
      "div",
      {},
      h("label", { for: asked.id }, "Questions to try, one a line"),
      asked,
      h(
        "p",
        { class: "hint", id: "preview-hint" },
        "In other words than the fact's, and some that it must not answer. Without any, its prompt is tried.",
      ),
    ),
    result,
  );

  async function show() {
    try {
      const told = read();
      const tried = asked.value
        .split("\n")
        .map((line) => line.trim())
        .filter(Boolean);
      const body = {
        facts: [told],
        questions: tried.length ? tried.slice(0, 16) : [told.prompt ?? told.statement],
        on_conflict: fact ? "replace" : onConflict(),
        in_place_of: fact?.id,
        max_tokens: 24,
      };
      result.replaceChildren(h("p", { class: "loading" }, "Trying it…"));
      const found = await knowledge("POST", "/preview", { body });
      result.replaceChildren(moves(found.facts[0], fact, body.on_conflict), outcomes(found.questions));
    } catch (problem) {
      result.replaceChildren(problemBox(problem));
    }
  }

  return { element };
}

/** What would become of facts that are there. */
function moves({ replaces, supersedes }, fact, onConflict) {
  const others = replaces.filter((other) => other.id !== fact?.id);
  const keeps = onConflict === "keep" || onConflict === "error";
  const inOtherWords = (supersedes ?? []).filter((other) => other.id !== fact?.id);
  const rows = [
    fact && ["replaces", fact],
    ...others.map((other) => [keeps ? "in its way" : "replaces", other]),
    ...inOtherWords.map((other) => [onConflict === "supersede" ? "replaces" : "says the same", other]),
  ].filter(Boolean);
  const after = {
    keep: "The fact that is there would stay, and this one would not be added.",
    error: "This one would be refused.",
  };
  return h(
    "div",
    { class: "moves" },
    rows.length
      ? h(
          "ul",
          { class: "moves" },
          ...rows.map(([what, other]) =>
            h(
              "li",
              {},
              h("span", { class: `tag ${what === "replaces" ? "caution" : ""}` }, what),
              h("span", {}, `${name(other)}: ${other.statement}`),
            ),
          ),
        )
      : h("p", {}, "No fact that is there would be replaced."),
    keeps && others.length > 0 && h("p", { class: "hint" }, after[onConflict]),
    onConflict !== "supersede" && inOtherWords.length > 0 && h("p", { class: "hint" }, STAYS[fact ? "edit" : "add"]),
  );
}

const name = ({ id }) => (id === null ? "the new fact" : `fact ${id}`);

function outcomes(questions) {
  return h(
    "ul",
    { class: "outcome" },
    ...questions.map(({ question, before, after }) =>
      h(
        "li",
        {},
        h("p", {}, h("strong", {}, question)),
        h(
          "dl",
          {},
          h("dt", {}, "now"),
          h("dd", {}, ...outcome(before)),
          h("dt", {}, "then"),
          h("dd", {}, ...outcome(after, before)),
        ),
      ),
    ),
  );
}

function outcome({ answer, fired, fact, probability }, before = null) {
  const near = fact ? `, the nearest, ${name(fact)}, has ${percent(probability)}` : "";
  const used = fired ? `${name(fact)} used, ${percent(probability)}` : `no fact used${near}`;
  return [
    answer !== null &&
      h("span", {}, before?.answer === answer ? "the same words" : answer || "(an empty answer)", " "),
    h("span", { class: `tag ${fired ? "used" : ""}` }, used),
  ].filter(Boolean);
}
