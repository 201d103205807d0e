// Why a question was, or was not, answered with facts: what the gate made of the nearest ones.

import { h, percent, svg } from "./dom.js";
import { factText } from "./parts.js";
import { session } from "./session.js";

const score = (number) => number.toFixed(2);

/** The outcome in a sentence. */
export function verdict({ candidates, note, threshold }) {
  const used = candidates.filter((candidate) => candidate.fired);
  if (!candidates.length) return `No fact was used: ${note ?? "there are none"}.`;
  if (!used.length) return `No fact was used: of the ${candidates.length} nearest, none is taken for the answer.`;
  const [best] = used;
  const rest = used.length > 1 ? `, and ${used.length - 1} more` : "";
  const side =
    best.score > threshold
      ? `above the threshold of ${score(threshold)}`
      : `below the threshold of ${score(threshold)}, but near enough for the verifier to read it, and to decide`;
  const probability = percent(best.probability);
  return (
    `Fact ${best.fact.id} was used${rest}: it is taken for the answer, with a probability of ${probability}. ` +
    `Its score is ${score(best.score)}, ${side}.`
  );
}

/** The outcome, and the nearest facts with their score, probability and what became of them. */
export function explanation(found, { edit, add }) {
  const { candidates, threshold } = found;
  const any = candidates.some((candidate) => candidate.fired);
  return [
    h("p", { class: "verdict" }, verdict(found)),
    candidates.length > 0 &&
      h(
        "table",
        { class: "candidates", role: "table" },
        h("caption", { class: "sr" }, "The nearest facts"),
        h(
          "thead",
          { role: "rowgroup" },
          h("tr", { role: "row" }, ...["Nearest facts", "Score", "Probability", "What became of it"].map(head)),
        ),
        h("tbody", { role: "rowgroup" }, ...candidates.map((candidate) => row(candidate, scale(found), edit))),
      ),
    candidates.length > 0 &&
      h(
        "p",
        { class: "hint" },
        `The mark on each line is the threshold, ${score(threshold)}: how near "none of the facts" is.`,
      ),
    h(
      "div",
      { class: "row edits" },
      h(
        "button",
        { type: "button", class: "small", onclick: add },
        any ? "Add another fact for this" : "Add a fact for this",
      ),
    ),
  ].filter(Boolean);
}

const head = (name) => h("th", { scope: "col", role: "columnheader" }, name);
const cell = (attributes, ...children) => h("td", { role: "cell", ...attributes }, ...children);

function row(candidate, at, edit) {
  const { fact, fired, probability, reason } = candidate;
  const why = reason.replace(/^not used: /, "");
  return h(
    "tr",
    { role: "row", class: fired ? "used" : "" },
    cell({}, factText(fact), session.edits ? editButton(fact, edit) : h("small", {}, `fact ${fact.id}`)),
    cell({ class: "number" }, score(candidate.score), track(at(candidate.score), at.threshold)),
    cell({ class: "number" }, percent(probability)),
    cell({ class: "because" }, fired ? "Used" : `Not used: ${why}`),
  );
}

function editButton(fact, edit) {
  const act = () => edit(fact);
  const attributes = { type: "button", class: "link", "aria-label": `Edit fact ${fact.id}`, onclick: act };
  return h("button", attributes, `fact ${fact.id}`);
}

/** Where on a line of 100 a score lies; the line holds all scores and the threshold. */
function scale({ candidates, threshold }) {
  const all = [threshold, ...candidates.map((candidate) => candidate.score)];
  const [least, most] = [Math.min(...all), Math.max(...all)];
  const at = (number) => 6 + (88 * (number - least)) / (most - least || 1);
  return Object.assign(at, { threshold: at(threshold) });
}

function track(reach, threshold) {
  return svg(
    "svg",
    { class: "track", viewBox: "0 0 100 14", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("line", { class: "line", x1: 0, x2: 100, y1: 7, y2: 7 }),
    svg("line", { class: "reach", x1: 0, x2: reach, y1: 7, y2: 7 }),
    svg("line", { class: "threshold", x1: threshold, x2: threshold, y1: 0, y2: 14 }),
  );
}
