"""docs/results.md, the figures in README.md and those of the card, made of docs/results.json alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from recipe_hf.cards.model_card import EvaluationResult, update_results
from recipe_hf.evaluation.reporting.costs import efficiency_page, harness_table
from recipe_hf.evaluation.reporting.summary import figure, summary_rows
from recipe_hf.evaluation.reporting.tables import COLUMNS, details_rows, markdown_rows

HERE = Path(__file__).parent
METRICS = {name: COLUMNS[name] for name in ("reliability", "generality", "locality")}
NAMES = {
    "zsre": "ZSRE of KnowEdit, held-out half",
    "wiki": "wiki-recent and wiki-counterfact of KnowEdit, held-out halves",
}
NAMES = {step: name for short, name in NAMES.items() for step in (short, f"generation-{short}")}
OTHER_PROTOCOLS = ("protocols", "generation-zsre", "generation-wiki")
#: What was asked with the verifier and without: step without it, protocol, and what it is.
VERIFIED = {
    "verified": ("counterfact", "strict", "CounterFact"),
    "verified-statements": ("statements", "strict", "CounterFact, told as statements"),
    "verified-zsre": ("zsre", "strict", NAMES["zsre"]),
    "verified-wiki": ("wiki", "strict", NAMES["wiki"]),
    "verified-protocols": ("protocols", "generation", "CounterFact"),
    "verified-generation-zsre": ("generation-zsre", "generation", NAMES["zsre"]),
}
FORMS = {"without": "without the verifier", "with": "with it"}
#: The sets of benchmarks/gate.py: what should use a fact (or retire one), and what should not.
GATE = {
    "unseen_wordings": (("prompts", "rephrasings"), ("other properties", "other subjects")),
    "unseen_wordings_near": (("prompts", "rephrasings"), ("other properties", "other subjects")),
    "statements": (("asks",), ("misses",)),
    "families": (("asks",), ("asks, another used",)),
    "updates": (("retires",), ("stays", "unrelated")),
    "chat": ((), ("clinc150", "clinc150-oos")),
}
TYPED = ("asks in lower case", "asks mistyped", "asks after a story")
FOUND = {kind for found, _ in GATE.values() for kind in found} | {*TYPED}
#: What the retriever did: metric and heading.
RETRIEVER = {
    "reliability_nearest": "recall@1, edits",
    "generality_nearest": "recall@1, rephrasings",
    "reliability_fired": "fired, edits",
    "generality_fired": "fired, rephrasings",
    "locality_fired": "fired, unrelated",
    "calibration_error": "calibration error",
}
TITLES = {"counterfact": "CounterFact", "zsre": "ZSRE", "wiki": "wiki-recent and wiki-counterfact"}
_MARKED = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", flags=re.DOTALL)


def write_pages(summary: Mapping[str, Any], root: Path, checkpoint: Path) -> Iterator[Path]:
    """Writes what quotes the summary, and says which files."""
    values = {
        "summary": summary,
        "evaluations": summary["evaluations"],
        "images": _images(root),
        "titles": TITLES,
    } | tables(summary)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = root / "docs/results.md"
    page.write_text(_tidy(environment.get_template("results_page.md").render(values)), encoding="utf-8")
    yield page
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    if not _MARKED.search(text):
        raise ValueError(f"{readme} must have a line <!-- results --> and a line <!-- /results -->.")
    quoted = _tidy(environment.get_template("results_in_readme.md").render(values))
    readme.write_text(_MARKED.sub(lambda found: f"{found[1]}{quoted}{found[2]}", text), encoding="utf-8")
    yield readme
    text = environment.get_template("results_in_card.md").render(values)
    update_results(root / checkpoint, card_results(summary), _tidy(text))
    yield root / checkpoint / "README.md"


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _images(root: Path) -> dict[str, str]:
    return {
        path.stem.removeprefix("results-"): f"images/{path.name}" for path in root.glob("docs/images/results-*.png")
    }


def tables(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of the pages, in Markdown; those whose step was not run are empty."""
    evaluations = summary["evaluations"]
    made: dict[str, Any] = {
        "edits": _beside_paper(evaluations["counterfact"]) if "counterfact" in evaluations else "",
        "knowedit": _knowedit(evaluations),
        "protocols": _protocols(evaluations),
        "said_freely": _protocols(evaluations, only="generation"),
        "retriever": _retriever(evaluations),
        "told": _told(evaluations),
        "general_fired": _general(evaluations),
        "harness": harness_table(summary["harness"]) if "harness" in summary else "",
        "efficiency": efficiency_page(summary["efficiency"]) if "efficiency" in summary else "",
        "gate": _gate(summary["gate"]) if "gate" in summary else {},
        "gate_in_short": _gate_in_short(summary["gate"]) if "gate" in summary else "",
        "verified": _verified(evaluations, 2),
        "verified_in_short": _verified(evaluations, 1),
        "general_verified": _general(evaluations, "verified-general"),
        "failures": [_failures(step, found) for step, found in summary["failures"].items()],
        "commands": {name: re.sub(r"(?m)^#+ ", "### ", text) for name, text in summary["tables"].items()},
        "paper": [" / ".join(f"{row[name]:.1f}" for name in METRICS) for row in _paper().values()],
    }
    made["details"] = {
        step: {
            name: markdown_rows(details_rows(rows, figure), first="---") for name, rows in found["protocols"].items()
        }
        for step, found in evaluations.items()
    }
    steps = [["step", "seconds"], *([name, f"{time['seconds']:,.0f}"] for name, time in summary["times"].items())]
    total = sum(time["seconds"] for time in summary["times"].values())
    made["times"] = markdown_rows([*steps, ["together", f"{total:,.0f}"]], first="---")
    made["machines"] = sorted({time["machine"] for time in summary["times"].values()})
    return made


def _gate(record: Mapping[str, Any]) -> dict[str, str]:
    """For how many of each kind of text the right fact was used, or wrongly one, and what probabilities are worth."""
    forms = [FORMS[form] for form in record]
    made = {}
    for name, wanted in (("found", True), ("wrong", False)):
        rows = [
            [f"`{set_}`", kind, *_shares(record, set_, (kind,), wanted)]
            for set_, kinds in list(record.values())[-1]["sets"].items()
            for kind in kinds
            if (kind in FOUND) == wanted
        ]
        made[name] = markdown_rows([["facts", "asked", "texts", *forms], *rows], first="---")
    rows = [
        [
            *(f"`{set_}`", FORMS[form], _fired(found["at least 0.9"]), _fired(found["0.5 to 0.9"])),
            f"{100 * found['error']:.1f}",
        ]
        for form, measured in record.items()
        for set_, found in measured["calibration"].items()
    ]
    headings = ["facts", "", "fired at 90% or more", "fired at 50 to 90%", "calibration error"]
    made["calibration"] = markdown_rows([headings, *rows], first="---") if rows else ""
    return made


def _fired(count: Mapping[str, int]) -> str:
    """How many retrievals fired, and how many in a hundred of these were right."""
    return f"{count['fired']:,}" + (f", {100 * count['right'] / count['fired']:.1f} right" if count["fired"] else "")


def _shares(record: Mapping[str, Any], name: str, kinds: Sequence[str], wanted: bool) -> list[str]:
    """How many texts of these kinds there are, and for how many in a hundred of them a fact was used."""
    asked, cells = "–", []
    for form in record.values():
        counts = [form["sets"][name][kind] for kind in kinds if kind in form["sets"].get(name, {})]
        number, right = (sum(count[key] for count in counts) for key in ("asked", "right"))
        asked = f"{number:,}" if number else asked
        cells.append(f"{100 * (right if wanted else number - right) / number:.1f}" if number else "–")
    return [asked, *cells]


def _gate_in_short(record: Mapping[str, Any]) -> str:
    """A row for each set."""
    headings = [f"{what}, {FORMS[form]}" for what in ("found", "wrongly used") for form in record]
    rows = [
        [f"`{name}`", *_shares(record, name, found, True)[1:], *_shares(record, name, wrong, False)[1:]]
        for name, (found, wrong) in GATE.items()
        if any(name in form["sets"] for form in record.values())
    ]
    return markdown_rows([["facts", *headings], *rows], first="---")


def _verified(evaluations: Mapping[str, Any], largest: int) -> str:
    """What was asked with the verifier, beside the same without it, of so many of the largest numbers of facts."""
    columns = METRICS | {name: COLUMNS[name] for name in ("locality_fired", "locality_fired_on_subject")}
    rows = [["", "protocol", "facts", "asked about", "", *columns.values()]]
    for verified, (plain, protocol, name) in VERIFIED.items():
        both = {"without": evaluations.get(plain), "with": evaluations.get(verified)}
        if both["with"] is None:
            continue
        for number in list(summary_rows(both["with"], protocol))[-largest:]:
            for form, found in both.items():
                for cells in summary_rows(found, protocol, columns, [number]).values() if found else ():
                    figures = [cells.get(heading, "–") for heading in columns.values()]
                    asked = _asked(found, protocol, number) if found else ""
                    rows.append([name, f"`{protocol}`", f"{number:,}", asked, FORMS[form], *figures])
    return markdown_rows(rows, first="---") if len(rows) > 1 else ""


def _paper() -> dict[int, dict[str, float]]:
    """The paper's figures on CounterFact by number of edits."""
    return yaml.safe_load((HERE / "paper_figures.yaml").read_text(encoding="utf-8"))["counterfact"]


def _beside_paper(found: Mapping[str, Any]) -> str:
    paper = _paper()
    rows = [["facts", "asked about", *METRICS.values(), *(f"paper: {heading}" for heading in METRICS.values())]]
    for number, cells in summary_rows(found, "strict", METRICS).items():
        theirs = [f"{paper[number][name]:.1f}" if number in paper else "–" for name in METRICS]
        rows.append([f"{number:,}", _asked(found, "strict", number), *cells.values(), *theirs])
    return markdown_rows(rows)


def _asked(found: Mapping[str, Any], protocol: str, number: int) -> str:
    """Of how many facts their prompt was asked with each seed."""
    return f"{found['asked'][protocol][str(number)]['reliability']:,}"


def _knowedit(evaluations: Mapping[str, Any]) -> str:
    names = [step for step in ("zsre", "wiki") if step in evaluations]
    rows = [["", "facts", "asked about", *COLUMNS.values()]]
    for step in names:
        for number, cells in summary_rows(evaluations[step], "strict").items():
            asked = _asked(evaluations[step], "strict", number)
            rows.append(
                [NAMES[step], f"{number:,}", asked, *(cells.get(heading, "–") for heading in COLUMNS.values())]
            )
    return markdown_rows(rows, first="---") if names else ""


def _told(evaluations: Mapping[str, Any]) -> str:
    """Prompts of statement and answer, and of the statement alone."""
    columns = {name: heading for name, heading in COLUMNS.items() if not name.startswith("portability")}
    rows = [["prompt tokens made of", "facts held", "asked about", *columns.values()]]
    for step, words in (
        ("counterfact", "statement and answer"),
        ("statements", "statement alone, as in the paper"),
    ):
        if step in evaluations:
            cells = summary_rows(evaluations[step], "strict", columns, (1000, 10000))
            rows += [
                [words, f"{number:,}", _asked(evaluations[step], "strict", number), *row.values()]
                for number, row in cells.items()
            ]
    return markdown_rows(rows, first="---") if len(rows) > 1 else ""


def _protocols(evaluations: Mapping[str, Any], only: str | None = None) -> str:
    """The protocols beside `strict`, or one of them."""
    columns = METRICS | {name: COLUMNS[name] for name in ("portability", "portability_base")}
    rows = [["", "protocol", "facts", "asked about", *columns.values()]]
    for step in OTHER_PROTOCOLS:
        for protocol in evaluations[step]["protocols"] if step in evaluations else ():
            for number, cells in summary_rows(evaluations[step], protocol, columns).items():
                if only in (None, protocol):
                    head = [_name(step), f"`{protocol}`", f"{number:,}", _asked(evaluations[step], protocol, number)]
                    rows.append([*head, *(cells.get(heading, "–") for heading in columns.values())])
    return markdown_rows(rows, first="---") if len(rows) > 1 else ""


def _name(step: str) -> str:
    return NAMES.get(step, "CounterFact")


def _retriever(evaluations: Mapping[str, Any]) -> str:
    """What the retriever did in every evaluation that asks what the data ask."""
    rows = [["", "protocol", "facts", "asked about", "seeds", *RETRIEVER.values()]]
    for step in ("counterfact", "protocols", *NAMES):
        for protocol in evaluations[step]["protocols"] if step in evaluations else ():
            for number, cells in summary_rows(evaluations[step], protocol, RETRIEVER).items():
                found = evaluations[step]
                head = [_name(step), f"`{protocol}`", f"{number:,}", _asked(found, protocol, number)]
                cells = [cells.get(heading, "–") for heading in RETRIEVER.values()]
                rows.append([*head, f"{len(found['seeds'])}", *cells])
    return markdown_rows(rows, first="---") if len(rows) > 1 else ""


def _general(evaluations: Mapping[str, Any], step: str = "counterfact") -> str:
    """How often a fact is used for prompts that none concerns."""
    if step not in evaluations:
        return ""
    by_number = evaluations[step]["protocols"]["strict"]
    names = [name for name in next(iter(by_number.values())) if name.startswith("general_fired/")]
    titles = [name.partition("/")[2].removeprefix("general-").removesuffix(".jsonl").upper() for name in names]
    rows = [["facts held", *titles]]
    for number, metrics in by_number.items():
        cells = [
            f"{metrics[name][0]:.2f}" + (f" ± {metrics[name][1]:.2f}" if metrics[name][1] else "") for name in names
        ]
        rows.append([f"{int(number):,}", *cells])
    return markdown_rows(rows) if names else ""


def _failures(step: str, found: Mapping[str, Any]) -> dict[str, Any]:
    kinds = []
    for kind in found.values():
        rows = [["asked", "as", "nearest fact (score, threshold)", "said", "expected"]]
        for example in kind["examples"]:
            fact = f"{example['fact']} ({example['score']}, {example['threshold']})"
            cells = [example["query"], example["kind"].replace("_", " ").lower(), fact]
            rows.append([_cell(text) for text in (*cells, example["said"], example["expected"])])
        kinds.append({**kind, "table": markdown_rows(rows, first="---").replace("---:", "---")})
    return {"name": NAMES.get(step, "CounterFact, 10,000 facts"), "step": step, "kinds": kinds}


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "(nothing)"


def card_results(summary: Mapping[str, Any]) -> list[EvaluationResult]:
    """The evaluations for a card, but for the probes."""
    results = []
    for step, found in summary["evaluations"].items():
        if step in ("probes", "verified-general"):
            continue
        asked, with_verifier = found["num_questions"], ", with the verifier" if step in VERIFIED else ""
        for protocol in found["protocols"]:
            rows = summary_rows(found, protocol)
            fewer = asked and any(number > asked for number in rows)
            results.append(
                EvaluationResult(
                    dataset=found["dataset"]
                    + with_verifier
                    + (f", asking about at most {asked:,} of the facts held" if fewer else ""),
                    protocol=protocol,
                    seeds=found["seeds"],
                    rows={number: dict(cells) for number, cells in rows.items()},
                )
            )
    return results
