// The facts in use: searched, filtered, paged; added, edited, removed.

import { ask, modeOf } from "./ask.js";
import { knowledge } from "./api.js";
import { $, count, h, later, moment } from "./dom.js";
import { openEditor } from "./editor.js";
import { pagedList, range } from "./list.js";
import { action, asText, emptyBox, factRow, factTags, notify, problemBox } from "./parts.js";
import { session } from "./session.js";

const form = $("#facts-form");
const where = new Map(); // metadata that facts must have
const MOST_ASKED = 20;

const list = pagedList({
  name: "facts",
  load,
  row,
  empty,
  summary: (page, from) =>
    page.nearest ? `The ${count(page.facts.length, "nearest fact")}, best first` : range(page, from, "fact"),
});

form.addEventListener(
  "input",
  later(() => list.restart()),
);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  list.restart();
});
$("#add-fact").addEventListener("click", add);

async function load(after) {
  const q = form.q.value.trim();
  const limit = Number(form.limit.value);
  if (form.by.value === "meaning" && q) {
    const body = { query: q, k: limit, ...(where.size && { where: Object.fromEntries(where) }) };
    const { facts } = await knowledge("POST", "/search", { body });
    return { facts: facts.map(({ fact, score }) => ({ ...fact, score })), next: null, nearest: true };
  }
  return gather({ newest: form.order.value === "newest", q: q || hint() }, limit, after);
}

/** A page of facts that match, asked for several times if need be: the server reads part by part. */
async function gather(query, limit, after) {
  const isSearch = Boolean(query.q);
  const facts = [];
  let next = after;
  for (let asked = 0; asked < MOST_ASKED && facts.length < limit; asked++) {
    const page = await knowledge("GET", "", { query: { ...query, limit: limit - facts.length, after: next } });
    facts.push(...page.facts.filter(matches));
    next = page.next;
    if (!isSearch) return page;
    if (next === null) break;
  }
  return { facts, next, total: null };
}

// What the text of such metadata holds in any case; `matches` is exact.
function hint() {
  const [name] = where.keys();
  return name === undefined ? null : JSON.stringify(name);
}

function matches(fact) {
  return [...where].every(([name, value]) => JSON.stringify(fact.metadata[name]) === JSON.stringify(value));
}

function row(fact) {
  const about = `fact ${fact.id}`;
  return factRow(
    fact,
    [
      ...factTags(fact, filterBy),
      h("span", {}, "added ", moment(fact.created_at)),
      fact.score !== undefined && h("span", { class: "tag" }, `score ${fact.score.toFixed(2)}`),
    ],
    [
      session.model &&
        action("Ask", about, () => ask.put(fact.prompt ?? fact.statement, modeOf(fact.prompt ?? fact.statement))),
      action("Edit", about, () => edit(fact), { class: "quiet small edits" }),
      action("Remove", about, () => remove(fact), { class: "quiet small danger edits" }),
    ],
  );
}

function empty() {
  if (form.q.value.trim() || where.size) {
    return emptyBox(
      "No fact is like that",
      "Search looks at statements, prompts and answers of the facts in use.",
      h("button", { type: "button", onclick: clear }, "Show all facts"),
    );
  }
  return emptyBox(
    "There are no facts yet",
    "A fact is a prompt and its answer, or a sentence. The model answers with it as soon as it is added.",
    session.edits && h("button", { type: "button", class: "primary", onclick: add }, "Add the first"),
    session.edits && h("a", { href: "#files" }, "Import a file"),
  );
}

function clear() {
  form.q.value = "";
  where.clear();
  drawFilters();
  list.restart();
  form.q.focus();
}

function filterBy(name, value) {
  where.set(name, value);
  drawFilters();
  list.restart();
}

function drawFilters() {
  const drop = (name) => {
    where.delete(name);
    drawFilters();
    list.restart();
    form.q.focus();
  };
  $("#facts-filters").replaceChildren(
    ...[...where].map(([name, value]) =>
      h(
        "button",
        { type: "button", "aria-label": `Without the filter ${name}`, onclick: () => drop(name) },
        `${name}: ${asText(value)} ×`,
      ),
    ),
  );
}

async function add() {
  const id = await openEditor({});
  if (id === null) return;
  await list.restart();
  rowOf(id)?.classList.add("changed");
}

async function edit(fact) {
  const id = await openEditor({ fact });
  if (id === null) return;
  await list.refresh();
  rowOf(id)?.classList.add("changed");
  focusOn(id);
}

const rowOf = (id) => $(`#facts-list [data-id="${id}"]`);

// Rows are made anew: what had the focus is no longer there.
function focusOn(id) {
  ($(`#facts-list [data-id="${id}"] .fact-actions button:last-child`) ?? $("#facts-title")).focus();
}

async function remove(fact) {
  const at = rowOf(fact.id);
  try {
    await knowledge("DELETE", `/${fact.id}`);
  } catch (problem) {
    at.after(h("li", {}, h("span"), problemBox(problem)));
    return;
  }
  const next = (at.nextElementSibling ?? at.previousElementSibling)?.dataset.id;
  await list.refresh();
  focusOn(next);
  notify(`Fact ${fact.id} is removed.`, { undo: () => restore(fact.id) });
}

/** Brings a past fact back, and says so. */
export async function restore(id) {
  try {
    const restored = await knowledge("POST", `/${id}/restore`);
    notify(`Fact ${id} is back, as fact ${restored.ids[0]}.`);
  } catch (problem) {
    notify(`Fact ${id} was not brought back. ${problem.detail || problem.title}`);
  }
  if (!$("#view-facts").hidden) await list.refresh();
}

export const facts = {
  show: () => list.refresh(),
  reset() {
    where.clear();
    form.reset();
    drawFilters();
    list.forget();
  },
  find: () => form.q.focus(),
  add() {
    if ($("#view-facts").hidden) openEditor({});
    else add();
  },
};
