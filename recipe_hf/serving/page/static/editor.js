// The dialog in which a fact is added or edited, with what would become of it before it is saved.

import { knowledge, Problem } from "./api.js";
import { changeName, conflictOptions } from "./conflicts.js";
import { $, h, whileBusy } from "./dom.js";
import { metadataFields } from "./metadata.js";
import { notify, openDialog, problemBox } from "./parts.js";
import { previewPanel } from "./preview.js";
import { earlierVersions } from "./versions.js";

const dialog = $("#editor");

/**
 * Opens the dialog: for `fact`, or for a new one about `prompt`; `questions` are those to try.
 *
 * Returns the id of what was saved, null if nothing was.
 */
export function openEditor({ fact = null, prompt = "", questions = [] } = {}) {
  return new Promise((resolve) => {
    let saved = null;
    const form = editorForm(fact, prompt, questions, (id) => {
      saved = id;
      dialog.close();
    });
    dialog.replaceChildren(
      h("h2", { id: "editor-title" }, fact ? `Edit fact ${fact.id}` : "Add a fact"),
      form.element,
    );
    dialog.oncancel = (event) => {
      if (!form.isChanged()) return;
      event.preventDefault();
      form.askToDiscard();
    };
    dialog.addEventListener("close", () => resolve(saved), { once: true });
    openDialog(dialog, { keep: true });
    form.begin();
  });
}

function editorForm(fact, prompt, questions, done) {
  const isPair = fact === null || Boolean(fact.prompt);
  const fields = {
    prompt: h("textarea", {
      id: "fact-prompt",
      rows: 1,
      placeholder: "The CEO of Acme is",
      "aria-describedby": "pair-hint",
    }),
    answer: h("input", { id: "fact-answer", autocomplete: "off", placeholder: "Ann Lee" }),
    statement: h("textarea", { id: "fact-statement", rows: 2, placeholder: "Ann Lee has run Acme since May." }),
    from: h("input", { id: "valid-from", type: "datetime-local" }),
    until: h("input", { id: "valid-until", type: "datetime-local" }),
    conflict: h("select", { id: "on-conflict" }, ...conflictOptions()),
  };
  fields.prompt.value = fact?.prompt ?? prompt;
  fields.answer.value = fact?.answer ?? "";
  fields.statement.value = fact && !fact.prompt ? fact.statement : "";
  fields.from.value = fact?.valid_from?.slice(0, 16) ?? "";
  fields.until.value = fact?.valid_until?.slice(0, 16) ?? "";
  const metadata = metadataFields(fact?.metadata ?? {});
  const preview = previewPanel({ read, fact, questions, onConflict: () => fields.conflict.value });
  const problems = h("div");
  const save = h("button", { class: "primary" }, fact ? "Save" : "Add");
  const buttons = h("div", { class: "row end" }, h("button", { type: "button", onclick: cancel }, "Cancel"), save);

  const pair = h("div", { class: "pair" }, field("Prompt", fields.prompt), field("Answer", fields.answer));
  const pairHint = h(
    "p",
    { class: "hint", id: "pair-hint" },
    "The prompt begins a sentence, or asks; the answer goes on from it. Other words find the fact too.",
  );
  const statement = h(
    "div",
    {},
    ...field("Statement", fields.statement).childNodes,
    h(
      "p",
      { class: "hint" },
      "A whole sentence. A prompt and its answer are said as told more often: take them where you can.",
    ),
  );
  const form = h(
    "form",
    { method: "dialog", novalidate: true },
    h(
      "fieldset",
      { class: "segments", onchange: show },
      h("legend", { class: "sr" }, "How the fact is told"),
      kind("pair", "Prompt and answer", isPair),
      kind("statement", "Statement", !isPair),
    ),
    pair,
    pairHint,
    statement,
    h(
      "details",
      { open: Boolean(fact && (Object.keys(fact.metadata ?? {}).length || fact.valid_from || fact.valid_until)) },
      h("summary", {}, "Metadata and validity"),
      metadata.element,
      h("div", { class: "dates" }, field("Valid from (UTC)", fields.from), field("Valid until (UTC)", fields.until)),
    ),
    fact ? earlierVersions(fact) : field("A fact about the same prompt that is there already", fields.conflict),
    preview.element,
    problems,
    h("div", { class: "actions" }, buttons),
  );
  const before = written();
  let sent = { body: null, name: null };
  show();

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!save.hasAttribute("aria-disabled")) whileBusy(save, submit);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  function show() {
    const told = form.elements.told.value === "pair";
    pair.hidden = pairHint.hidden = !told;
    statement.hidden = told;
  }

  /** The fact as it is written; throws what is wrong with it, and shows where. */
  function read() {
    const told = form.elements.told.value === "pair" ? ["prompt", "answer"] : ["statement"];
    const read = {};
    for (const name of told) {
      const value = fields[name].value.trim();
      fields[name].setAttribute("aria-invalid", String(!value));
      if (!value) {
        fields[name].focus();
        throw new Problem(`The ${name} is empty.`, "Write what the model is to go by.");
      }
      read[name] = value;
    }
    // A fact may be looked up by another statement than its prompt and answer make up.
    const own = fact?.prompt && fact.statement !== `${fact.prompt.trim()} ${fact.answer.trim()}`;
    if (own && read.prompt === fact.prompt.trim() && read.answer === fact.answer.trim())
      read.statement = fact.statement;
    try {
      read.metadata = metadata.read();
    } catch (error) {
      throw new Problem("The metadata cannot be saved.", error.message);
    }
    if (fields.from.value) read.valid_from = moment(fields.from.value, fact?.valid_from);
    if (fields.until.value) read.valid_until = moment(fields.until.value, fact?.valid_until);
    return read;
  }

  async function submit() {
    problems.replaceChildren();
    try {
      const id = fact ? await replace(read()) : await add(read());
      notify(said(id));
      done(id);
    } catch (problem) {
      problems.replaceChildren(problemBox(problem));
      problems.scrollIntoView({ block: "nearest" });
    }
  }

  function said(id) {
    if (fact) return `Fact ${fact.id} is saved, as fact ${id}.`;
    return fields.conflict.value === "keep" ? `Fact ${id} is the one about this.` : `Fact ${id} is added.`;
  }

  async function replace(told) {
    return (await knowledge("PUT", `/${fact.id}`, { body: told })).ids[0];
  }

  async function add(told) {
    const body = { facts: [told], on_conflict: fields.conflict.value };
    const text = JSON.stringify(body);
    if (sent.body !== text) sent = { body: text, name: changeName() };
    return (await knowledge("POST", "", { body, headers: { "Idempotency-Key": sent.name } })).ids[0];
  }

  function written() {
    const inputs = form.querySelectorAll("input:not([type=radio]), textarea");
    return JSON.stringify([...inputs].map((input) => input.value));
  }

  function isChanged() {
    return written() !== before;
  }

  function cancel() {
    if (isChanged()) askToDiscard();
    else dialog.close();
  }

  function askToDiscard() {
    const back = () => {
      $(".actions", form).replaceChildren(buttons);
      save.focus();
    };
    const stay = h("button", { type: "button", class: "primary", onclick: back }, "Go on writing");
    const leave = h("button", { type: "button", class: "danger", onclick: () => dialog.close() }, "Discard it");
    const question = h("p", { role: "alert" }, "What you wrote is not saved.");
    $(".actions", form).replaceChildren(h("div", { class: "row end" }, question, leave, stay));
    stay.focus();
  }

  function begin() {
    const first = form.elements.told.value === "pair" ? fields.prompt : fields.statement;
    (first.value && fields.answer.value === "" && !pair.hidden ? fields.answer : first).focus();
  }

  return { element: form, isChanged, askToDiscard, begin };
}

/** A moment of a field in UTC; one that was not touched keeps its seconds. */
function moment(value, before) {
  return before?.startsWith(value) ? before : `${value}+00:00`;
}

function kind(value, name, checked) {
  return h("label", {}, h("input", { type: "radio", name: "told", value, checked }), h("span", {}, name));
}

function field(name, input) {
  return h("div", {}, h("label", { for: input.id }, name), input);
}
