"""Measures the released checkpoint, and rebuilds what quotes the figures: docs/results.md, README.md and the card.

python scripts/results.py run [STEP ...]   those named, or all, unless finished; each goes on where it was
python scripts/results.py summary          results/ -> docs/results.json (and the plots, docs/images)
python scripts/results.py page             docs/results.json -> docs/results.md, README.md, the checkpoint's card

Most steps measure the paper's form; `gate` and those named `verified` measure the verifier. Results of each checkpoint
have a directory of their own, and those of each verifier, so that a new one starts anew. `summary` keeps what
docs/results.json holds of steps that were not run here, if it is of the same weights: a clone without results/ can run
some steps alone. The sweep trains checkpoints of its own, in runs/.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from recipe_hf.datasets import load_examples
from recipe_hf.evaluation.asking.trials import Trial
from recipe_hf.evaluation.inputs import machine
from recipe_hf.evaluation.records import write_record
from recipe_hf.evaluation.reporting.summary import failures, summarize_record
from recipe_hf.knowledge.facts import compose_statement
from recipe_hf.modeling.verifier import VERIFIER_FILE

ROOT = Path(__file__).parent.parent
SUMMARY = ROOT / "docs/results.json"
IMAGES = ROOT / "docs/images"
DATA = Path("data")
GENERAL = [str(DATA / f"general-{name}.jsonl") for name in ("mmlu", "piqa", "rte")]
COUNTERFACT = ["--dataset", str(DATA / "counterfact-edit.json")]
KNOWEDIT = {
    "zsre": ["knowedit-zsre.json"],
    "wiki": ["knowedit-wiki-recent.json", "knowedit-wiki-counterfact.json"],
}
VALIDATION = ["--validation", str(DATA / "counterfact-train.json")]
SEEDS = ["--seeds", "0", "1", "2"]
#: What each step asks of `recipe-hf`, in the order they run.
STEPS: dict[str, list[str]] = {
    "efficiency": ["efficiency", *COUNTERFACT],
    "gate": ["gate", "--counterfact", COUNTERFACT[1], "--chat", str(DATA / "paraphrases.jsonl")],
    "counterfact": [
        *("evaluate", *COUNTERFACT, "--num-edits", "1", "10", "100", "1000", "10000", *SEEDS),
        *("--num-questions", "500", "--general", *GENERAL, "--plots"),
    ],
    "statements": [
        *("evaluate", *COUNTERFACT, "--num-edits", "1000", "10000", *SEEDS, "--num-questions", "200"),
        "--as-statements",
    ],
    **{
        name: [
            *("evaluate", "--dataset", *(str(DATA / file) for file in files), "--half", "held_out"),
            *("--num-questions", "500", "--protocol", "strict"),
        ]
        for name, files in KNOWEDIT.items()
    },
    "protocols": [
        *("evaluate", *COUNTERFACT, "--num-edits", "1000", "10000", "--num-questions", "100"),
        *("--protocol", "paper", "generation"),
    ],
    **{
        f"generation-{name}": [
            *("evaluate", "--dataset", *(str(DATA / file) for file in files), "--half", "held_out"),
            *("--num-questions", "100", "--protocol", "paper", "generation"),
        ]
        for name, files in KNOWEDIT.items()
    },
    "probes": [
        *("evaluate", *COUNTERFACT, "--num-edits", "10000", "--num-questions", "100", "--probes"),
        *("--protocol", "strict", "generation", "--plots"),
    ],
    "harness": ["harness", "--facts", COUNTERFACT[1], "--num-facts", "10000", "--limit", "300"],
    "ablate": [
        *("ablate", *COUNTERFACT, *VALIDATION, "--num-edits", "1000"),
        *("--num-questions", "100", "--num-validation", "300", "--picture"),
    ],
    "compare": [
        *("compare", *COUNTERFACT, *VALIDATION, "--sentence-model", "models/minilm", "--num-edits", "100"),
        *("--num-questions", "100", "--num-validation", "300", "--seconds", "300"),
        *("--protocol", "strict", "generation"),
    ],
    "sweep": ["sweep", *COUNTERFACT, "--num-edits", "500", "--num-questions", "100", "--picture"],
}
STEPS |= {
    "verified": [
        *("evaluate", *COUNTERFACT, "--num-edits", "1000", "10000", *SEEDS),
        *("--num-questions", "300"),
    ],
    "verified-general": [
        *("evaluate", *COUNTERFACT, "--num-edits", "10000", "--num-questions", "10", "--protocol", "strict"),
        *("--general", *GENERAL),
    ],
    **{f"verified-{name}": STEPS[name] for name in ("statements", "zsre", "wiki")},
    "verified-protocols": [
        *("evaluate", *COUNTERFACT, "--num-edits", "1000", "10000", "--num-questions", "100"),
        *("--protocol", "generation"),
    ],
    "verified-generation-zsre": [word for word in STEPS["generation-zsre"] if word != "paper"],
}
#: Evaluations of which examples of failures are shown: number of edits (all if None) and protocol.
EXAMPLES_OF = {"counterfact": (10_000, "strict"), "zsre": (None, "strict"), "protocols": (10_000, "generation")}
#: Steps whose page is taken in as it is.
PAGES = ("ablate", "compare", "sweep")
#: Parts of docs/results.json that go by step.
PARTS = ("times", "evaluations", "failures", "tables")

app = typer.Typer(pretty_exceptions_enable=False, help=__doc__)
Checkpoint = Annotated[Path, typer.Option(help="The checkpoint.")]
RELEASED = Path("checkpoints/recipe-smollm2-135m")
BASE = "models/smollm2-135m-instruct"


def reads_verifier(step: str) -> bool:
    """Whether a step measures the verifier; all others measure the paper's form."""
    return step.partition("-")[0] in ("gate", "verified")


def results_directory(checkpoint: Path, step: str) -> Path:
    """Where the results of a step are, by the weights that it reads and how the verifier among them is set."""
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes())
    verifier = checkpoint / VERIFIER_FILE
    if reads_verifier(step) and verifier.exists():
        config = _read(checkpoint / "config.json")
        settings = {name: value for name, value in config.items() if re.search("verifie|supersede", name)}
        weights.update(verifier.read_bytes() + json.dumps(settings, sort_keys=True).encode())
    return Path("results") / weights.hexdigest()[:12]


@app.command()
def run(
    steps: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(STEPS)}; all by default.")] = None,
    checkpoint: Checkpoint = RELEASED,
    base_model: str = BASE,
    dtype: Annotated[str, typer.Option(help="Precision of the base.")] = "float32",
) -> None:
    """Runs the steps that are not finished, and says how long each took."""
    possible = [s for s in STEPS if (checkpoint / VERIFIER_FILE).exists() or not s.startswith("verified")]
    if unknown := sorted(set(steps or ()) - set(possible)):
        raise typer.BadParameter(f"STEP must be one of {', '.join(possible)}, got {', '.join(unknown)}.")
    for step in steps or possible:
        directory = results_directory(checkpoint, step)
        directory.mkdir(parents=True, exist_ok=True)
        times = _read(directory / "times.json", {})
        if times.get(step, {}).get("finished"):
            print(f"{step}: finished before, in {times[step]['seconds']:,.0f} s")
            continue
        print(f"{step}: ... (results in {directory})", flush=True)
        start, status = time.monotonic(), 1
        try:
            status = _execute(_command(step, checkpoint, base_model, dtype, directory))
        finally:
            seconds = times.get(step, {}).get("seconds", 0) + time.monotonic() - start
            taken = {"seconds": round(seconds, 1), "finished": status == 0, "machine": machine()}
            # Read again: other steps may have run beside this one.
            write_record(directory / "times.json", _read(directory / "times.json", {}) | {step: taken})
        if status:
            raise typer.Exit(status)
        print(f"{step}: {seconds:,.0f} s", flush=True)


def _execute(words: list[str]) -> int:
    return subprocess.run(words).returncode


def _command(step: str, checkpoint: Path, base_model: str, dtype: str, directory: Path) -> list[str]:
    output = ["--output", str(directory / f"{step}.json")]
    name, *options = STEPS[step]
    if step == "gate":
        return [sys.executable, str(ROOT / "benchmarks/gate.py"), str(checkpoint), *options, *output]
    tool = str(Path(sys.executable).with_name("recipe-hf"))
    if step == "sweep":
        return [tool, name, *options, "--base-model", base_model, *output]
    if not reads_verifier(step):
        options.append("--no-verifier")
    return [tool, name, str(checkpoint), *options, "--base-model", base_model, "--dtype", dtype, *output]


def _read(path: Path, default: Any = None) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


@app.command()
def summary(checkpoint: Checkpoint = RELEASED) -> None:
    """Condenses the finished results into docs/results.json: means, intervals and examples, no rows."""
    kept = _read(SUMMARY, {})
    condensed: dict[str, Any] = {"checkpoint": str(checkpoint), **{part: {} for part in PARTS}}
    measured = []
    for step in STEPS:
        directory = results_directory(checkpoint, step)
        taken = _read(directory / "times.json", {}).get(step, {})
        if taken.get("finished"):
            condensed["times"][step] = taken | {"weights": directory.name}
            _condense(step, directory, condensed)
            measured.append(step)
        elif kept.get("times", {}).get(step, {}).get("weights") == directory.name:
            condensed |= {step: kept[step]} if step in kept else {}
            for part in PARTS:
                condensed[part] |= {step: kept[part][step]} if step in kept[part] else {}
    if not measured:
        raise typer.BadParameter(f"No finished results of {checkpoint} in {directory.parent}: first run the steps.")
    SUMMARY.write_text(json.dumps(condensed, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    size = f"{SUMMARY.stat().st_size / 1024:.0f} KB"
    print(f"{SUMMARY.relative_to(ROOT)}: {size} of {', '.join(condensed['times'])}; new are {', '.join(measured)}")


def _condense(step: str, directory: Path, condensed: dict[str, Any]) -> None:
    if (plot := directory / f"{step}.png").exists():
        IMAGES.mkdir(parents=True, exist_ok=True)
        shutil.copy(plot, IMAGES / f"results-{step}.png")
    if step in PAGES:
        condensed["tables"][step] = (directory / f"{step}.md").read_text(encoding="utf-8")
        return
    record = _read(directory / f"{step}.json")
    if STEPS[step][0] != "evaluate":
        condensed[step] = record
        return
    condensed["evaluations"][step] = summarize_record(record)
    if step in EXAMPLES_OF:
        number, protocol = EXAMPLES_OF[step]
        number = number or max(record["settings"]["num_edits"])
        condensed["failures"][step] = failures(record, number, protocol, _statements(step, record, number))


def _statements(step: str, record: dict[str, Any], number: int) -> list[str]:
    """The facts that the first seed of an evaluation held, in the order they were added."""
    command = STEPS[step]
    paths = [word for word in command if word.endswith(".json")]
    half: Any = command[command.index("--half") + 1] if "--half" in command else None
    examples = [example for path in paths for example in load_examples(path, half=half)]
    settings = record["settings"]
    facts = Trial.draw(examples, number, settings["seeds"][0], settings["num_questions"], every=True).facts
    return [compose_statement(fact.prompt, fact.answer) for fact in facts]


@app.command()
def page(checkpoint: Checkpoint = RELEASED) -> None:
    """Rebuilds docs/results.md, the figures in README.md and those of the card from docs/results.json."""
    from results_page import write_pages

    for path in write_pages(_read(SUMMARY), ROOT, checkpoint):
        print(path)


if __name__ == "__main__":
    app()
