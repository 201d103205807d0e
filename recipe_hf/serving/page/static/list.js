// A list of facts that the server gives page by page, with its states: loading, failed, empty, filled.

import { $, count, h } from "./dom.js";
import { problemBox } from "./parts.js";

/**
 * Binds the elements `#NAME-list`, `#NAME-count` and `#NAME-pages`.
 *
 * `load(after)` gives `{facts, next, total}`, `row(fact)` a list item, `empty()` what to show where there is none,
 * and `summary(page, from)` the line above. Returned is what fills it anew.
 */
export function pagedList({ name, load, row, empty, summary }) {
  const [list, line, nav] = ["list", "count", "pages"].map((part) => $(`#${name}-${part}`));
  let cursors = [null]; // where each page known so far begins
  let at = 0;
  let from = 0; // how many facts the pages before hold
  let sizes = [];
  let latest = 0;

  async function show(to) {
    const turn = ++latest;
    list.setAttribute("aria-busy", "true");
    const slow = setTimeout(() => list.childElementCount || list.replaceChildren(loading()), 200);
    try {
      const page = await load(cursors[to]);
      if (turn !== latest) return;
      if (!page.facts.length && to > 0) return void show(to - 1);
      at = to;
      sizes[at] = page.facts.length;
      cursors[at + 1] = page.next;
      from = sizes.slice(0, at).reduce((sum, size) => sum + size, 0);
      list.replaceChildren(page.facts.length ? h("ul", { class: "facts" }, ...page.facts.map(row)) : empty());
      line.textContent = page.facts.length ? summary(page, from) : "";
      turnable(page);
    } catch (problem) {
      if (turn !== latest || problem.name === "AbortError") return;
      list.replaceChildren(problemBox(problem, () => show(to)));
      line.textContent = "";
      nav.hidden = true;
    } finally {
      clearTimeout(slow);
      if (turn === latest) list.removeAttribute("aria-busy");
    }
  }

  function turnable(page) {
    nav.hidden = at === 0 && !page.next;
    $("[data-step='-1']", nav).disabled = at === 0;
    $("[data-step='1']", nav).disabled = !page.next;
    $("span", nav).textContent = `Page ${at + 1}`;
  }

  nav.addEventListener("click", async (event) => {
    const step = Number(event.target.dataset.step);
    if (!step) return;
    await show(at + step);
    $(`#${name}-title`).focus();
    $(`#${name}-title`).scrollIntoView();
  });

  function forget() {
    cursors = [null];
    sizes = [];
    at = 0;
  }

  return {
    forget,
    restart() {
      forget();
      return show(0);
    },
    refresh: () => show(at),
  };
}

function loading() {
  return h("p", { class: "loading" }, "Loading…");
}

/** `1 to 25 of 1,234 facts`. */
export function range(page, from, noun) {
  const upTo = from + page.facts.length;
  const isAll = from === 0 && page.next === null;
  const rows = isAll ? "" : `${from + 1} to ${upTo}`;
  // Of those that a search found, nobody knows how many there are before the last page.
  const total = page.total ?? (page.next === null ? upTo : null);
  if (total === null) return `${rows} of the ${noun}s found`;
  return [rows && `${rows} of`, count(total, noun)].filter(Boolean).join(" ");
}
