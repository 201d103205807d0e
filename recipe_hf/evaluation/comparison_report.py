"""A comparison of editors as a record to keep and a page to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .editors import EDITORS
from .protocols import PROTOCOLS
from .questions import KINDS
from .report import markdown_rows, mean_and_interval

#: What is averaged over seeds: its name in a result, and the heading of its column.
COLUMNS = {
    "reliability": "reliability",
    "generality": "generality",
    "locality": "locality",
    "right_fact_edits": "right fact, edits",
    "right_fact_rephrasings": "right fact, rephrasings",
    "fired_unrelated": "fired, unrelated",
    "tokens_added": "tokens added",
    "edit_ms": "edit, ms a fact",
    "generation_ms": "16 tokens, ms",
}
_HEADINGS = ["protocol", "facts", "editor", *COLUMNS.values()]


def comparison_record(settings: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results one by one, and as a table: `columns`, its headings, and `rows`, its cells as they are shown.

    The order of the rows does not depend on that of the results.
    """
    names = [name for name in EDITORS if any(r["editor"] == name for r in results)]
    rows = []
    for protocol in settings["protocols"]:
        for facts in sorted({r["facts"] for r in results}):
            for name in names:
                cell = [r for r in results if (r["protocol"], r["facts"], r["editor"]) == (protocol, facts, name)]
                if cell:
                    rows.append([protocol, f"{facts:,}", name, *(_mean(cell, column) for column in COLUMNS)])
    return {
        "command": settings["command"],
        "settings": dict(settings),
        "editors": {name: EDITORS[name].description for name in names},
        "columns": _HEADINGS,
        "rows": rows,
        "results": list(results),
    }


def _mean(results: Sequence[Mapping[str, Any]], column: str) -> str:
    values = [result[column] for result in results if column in result]
    return mean_and_interval(values) if values else "–"


def result_line(results: Sequence[Mapping[str, Any]]) -> str:
    """The results of an editor under each protocol in a line."""
    first = results[0]
    shown = [f"{r['protocol']}: " + ", ".join(f"{kind} {r[kind]:.1f}" for kind in KINDS if kind in r) for r in results]
    return f"{first['editor']}, {first['facts']:,} facts, seed {first['seed']}: " + "; ".join(shown)


def comparison_page(record: Mapping[str, Any]) -> str:
    """A record as Markdown without headings, for a page of its own or a part of another."""
    settings = record["settings"]
    asked = settings["num_questions"]
    lines = [
        f"{settings['dataset']}, trained weights {settings['weights']}, base model {settings['base_model']} in "
        f"{settings['dtype']}. The facts of a row are held at "
        f"once; facts and questions are the same for all editors, seeds {_listed(record, 'seed')}. In percent. "
        f"Asked about {f'at most {asked:,}' if asked else 'all'} of the facts held. Tokens are those added to the "
        "prompt of an edited fact, on average. The last column is greedy writing after one such prompt, look-up "
        "included.",
        "\n".join(f"- `{name}`: {description}" for name, description in record["editors"].items()),
    ]
    for protocol in settings["protocols"]:
        text = PROTOCOLS[protocol].description
        table = [row[1:] for row in record["rows"] if row[0] == protocol]
        lines += [f"Protocol `{protocol}`: {text}"]
        lines += [markdown_rows([record["columns"][1:], *table])]
    given = {(r["editor"], r["facts"], r["seed"]): r["settings"] for r in record["results"] if r["settings"]}
    if given:
        told = [
            f"- `{name}`, {facts:,} facts, seed {seed}: {', '.join(f'{k} {v}' for k, v in values.items())}"
            for (name, facts, seed), values in given.items()
        ]
        lines += ["What editors chose, and how long they trained:", "\n".join(told)]
    return "\n\n".join(lines) + "\n"


def _listed(record: Mapping[str, Any], name: str) -> str:
    return ", ".join(map(str, sorted({result[name] for result in record["results"]})))
