// Who asks, with which key, and in which namespace.

import { call, key, namespace, onUnauthorized, Problem } from "./api.js";
import { $, h } from "./dom.js";
import { openDialog, problemBox } from "./parts.js";

/** What the server says of itself and of who asks; filled by `begin`. */
export const session = {};

const ROLES = { ask: "may ask and look", edit: "may ask and change facts", admin: "may do everything" };
const dialog = $("#session");
let asking = null;

/** Learns who asks; asks for a key first where one is needed. */
export async function begin() {
  Object.assign(session, await call("GET", "page/session"));
  if (session.namespace !== null) namespace.set(session.namespace);
  session.model = await modelName();
  session.edits = session.role !== "ask" && !session.read_only;
  document.documentElement.dataset.edits = session.edits;
  $("#model-name").textContent = session.model ?? "facts only";
  $("#open-session").textContent = namespace.get() ?? (session.has_keys ? session.name : "Session");
}

// Where nothing generates there is no such route.
async function modelName() {
  try {
    return (await call("GET", "v1/models")).data[0].id;
  } catch (problem) {
    if (problem.status === 404) return null;
    throw problem;
  }
}

function show() {
  const signedIn = session.has_keys && key.get();
  const anyNamespace = session.namespace === null && session.role;
  $("#session-who").textContent = who(anyNamespace);
  $("#key-form").hidden = !(session.has_keys ?? true) || Boolean(signedIn && session.role);
  $("#sign-out").hidden = !signedIn;
  $("#namespace-form").hidden = !anyNamespace;
  $("#namespace").value = namespace.get() ?? "";
  $("#namespaces").replaceChildren(...(session.namespaces ?? []).map((name) => h("option", { value: name })));
  $("#key-problem").replaceChildren();
}

function who(anyNamespace) {
  if (!session.role) return "This server asks for a key.";
  const where = anyNamespace ? "" : ` in the namespace ${session.namespace || "without a name"}`;
  const how = session.has_keys ? `Signed in with the key ${session.name}` : "This server asks for no key";
  const readOnly = session.read_only ? " The facts are read only here." : "";
  return `${how}: you ${ROLES[session.role]}${where}.${readOnly}`;
}

/** One dialog for all requests that wait for a key; whether one was given. */
function askForKey(used, problem) {
  if (used !== key.get()) return Promise.resolve(true); // Meanwhile there is another one.
  asking ??= new Promise((resolve) => {
    key.set(null);
    session.role = undefined;
    session.has_keys = true;
    show();
    if (used) $("#key-problem").replaceChildren(problemBox(new Problem("This key is not taken.", problem.detail)));
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        resolve(key.get() !== null);
      },
      { once: true },
    );
    openDialog(dialog, { keep: true });
    $("#key").focus();
  });
  return asking;
}

/** Binds the dialog; `changed` is called when there is another key or namespace. */
export function bindSession(changed) {
  onUnauthorized(askForKey);
  $("#open-session").addEventListener("click", () => {
    show();
    openDialog(dialog);
  });
  $("#key-form").addEventListener("submit", () => {
    const waited = asking !== null;
    key.set($("#key").value.trim());
    $("#key").value = "";
    if (!waited) changed();
  });
  $("#namespace-form").addEventListener("submit", () => {
    namespace.set($("#namespace").value.trim());
    changed();
  });
  $("#sign-out").addEventListener("click", () => {
    key.set(null);
    namespace.set(null);
    location.reload();
  });
}
