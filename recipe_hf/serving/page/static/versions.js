// What was said about a fact's subject before.

import { knowledge } from "./api.js";
import { h, moment } from "./dom.js";
import { factText, problemBox } from "./parts.js";

/** A disclosure of the past facts with the same prompt, read when it is opened. */
export function earlierVersions(fact) {
  const place = h("div");
  const details = h("details", { ontoggle: show }, h("summary", {}, "Earlier versions"), place);

  async function show() {
    if (!details.open || place.childElementCount) return;
    try {
      const query = { prompt: fact.prompt ?? fact.statement, limit: 20 };
      const { facts } = await knowledge("GET", "/history", { query });
      place.replaceChildren(
        facts.length ? h("ul", { class: "facts" }, ...facts.map(row)) : h("p", { class: "hint" }, "There are none."),
      );
    } catch (problem) {
      place.replaceChildren(problemBox(problem));
    }
  }

  return details;
}

function row(fact) {
  return h(
    "li",
    {},
    h("span", { class: "fact-id" }, `#${fact.id}`),
    h(
      "div",
      { class: "fact-body" },
      factText(fact),
      h(
        "div",
        { class: "fact-more" },
        h("span", {}, moment(fact.created_at), " to ", moment(fact.ended_at)),
        h("span", { class: "tag" }, fact.reason),
      ),
    ),
  );
}
