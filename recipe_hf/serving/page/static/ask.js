// Asking: the answer with the facts and the base's own, streamed side by side, and why which fact was used.

import { chunks, knowledge, namespace, send } from "./api.js";
import { $, h } from "./dom.js";
import { openEditor } from "./editor.js";
import { explanation, verdict } from "./explanation.js";
import { emptyBox, problemBox } from "./parts.js";
import { session } from "./session.js";

const form = $("#ask-form");
const status = $("#ask-status");
const earlier = new Map(); // questions of this tab, with how they were put; gone when it is reloaded
let running = null;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (form.question.value.trim()) run();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
form.addEventListener("change", label);
$("#stop").addEventListener("click", stop);

function label() {
  const isChat = form.mode.value === "chat";
  $("#question-label").textContent = isChat ? "Question" : "Text to continue";
  form.question.placeholder = isChat
    ? "Who runs Brackwater Instruments?"
    : "The headquarters of Brackwater Instruments is in";
}

function stop() {
  running?.abort();
}

async function run() {
  stop();
  const controller = (running = new AbortController());
  const { signal } = controller;
  const question = form.question.value.trim();
  const asked = { question, mode: form.mode.value, length: Number(form.length.value), signal };
  remember(question, asked.mode);

  const edited = answerPanel("With the facts", "edited", asked);
  const base = form.compare.checked ? answerPanel("Base model alone", "base", asked) : null;
  const why = h("section", { class: "card why", "aria-labelledby": "why-title" });
  const whyTitle = h("h2", { id: "why-title" }, "Why");
  why.append(whyTitle, h("p", { class: "loading" }, "Looking the question up…"));
  $("#ask-empty").replaceChildren();
  $("#ask-result").replaceChildren(
    h("div", { class: "answers" }, edited.element, base?.element),
    why,
    ...earlierQuestions(question),
  );
  status.textContent = "Answering.";
  $("#stop").hidden = false;

  const explained = knowledge("POST", "/explain", { body: { query: question, k: 5 }, signal }).then(
    (found) => {
      why.replaceChildren(whyTitle, ...explanation(found, { edit, add: correct }));
      return verdict(found);
    },
    (problem) => {
      if (problem.name !== "AbortError") why.replaceChildren(whyTitle, problemBox(problem));
      else why.replaceChildren(whyTitle, h("p", { class: "hint" }, "Stopped."));
      return "";
    },
  );
  const [, , said] = await Promise.all([
    stream(edited, asked, {}),
    base && stream(base, asked, { off: true }),
    explained,
  ]);
  if (running !== controller) return;
  running = null;
  $("#stop").hidden = true;
  if (base) compare(edited, base);
  status.textContent = [edited.spoken(), base?.spoken(), said].filter(Boolean).join(" ");

  function edit(fact) {
    openEditor({ fact, questions: [question] }).then((saved) => saved !== null && run());
  }
  function correct() {
    openEditor({ prompt: question, questions: [question] }).then((saved) => saved !== null && run());
  }
}

/** Fills a panel with an answer as it comes. */
async function stream(panel, { question, mode, length, signal }, recipe) {
  const chat = mode === "chat";
  const body = {
    model: session.model,
    ...(chat ? { messages: [{ role: "user", content: question }] } : { prompt: question }),
    max_tokens: length,
    temperature: 0,
    stream: true,
    recipe: { ...(namespace.get() ? { namespace: namespace.get() } : {}), ...recipe },
  };
  try {
    const response = await send("POST", chat ? "v1/chat/completions" : "v1/completions", { body, signal });
    for await (const chunk of chunks(response)) {
      if (chunk.recipe) panel.used(chunk.recipe);
      const [choice] = chunk.choices ?? [];
      if (choice) panel.add((chat ? choice.delta?.content : choice.text) ?? "", choice.finish_reason);
    }
    panel.end();
  } catch (problem) {
    if (problem.name === "AbortError") panel.end("stopped");
    else panel.fail(problem);
  }
}

function answerPanel(title, kind, { question, mode }) {
  const text = h("span", {});
  const asked = mode === "text" ? h("span", { class: "asked" }, question) : null;
  const tags = h("span", { class: "chips" });
  const foot = h("footer", {}, tags);
  const element = h(
    "section",
    { class: `card answer ${kind}`, "aria-label": title, "aria-busy": "true" },
    h("h2", {}, title),
    h("div", { class: "text" }, asked, text),
    foot,
  );
  const panel = { element, tags, text: "", failed: false };
  let reason = null;
  return Object.assign(panel, {
    add(more, finish) {
      panel.text += more;
      text.append(more);
      reason = finish ?? reason;
    },
    used(recipe) {
      if (kind === "base") return;
      const used = recipe.facts.map((fact) => h("span", { class: "tag used" }, `fact ${fact.id} used`));
      tags.replaceChildren(...(used.length ? used : [h("span", { class: "tag" }, "no fact used")]));
    },
    end(how = reason) {
      element.removeAttribute("aria-busy");
      const ends = { length: "cut at the length asked for", stopped: "stopped" };
      if (ends[how]) foot.append(h("span", {}, ends[how]));
      if (!panel.text && how !== "stopped") text.append(h("em", { class: "hint" }, "(an empty answer)"));
    },
    fail(problem) {
      panel.failed = true;
      element.removeAttribute("aria-busy");
      $(".text", element).replaceChildren(problemBox(problem));
    },
    spoken: () => (panel.failed ? "" : `${title}: ${panel.text}`),
  });
}

function compare(edited, base) {
  if (edited.failed || base.failed) return;
  const same = edited.text === base.text;
  base.tags.append(h("span", { class: "tag" }, same ? "the same words" : "other words"));
}

// ------------------------------------------------------------------ questions at hand

function remember(question, mode) {
  earlier.delete(question);
  earlier.set(question, mode);
}

function earlierQuestions(present) {
  const others = [...earlier]
    .filter(([question]) => question !== present)
    .slice(-6)
    .reverse();
  if (!others.length) return [];
  return [
    h(
      "div",
      { class: "earlier" },
      h("h2", { class: "hint" }, "Asked before"),
      h("div", { class: "chips" }, ...others.map(chip)),
    ),
  ];
}

function chip([question, mode]) {
  return h("button", { type: "button", onclick: () => ask.put(question, mode) }, question);
}

/** How a fact's prompt is best asked: a question as a message, the beginning of a sentence as text. */
export function modeOf(prompt) {
  return /\?\s*$/.test(prompt) && session.has_chat_template ? "chat" : "text";
}

async function suggest() {
  const place = $("#ask-empty");
  try {
    const page = await knowledge("GET", "", { query: { limit: 6, newest: true } });
    if (running || $("#ask-result").childElementCount) return;
    const prompts = page.facts.map((fact) => fact.prompt ?? fact.statement);
    place.replaceChildren(page.total || prompts.length ? suggestions(prompts) : noFacts());
  } catch (problem) {
    place.replaceChildren(problemBox(problem, suggest));
  }
}

function suggestions(prompts) {
  return h(
    "div",
    { class: "earlier" },
    h("h2", { class: "hint" }, "Ask for one of the facts"),
    h("div", { class: "chips" }, ...prompts.map((prompt) => chip([prompt, modeOf(prompt)]))),
  );
}

function noFacts() {
  return emptyBox(
    "There are no facts yet",
    "You can ask all the same: both answers are the base's then. Add a fact, and the model answers with it at once.",
    session.edits &&
      h("button", { type: "button", class: "primary", onclick: () => openEditor({}).then(suggest) }, "Add a fact"),
    session.edits && h("a", { href: "#files" }, "Import a file"),
  );
}

export const ask = {
  show() {
    if (!$("#ask-result").childElementCount) suggest();
  },
  reset() {
    stop();
    earlier.clear();
    $("#ask-result").replaceChildren();
    form.mode[0].disabled = !session.has_chat_template;
    form.mode.value = session.has_chat_template ? "chat" : "text";
    label();
  },
  find: () => form.question.focus(),
  stop,
  /** Asks for something from elsewhere on the page. */
  put(question, mode = modeOf(question)) {
    location.hash = "ask";
    form.question.value = question;
    form.mode.value = mode;
    label();
    run();
  },
};
