"""Editors compared: the same facts and questions for each, in one file, resumed where it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from ..datasets import EditExample
from ..teacher_forcing import tokenize_rows
from .comparison_report import comparison_record, result_line
from .editing import Trial, accuracy_of
from .editors import EDITORS, Editor, EditorOptions
from .held import remembering
from .inputs import describe_rows, machine, model_settings, run_settings
from .protocols import PROTOCOLS, Protocol, find_protocol
from .questions import KINDS, Question
from .records import check_same, read_record, write_record
from .saying import EXTRA_TOKENS

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM

_TIMED_PROMPTS = 8
TIMED_TOKENS = 16


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Args:
        dataset: Name of the data, for a reader.
        examples: The facts to draw from.
        editors: Names of editors, among `EDITORS`.
        num_edits: Numbers of facts to hold at once.
        max_trained_edits: Editors that train take part where there are at most so many facts.
        seeds: Seeds, each of which draws facts anew.
        protocols: Names of protocols, but `paper`, which concerns retrievers alone.
        num_questions: How many facts to ask about; all that are held by default.
        validation: Rows that are no facts to edit in, for thresholds. The last `num_validation` are asked about, among
            as many as there are facts to edit in, but at least themselves.
        num_validation: How many of them are asked about.
        options: What the editors are made with.

    Raises:
        ValueError: If a value is not as described.
    """

    dataset: str
    examples: Sequence[EditExample]
    editors: Sequence[str]
    num_edits: Sequence[int] = (100, 1000)
    max_trained_edits: int = 100
    seeds: Sequence[int] = (0,)
    protocols: Sequence[str] = ("strict",)
    num_questions: int | None = 200
    validation: Sequence[EditExample] = ()
    num_validation: int = 500
    options: EditorOptions = field(default_factory=EditorOptions)

    def __post_init__(self) -> None:
        for name in ("editors", "num_edits", "seeds", "protocols"):
            values = list(getattr(self, name))
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name one or more, none of them twice, got {values}.")
        for name in self.editors:
            if name not in EDITORS:
                raise ValueError(f"editors must be among {', '.join(EDITORS)}, got {name!r}.")
        for name in self.protocols:
            if find_protocol(name).shows_answer:
                raise ValueError(f"protocols must be strict or generation, got {name!r}: it is for retrievers alone.")
        if not self.cells:
            raise ValueError(
                f"editors that train take part with at most max_trained_edits={self.max_trained_edits} facts, and "
                f"{', '.join(self.editors)} do, so that none is left for num_edits {list(self.num_edits)}."
            )
        wrong = [number for number in self.num_edits if not 2 <= number <= len(self.examples)]
        if wrong:
            raise ValueError(
                f"num_edits must be between 2 and the {len(self.examples)} facts of {self.dataset}, got {wrong}."
            )
        if self.num_validation < 1:
            raise ValueError(f"num_validation must be at least 1, got {self.num_validation}.")
        tuned = [name for name in self.editors if EDITORS[name].is_tuned]
        if tuned and not self.validation:
            raise ValueError(f"validation rows are needed for {', '.join(tuned)}, got none.")

    @property
    def cells(self) -> list[tuple[int, str, int]]:
        """Number of facts, editor and seed of each result."""
        return [
            (number, name, seed)
            for number in self.num_edits
            for name in self.editors
            if self.takes_part(name, number)
            for seed in self.seeds
        ]

    def takes_part(self, editor: str, num_edits: int) -> bool:
        """Whether an editor is asked with so many facts: one that trains is not where they are too many."""
        return num_edits <= self.max_trained_edits or not EDITORS[editor].trains

    def tuning_rows(self, num_edits: int) -> tuple[list[EditExample], list[EditExample]]:
        """Rows to hold and rows to ask about when thresholds are chosen; of rows with one prompt, the last counts."""
        rows = list({example.prompt: example for example in self.validation}.values())
        return rows[-max(num_edits, self.num_validation) :], rows[-self.num_validation :]

    def settings(self, model: RecipeForCausalLM) -> dict[str, Any]:
        """What all results depend on, as plain values. Those of an editor also do on its own `EditorKind.inputs`."""
        return {
            "dataset": self.dataset,
            "facts": describe_rows(self.examples),
            "validation": describe_rows(self.validation),
            "num_validation": self.num_validation,
            "protocols": list(self.protocols),
            "num_questions": self.num_questions,
            "options": asdict(self.options),
            "machine": machine(),
            **model_settings(model),
        }


def run_comparison(
    model: RecipeForCausalLM,
    comparison: Comparison,
    output: Path | None = None,
    command: str = "compare",
    batch_size: int = 32,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Runs a comparison, or the rest of one.

    Args:
        model: The model. Its language model and knowledge are the same afterwards.
        comparison: What to compare.
        output: JSON file, written after each editor; without it, nothing can be resumed. More editors, numbers of
            edits or seeds may be asked for later: only what is missing is run.
        command: What the record says it is of.
        batch_size: Rows in one call of the language model.
        report: Told a line when each editor is done.

    Returns:
        The record, which is what `output` holds: `columns` and `rows` of the table, and `results`, one for each
        editor, number of facts, seed and protocol, with the outcome of every question.

    Raises:
        ValueError: If `output` holds something else than this comparison.
        RuntimeError: If the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise RuntimeError("The model has no tokenizer of its base: set model.tokenizer.")
    settings = run_settings(command, **comparison.settings(model), batch_size=batch_size)
    record = None if output is None else read_record(output, settings)
    results = [] if record is None else list(record["results"])
    inputs = {name: EDITORS[name].inputs(comparison.options) for _, name, _ in comparison.cells}
    if output is not None:
        held = {result["editor"]: result["inputs"] for result in results if result["editor"] in inputs}
        check_same(output, held, {name: inputs[name] for name in held})
    done = {(r["facts"], r["editor"], r["seed"]) for r in results}
    for number in comparison.num_edits:
        left_out = [name for name in comparison.editors if not comparison.takes_part(name, number)]
        if left_out:
            report(f"{', '.join(left_out)}: not with {number:,} facts (max_trained_edits)")
    unedited: dict[Any, list[int]] = {}
    for number, name, seed in comparison.cells:
        if (number, name, seed) not in done:
            trial = Trial.draw(comparison.examples, number, seed, comparison.num_questions)
            kind = EDITORS[name]
            editor = kind.make(model, comparison.options)
            found = _measure(editor, trial, comparison, unedited, batch_size, tuned=kind.is_tuned)
            head = {"facts": number, "editor": name, "seed": seed, "inputs": inputs[name]}
            results += [head | result for result in found]
            if output is not None:
                write_record(output, comparison_record(settings, results))
            report(result_line(results[-len(found) :]))
    return comparison_record(settings, results)


def _measure(
    editor: Editor,
    trial: Trial,
    comparison: Comparison,
    unedited: dict[Any, list[int]],
    batch_size: int,
    tuned: bool,
) -> list[dict[str, Any]]:
    """The results of an editor on a trial, one for each protocol."""
    for name in comparison.protocols:
        _ask_base(editor, trial.questions, PROTOCOLS[name], unedited, batch_size)
    if tuned:
        editor.tune(*comparison.tuning_rows(trial.num_edits))
    started = time.perf_counter()
    editor.edit(trial.facts)
    edit_ms = 1000 * (time.perf_counter() - started) / len(trial.facts)
    try:
        generation_ms = _time_generation(editor, trial)
        results = []
        for name in comparison.protocols:
            outcomes = _ask(editor, trial.questions, PROTOCOLS[name], unedited, batch_size)
            times = {"edit_ms": round(edit_ms, 1), "generation_ms": round(generation_ms)}
            told = {"settings": dict(editor.settings), "outcomes": outcomes}
            results.append({"protocol": name, **_metrics(outcomes), **times, **told})
    finally:
        editor.undo()
    return results


def _say(editor: Editor, inputs: Any, questions: Sequence[Question], protocol: Protocol) -> list[list[int]]:
    answers = [question.answers[0] for question in questions]
    if protocol.forced:
        return editor.predict(inputs, answers)
    rows = tokenize_rows(editor.tokenizer, inputs.texts, answers)
    return editor.write(inputs, [len(row.answer_ids) + EXTRA_TOKENS for row in rows])


def _batches(editor: Editor, questions: Sequence[Question], batch_size: int) -> list[list[Question]]:
    """Questions of similar length together."""
    rows = tokenize_rows(editor.tokenizer, [q.text for q in questions], [q.answers[0] for q in questions])
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    return [[questions[i] for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]


def _ask_base(
    editor: Editor, questions: Sequence[Question], protocol: Protocol, unedited: dict[Any, list[int]], batch_size: int
) -> None:
    """Has the language model, not yet edited, answer what no fact concerns; each question once for all editors."""
    asked = {(protocol.forced, q.text, q.answers[0]): q for q in questions if not q.concerns}
    new = [question for key, question in asked.items() if key not in unedited]
    for batch in _batches(editor, new, batch_size) if new else []:
        said = _say(editor, Editor.inputs(editor, [q.text for q in batch]), batch, protocol)
        unedited |= {(protocol.forced, q.text, q.answers[0]): s for q, s in zip(batch, said, strict=True)}


def _ask(
    editor: Editor, questions: Sequence[Question], protocol: Protocol, unedited: dict[Any, list[int]], batch_size: int
) -> list[dict[str, Any]]:
    tokenizer = editor.tokenizer
    outcomes = []
    for batch in _batches(editor, questions, batch_size):
        prompts = [question.text for question in batch]
        inputs = editor.inputs(prompts)
        said = _say(editor, inputs, batch, protocol)
        added = _tokens_added(editor, prompts, inputs)
        used = inputs.used or [None] * len(batch)
        rows = tokenize_rows(tokenizer, prompts, [question.answers[0] for question in batch])
        for i, question in enumerate(batch):
            key = (protocol.forced, question.text, question.answers[0])
            expected = rows[i].answer_ids if question.concerns else unedited[key]
            output = tokenizer.decode(said[i], skip_special_tokens=True).strip()
            outcome = {
                "kind": question.kind,
                "query": question.text,
                "expected": question.answers[0] if question.concerns else tokenizer.decode(expected).strip(),
                "output": output,
                "accuracy": accuracy_of(protocol, question, said[i], expected, output),
                "tokens_added": added[i],
            }
            if inputs.used is not None:
                outcome["fired"] = used[i] is not None
                outcome["right_fact"] = used[i] == (question.about if question.concerns else None)
            outcomes.append(outcome)
    return outcomes


def _tokens_added(editor: Editor, prompts: Sequence[str], inputs: Any) -> list[int]:
    read = [len(ids) for ids in editor.tokenizer(inputs.texts)["input_ids"]]
    asked = [len(ids) for ids in editor.tokenizer(list(prompts))["input_ids"]]
    before = [0] * len(read) if inputs.prefix is None else inputs.prefix[1].sum(1).tolist()
    return [r - a + b for r, a, b in zip(read, asked, before, strict=True)]


def _time_generation(editor: Editor, trial: Trial) -> float:
    """Milliseconds to look an edited fact's prompt up and write on, one prompt at a time; the median of several."""
    prompts = [q.text for q in trial.questions if q.kind == "reliability"][: 1 + _TIMED_PROMPTS]
    times = []
    with remembering(editor.model, 0):  # An earlier editor may have asked.
        for prompt in prompts:
            started = time.perf_counter()
            editor.write(editor.inputs([prompt]), [TIMED_TOKENS], min_new_tokens=TIMED_TOKENS)
            times.append(time.perf_counter() - started)
    return 1000 * median(times[1:] or times)  # The first is to warm up.


def _metrics(outcomes: Sequence[dict[str, Any]]) -> dict[str, float]:
    by_kind = {kind: [o for o in outcomes if o["kind"] == kind] for kind in KINDS}
    found = {kind: 100 * mean(o["accuracy"] for o in rows) for kind, rows in by_kind.items() if rows}
    for name, kind, what in (
        ("right_fact_edits", "reliability", "right_fact"),
        ("right_fact_rephrasings", "generality", "right_fact"),
        ("fired_unrelated", "locality", "fired"),
    ):
        if by_kind[kind] and what in by_kind[kind][0]:
            found[name] = 100 * mean(o[what] for o in by_kind[kind])
    found["tokens_added"] = mean(o["tokens_added"] for o in by_kind["reliability"])
    return found
