// Facts as files: written out, and read in batch by batch, so that one sees how far it is.

import { knowledge, namespace, Problem, send } from "./api.js";
import { changeName, conflictOptions } from "./conflicts.js";
import { $, count, h, whileBusy } from "./dom.js";
import { factText, problemBox } from "./parts.js";

const BATCH_LINES = 250;
const BATCH_CHARACTERS = 250_000;
const form = $("#import-form");
const chooser = $("#import-file");
const drop = $("#drop");
let chosen = null; // the lines of the file that say something: [number, text]
let importing = false;

// ------------------------------------------------------------------ export

$("#export-button").addEventListener("click", (event) => whileBusy(event.currentTarget, write));

async function write() {
  const place = $("#export-progress");
  const controller = new AbortController();
  try {
    const { total } = await knowledge("GET", "", { query: { limit: 1 } });
    const bar = progress("Exporting", total, "facts", () => controller.abort());
    place.replaceChildren(bar.element);
    const query = { namespace: namespace.get() };
    const response = await send("GET", "v1/knowledge/export", { query, signal: controller.signal });
    const parts = [];
    let written = 0;
    for await (const part of response.body) {
      parts.push(part);
      for (const byte of part) written += byte === 10;
      bar.set(written);
    }
    download(new Blob(parts, { type: "application/x-ndjson" }));
    place.replaceChildren(h("p", { role: "status" }, `${count(written, "fact")} exported.`));
  } catch (problem) {
    place.replaceChildren(
      problem.name === "AbortError" ? h("p", { role: "status" }, "Export stopped.") : problemBox(problem),
    );
  }
}

function download(blob) {
  const name = ["facts", namespace.get(), new Date().toISOString().slice(0, 10)].filter(Boolean).join("-");
  const link = h("a", { href: URL.createObjectURL(blob), download: `${name}.jsonl` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// ------------------------------------------------------------------ import

chooser.addEventListener("change", () => chooser.files[0] && check(chooser.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
  });
}
drop.addEventListener("drop", (event) => {
  const [file] = event.dataTransfer.files;
  if (file) check(file);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (chosen && !importing) read();
});

/** Reads the file, and shows what is in it before anything is sent. */
async function check(file) {
  const place = $("#import-check");
  $("#import-progress").replaceChildren();
  chosen = null;
  try {
    const lines = (await text(file)).split(/\r?\n/).map((line, at) => [at + 1, line]);
    const full = lines.filter(([, line]) => line.trim());
    const facts = full.map(([number, line]) => parsed(line, number));
    if (!facts.length) throw new Problem(`${file.name} is empty.`, "It must hold at least one fact, a line each.");
    chosen = full;
    place.replaceChildren(
      h("p", {}, h("strong", {}, file.name), `: ${count(facts.length, "fact")}, such as`),
      h("ul", { class: "facts" }, ...facts.slice(0, 3).map(sample)),
      h("div", { class: "row" }, h("button", { class: "primary" }, `Import ${count(facts.length, "fact")}`)),
    );
  } catch (problem) {
    place.replaceChildren(problemBox(problem));
  }
}

async function text(file) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Problem(`${file.name} is not a text file in UTF-8.`, "Save it as JSON lines, one fact a line.");
  }
}

function sample(fact, at) {
  return h(
    "li",
    {},
    h("span", { class: "fact-id" }, `line ${chosen[at][0]}`),
    h("div", { class: "fact-body" }, factText(fact)),
  );
}

/** What a line tells, as far as it is shown here: the server is who checks it. */
function parsed(line, number) {
  let told;
  try {
    told = JSON.parse(line);
  } catch {
    throw new Problem(`Line ${number} is not JSON.`, line.slice(0, 120));
  }
  if (typeof told === "string") return { statement: told };
  if (Array.isArray(told) && told.length === 2)
    return { prompt: String(told[0]), answer: String(told[1]), statement: told.join(" ") };
  if (told?.prompt && told.answer)
    return { ...told, statement: told.statement ?? `${told.prompt.trim()} ${told.answer.trim()}` };
  if (told?.statement) return told;
  throw new Problem(
    `Line ${number} is no fact.`,
    `It must have a statement, or a prompt and an answer: ${line.slice(0, 120)}`,
  );
}

async function read() {
  const place = $("#import-progress");
  const total = chosen.length;
  let isStopped = false;
  const bar = progress("Importing", total, "facts", () => (isStopped = true));
  const done = { before: -1, ids: [], superseded: [], lines: 0, last: 0 };
  importing = true;
  place.replaceChildren(bar.element);
  $("#import-check").replaceChildren();
  try {
    const { facts } = await knowledge("GET", "", { query: { limit: 1, newest: true } });
    done.before = facts[0]?.id ?? -1;
    for (const batch of inBatches(chosen)) {
      if (isStopped) throw new Problem("The import was stopped.");
      const { ids, superseded } = await sendBatch(batch);
      done.ids.push(...ids);
      done.superseded.push(...superseded);
      done.lines += batch.length;
      done.last = batch.at(-1)[0];
      bar.set(done.lines);
    }
    place.replaceChildren(h("p", { role: "status" }, `${count(total, "fact")} imported.`), takeBackButton(done));
  } catch (problem) {
    const soFar = done.lines
      ? `The facts up to line ${done.last} are in, ${done.lines} of ${total}.`
      : "No fact was added.";
    const told = new Problem(problem.title, [problem.detail, soFar].filter(Boolean).join(" "), 0, problem.errors);
    place.replaceChildren(problemBox(told), done.lines ? takeBackButton(done) : "");
  } finally {
    importing = false;
    chosen = null;
    chooser.value = "";
  }
}

function takeBackButton(done) {
  const act = (event) => whileBusy(event.currentTarget, () => takeBack(done));
  return h("div", { class: "row" }, h("button", { type: "button", onclick: act }, "Undo this import"));
}

/** Brings back what an import replaced, and removes what else it added; what has changed since is left as it is. */
async function takeBack({ before, ids, superseded }) {
  const place = $("#import-progress");
  const newer = new Set(superseded.map((fact) => fact.replaced_by));
  const older = superseded.filter((fact) => fact.id <= before);
  const steps = [
    ...older.map((fact) => ["POST", `/${fact.id}/restore`]),
    ...[...new Set([...ids, ...newer])].filter((id) => id > before).map((id) => ["DELETE", `/${id}`]),
  ];
  const bar = progress("Undoing", steps.length, "steps");
  place.replaceChildren(bar.element);
  try {
    for (const [at, [method, path]] of steps.entries()) {
      await knowledge(method, path).catch(unlessGone);
      bar.set(at + 1);
    }
    place.replaceChildren(h("p", { role: "status" }, "The import is undone."));
  } catch (problem) {
    place.replaceChildren(problemBox(problem));
  }
}

function unlessGone(problem) {
  if (problem.status !== 404 && problem.status !== 409) throw problem;
}

/** Sends lines, all or none, once more if the answer was lost; numbers of lines in problems are those of the file. */
async function sendBatch(batch) {
  const request = {
    body: batch.map(([, line]) => line).join("\n") + "\n",
    query: { on_conflict: $("#import-conflict").value },
    headers: { "Idempotency-Key": changeName() },
  };
  try {
    return await knowledge("POST", "/import", request).catch((problem) => {
      if (problem.status) throw problem;
      return knowledge("POST", "/import", request);
    });
  } catch (problem) {
    problem.detail = problem.detail?.replace(/\bline (\d+)/g, (_, at) => `line ${batch[at - 1]?.[0] ?? at}`);
    throw problem;
  }
}

function inBatches(lines) {
  const batches = [[]];
  let size = 0;
  for (const line of lines) {
    if (batches.at(-1).length >= BATCH_LINES || size + line[1].length > BATCH_CHARACTERS) {
      batches.push([]);
      size = 0;
    }
    batches.at(-1).push(line);
    size += line[1].length;
  }
  return batches.filter((batch) => batch.length);
}

function progress(name, max, noun, stop = null) {
  const bar = h("progress", { max: max || 1, value: 0, "aria-label": name });
  const text = h("span", {}, `${name}: 0 of ${max.toLocaleString("en")} ${noun}`);
  const element = h(
    "div",
    { class: "work" },
    bar,
    h("div", { class: "row" }, text, stop && h("button", { type: "button", class: "small", onclick: stop }, "Stop")),
  );
  return {
    element,
    set(value) {
      bar.value = value;
      text.textContent = `${name}: ${value.toLocaleString("en")} of ${max.toLocaleString("en")} ${noun}`;
    },
  };
}

export const files = {
  show() {
    if (!$("#import-conflict").childElementCount) $("#import-conflict").replaceChildren(...conflictOptions());
  },
};
