// What is to become of a fact that is there already, in words for people.

import { h } from "./dom.js";
import { session } from "./session.js";

const CHOICES = [
  ["replace", "Replace it"],
  ["supersede", "Replace it, and what says the same in other words"],
  ["keep", "Keep it, and drop the new one"],
  ["error", "Keep it, and add nothing at all"],
];

/** Options of a select; superseding only where the model can tell. */
export function conflictOptions() {
  const possible = CHOICES.filter(([value]) => value !== "supersede" || session.tells_what_supersedes);
  return possible.map(([value, text]) => h("option", { value }, text));
}

/** A name for a change, so that sent again it is made once. */
export function changeName() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
