"""A comparison of editors as a page to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..asking.protocols import PROTOCOLS
from .tables import markdown_rows


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
