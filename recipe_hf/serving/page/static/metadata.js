// The fields of a fact's metadata: names and values, as many as wanted.

import { h } from "./dom.js";
import { asText, fromText } from "./parts.js";

/** The fields, and `read()`, which gives the object they say or throws what is wrong with them. */
export function metadataFields(metadata) {
  const rows = h("div", { class: "metadata" });
  const more = h("button", { type: "button", class: "small" }, "Add a field");
  more.addEventListener("click", () => append("", "").querySelector("input").focus());

  function append(name, value) {
    const row = h(
      "div",
      { class: "metadata-row" },
      h("input", { "aria-label": "Name", placeholder: "name", value: name, spellcheck: "false" }),
      h("input", { "aria-label": "Value", placeholder: "value", value, spellcheck: "false" }),
      h("button", { type: "button", class: "quiet icon", "aria-label": "Remove this field", onclick: drop }, "×"),
    );
    function drop() {
      row.remove();
      more.focus();
    }
    rows.append(row);
    return row;
  }

  for (const [name, value] of Object.entries(metadata)) append(name, asText(value));
  return {
    element: h(
      "div",
      { role: "group", "aria-label": "Metadata" },
      h("p", { class: "label" }, "Metadata"),
      rows,
      h("p", { class: "hint" }, 'Numbers, true, false and other JSON are kept as such; in "quotes" they are text.'),
      more,
    ),
    read() {
      const read = {};
      for (const row of rows.children) {
        const [name, value] = [...row.querySelectorAll("input")].map((input) => input.value.trim());
        if (!name && !value) continue;
        if (!name) throw new Error(`The value ${value} has no name.`);
        if (Object.hasOwn(read, name)) throw new Error(`The name ${name} is there twice.`);
        read[name] = fromText(value);
      }
      return read;
    },
  };
}
