"""General ability: tasks of lm-eval, put to the base and to the model that holds facts.

The tasks named `local_...` read files on disk and word their prompts as lm-eval does; any other task is lm-eval's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import yaml

from ...datasets import EditExample
from ...knowledge.facts import compose_statement
from ...modeling.outputs import Retrieval
from ...modeling.queries import read_queries
from ...modeling.text_prompts import num_text_tokens
from ..editors.retrieval import recipe
from ..inputs import describe_file, describe_rows, digest, model_settings, run_settings
from ..records import check_same, read_record, write_record
from .editing import edited

try:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ImportError("The harness needs lm-eval: install it with pip install 'recipe-hf[harness]'.") from error

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

_TASKS = Path(__file__).with_name("tasks")
#: Tasks whose rows are in local files.
LOCAL_TASKS = tuple(sorted(path.stem for path in _TASKS.glob("*.yaml")))


class RecipeLM(HFLM):
    """A RECIPE model for lm-eval, which looks up the context of a request and never its continuation.

    lm-eval gives context and continuation to a model in one piece; here the `query_mask` covers the context alone.

    Args:
        model: The model, with its tokenizer.
        batch_size: Rows in one call of the base.
        statements: Those it will hold. Where facts are told as text, room is kept for the longest of them.

    Attributes:
        lookups: What was found for each query so far.
    """

    def __init__(self, model: RecipeForCausalLM, batch_size: int = 16, statements: Sequence[str] = ()) -> None:
        if model.tokenizer is None:
            raise RuntimeError("The model has no tokenizer of its base: set model.tokenizer.")
        prefix = model.config.num_continuous_prompt_tokens + model.config.num_answer_prompt_tokens
        if model.config.prompt_form == "text":
            prefix = max(num_text_tokens(statements, model.tokenizer), default=0)
        super().__init__(
            pretrained=model,
            tokenizer=model.tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=model.config.max_position_embeddings - model.config.top_k_facts * prefix,
        )
        self.lookups: dict[str, Retrieval] = {}

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """For each request, the log-likelihood of its continuation and whether greedy decoding would give it.

        Requests that differ in the last token of the continuation only, such as A, B, C or D, are one row.
        """
        rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            rows.setdefault((tuple(context), tuple(continuation[:-1])), []).append(number)
        order = sorted(rows, key=lambda row: -len(row[0]) - len(row[1]))
        results: list[Any] = [None] * len(requests)
        size = override_bs or int(self.batch_size)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            for row, log_probs in zip(batch, self._log_probs(batch), strict=True):
                for number in rows[row]:
                    text, _, continuation = requests[number]
                    tokens = torch.tensor(continuation)
                    said = log_probs.gather(1, tokens[:, None]).sum().item()
                    results[number] = said, bool((log_probs.argmax(-1) == tokens).all())
                    if text is not None:
                        self.cache_hook.add_partial("loglikelihood", text, results[number])
        return results

    @torch.no_grad()
    def _log_probs(self, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[torch.Tensor]:
        """Log-probabilities `[len(continuation) + 1, vocab]` at the last token of each context and all after it."""
        texts = [(context + continuation)[-self.max_length :] for context, continuation in rows]
        width, most = max(map(len, texts)), 1 + max(len(continuation) for _, continuation in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask, query_mask = torch.zeros_like(ids), torch.zeros_like(ids)
        kept = torch.zeros(len(rows), most, dtype=torch.long)
        for i, (text, (_, continuation)) in enumerate(zip(texts, rows, strict=True)):
            ids[i, : len(text)] = torch.tensor(text)
            mask[i, : len(text)] = 1
            query_mask[i, : len(text) - len(continuation)] = 1
            kept[i] = torch.arange(len(text) - most, len(text)).clamp(min=0)
        ids, mask, query_mask, kept = (tensor.to(self.device) for tensor in (ids, mask, query_mask, kept))
        outputs = self.model(ids, attention_mask=mask, query_mask=query_mask, logits_to_keep=kept)
        self._remember(read_queries(self.tokenizer, ids, mask, query_mask), outputs.retrievals)
        log_probs = F.log_softmax(outputs.logits.float(), dim=-1).cpu()
        return [found[most - 1 - len(row[1]) :] for found, row in zip(log_probs, rows, strict=True)]

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        queries = read_queries(self.tokenizer, context, kwargs.get("attention_mask"))
        self._remember(queries, self.model.retrieve(queries))
        return super()._model_generate(context, max_length, stop, queries=queries, **kwargs)

    def _remember(self, queries: Sequence[str], retrievals: Sequence[Retrieval]) -> None:
        self.lookups |= zip(queries, retrievals, strict=True)


def load_task(name: str, data: Path) -> str | dict[str, Any]:
    """A task as lm-eval takes it: the configuration of a local one, the name of any other.

    Args:
        name: Name of the task.
        data: Directory of the files that local tasks read.

    Raises:
        ValueError: If such a file is missing.
    """
    if name not in LOCAL_TASKS:
        return name
    config = yaml.safe_load((_TASKS / f"{name}.yaml").read_text(encoding="utf-8"))
    file = data / config["metadata"]["file"]
    if not file.is_file():
        raise ValueError(f"data must be a directory with {file.name}, which {name} reads, got {str(data)!r}.")
    return config | {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
        "test_split": "test",
    }


def _task_inputs(task: str | dict[str, Any]) -> dict[str, str]:
    """What the figures of a task depend on beside the settings of the run: how a local one is worded, and its rows."""
    if isinstance(task, str):
        return {}
    wording = {name: value for name, value in task.items() if name != "dataset_kwargs"}
    return {
        "wording": digest([json.dumps(wording, sort_keys=True)]),
        "data": describe_file(Path(task["dataset_kwargs"]["data_files"]["test"])),
    }


def run_harness(
    model: RecipeForCausalLM,
    tasks: Sequence[str],
    facts: Sequence[EditExample],
    data: Path = Path("data"),
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    output: Path | None = None,
) -> dict[str, Any]:
    """Puts tasks to the base, and to the model that holds facts.

    The base is the same model without a fact. What is finished is read from `output` rather than done again, where
    all that its figures depend on is as it was: the files of the local tasks in it too.

    Args:
        model: The model. Its knowledge is the same afterwards.
        tasks: Names of tasks.
        facts: The facts to hold.
        data: Directory of the files that local tasks read.
        limit: Rows of each task; all by default.
        num_fewshot: Examples before each question; as the task says by default.
        batch_size: Rows in one call of the base.
        output: JSON file.

    Returns:
        `settings`, and for each task its inputs, its metrics (percent, with standard errors) without and with facts,
        how many rows were scored otherwise, and how many queries were looked up and used a fact.

    Raises:
        ValueError: If no task or fact is given, a task is unknown, its file is missing, or `output` holds another run.
    """
    if not tasks or not facts:
        raise ValueError(f"tasks and facts must not be empty, got {len(tasks)} tasks and {len(facts)} facts.")
    settings = run_settings(
        "harness",
        **model_settings(model),
        facts=describe_rows(facts),
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        lm_eval=version("lm_eval"),
    )
    record: dict[str, Any] = (output and read_record(output, settings)) or {"settings": settings, "tasks": {}}
    done = record["tasks"]
    given = {name: load_task(name, data) for name in (*done, *tasks)}
    inputs = {name: _task_inputs(task) for name, task in given.items()}
    if output is not None:
        held_inputs = {name: found["inputs"] for name, found in done.items()}
        check_same(output, held_inputs, {name: inputs[name] for name in done})
    missing = {name: task for name, task in given.items() if name not in done}
    manager = TaskManager(include_defaults=not set(missing) <= set(LOCAL_TASKS))
    unknown = [name for name in missing if name not in LOCAL_TASKS and name not in manager.all_tasks]
    if unknown:
        raise ValueError(f"tasks must be {', '.join(LOCAL_TASKS)} or tasks of lm-eval, got {', '.join(unknown)}.")
    lm = RecipeLM(model, batch_size, [compose_statement(fact.prompt, fact.answer) for fact in facts])
    for name, task in missing.items():
        runs = {}
        for side, held in (("base", facts[:0]), ("edited", facts)):
            lm.lookups.clear()
            with edited(recipe(model), held):
                runs[side] = lm_eval.simple_evaluate(
                    lm, tasks=[task], limit=limit, num_fewshot=num_fewshot, task_manager=manager, bootstrap_iters=1000
                )
        done[name] = {"inputs": inputs[name]} | _compare(name, runs, lm.lookups)
        if output is not None:
            write_record(output, record)
    return record


def _compare(name: str, runs: Mapping[str, Any], lookups: Mapping[str, Retrieval]) -> dict[str, Any]:
    samples = {side: [row for rows in run["samples"].values() for row in rows] for side, run in runs.items()}
    pairs = list(zip(samples["base"], samples["edited"], strict=True))
    fired = [{"query": query, "statement": hit.statement} for query, hit in lookups.items() if hit.fired]
    return {
        "rows": len(pairs),
        "changed": sum(any(base[m] != edited[m] for m in base["metrics"]) for base, edited in pairs),
        "queries": len(lookups),
        "fired": fired,
        **{side: _metrics(name, run) for side, run in runs.items()},
    }


def _metrics(name: str, run: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of a task or group of lm-eval; those between 0 and 1 in percent."""
    values = run["results"].get(name) or run["groups"][name]
    metrics = {}
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if filtered and isinstance(value, float) and not metric.endswith("_stderr"):
            error = values.get(f"{metric}_stderr,{filtered}")
            scale = 100 if metric.startswith(("acc", "exact", "em", "f1")) and value <= 1 else 1
            metrics[metric] = {"value": scale * value} | ({"error": scale * error} if isinstance(error, float) else {})
    return metrics
