"""What editing costs in general ability, time and memory, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tables import markdown_rows


def harness_table(record: Mapping[str, Any]) -> str:
    """The comparison in Markdown."""
    rows = [["task", "rows", "metric", "base", "with facts", "difference", "scored otherwise", "gate fired"]]
    for name, found in record["tasks"].items():
        for metric, base in found["base"].items():
            edited = found["edited"][metric]
            rate = 100 * len(found["fired"]) / max(found["queries"], 1)
            rows.append(
                [
                    name.removeprefix("local_"),
                    f"{found['rows']:,}",
                    metric,
                    f"{base['value']:.1f} ± {base.get('error', 0):.1f}",
                    f"{edited['value']:.1f} ± {edited.get('error', 0):.1f}",
                    f"{edited['value'] - base['value']:+.2f}",
                    f"{found['changed']:,}",
                    f"{len(found['fired'])} of {found['queries']:,} ({rate:.2f}%)",
                ]
            )
    return markdown_rows(rows, first="---")


_COLUMNS: Mapping[str, tuple[str, str]] = {
    "edit_alone": ("one edit, ms", "{:.1f}"),
    "edit_at_once": ("all at once, ms per edit", "{:.2f}"),
    "base_with_fact": ("base, ms", "{:.0f}"),
    "generate_with_fact": ("with a fact, ms", "{:.0f}"),
    "ratio_with_fact": ("ratio", "{:.3f}"),
    "base_without_fact": ("base, ms", "{:.0f}"),
    "generate_without_fact": ("no fact applies, ms", "{:.0f}"),
    "ratio_without_fact": ("ratio", "{:.3f}"),
    "key_bytes": ("key, bytes", "{:,.0f}"),
    "memory_bytes": ("memory per fact, bytes", "{:,.0f}"),
    "disk_bytes": ("on disk per fact, bytes", "{:,.0f}"),
}


def efficiency_table(record: Mapping[str, Any]) -> str:
    """The measurements in Markdown."""
    rows = [["facts held", *(heading for heading, _ in _COLUMNS.values())]]
    for number, row in sorted(record["rows"].items(), key=lambda item: int(item[0])):
        cells = ["–" if row[name] is None else form.format(row[name]) for name, (_, form) in _COLUMNS.items()]
        rows.append([f"{int(number):,}", *cells])
    return markdown_rows(rows)


def efficiency_page(record: Mapping[str, Any]) -> str:
    """The table, with what it was measured on."""
    settings = record["settings"]
    return (
        f"{record['machine']}; base in {settings['dtype']}; {settings['new_tokens']} new tokens, greedy, one prompt "
        f"at a time; medians of {settings['repeats']}, ratios of pairs in turn.\n\n{efficiency_table(record)}"
    )
