// The facts that are no longer used, the latest first, and the way back.

import { knowledge } from "./api.js";
import { $, h, moment } from "./dom.js";
import { restore } from "./facts.js";
import { pagedList, range } from "./list.js";
import { action, emptyBox, factRow, factTags } from "./parts.js";

const list = pagedList({
  name: "history",
  load: (after) => knowledge("GET", "/history", { query: { limit: 25, after } }),
  row,
  empty: () => emptyBox("Nothing has been removed or replaced", "What is, appears here, and can be brought back."),
  summary: (page, from) => range(page, from, "past fact"),
});

function row(fact) {
  const became = fact.reason === "replaced" ? `replaced by fact ${fact.replaced_by}` : fact.reason;
  return factRow(
    fact,
    [
      h("span", { class: "tag" }, became),
      h("span", {}, moment(fact.created_at), " to ", moment(fact.ended_at)),
      ...factTags(fact),
    ],
    [action("Restore", `fact ${fact.id}`, () => bringBack(fact.id), { class: "quiet small edits" })],
  );
}

async function bringBack(id) {
  await restore(id);
  await list.refresh();
  $("#history-title").focus();
}

export const history = { show: () => list.restart() };
