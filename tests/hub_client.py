"""What clients of the Hub do in the tests, each in a process that `start_client` prepares."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from tests.tiny_recipe import (
    FACTS,
    GREEDY,
    MIXED,
    base_tokenizer,
    batch_of,
    edited_recipe,
    tiny_base,
    tiny_recipe,
    untrained_recipe,
)
from tests.tiny_training import STAGES, tiny_config

ANN = {"token": "hf_ann"}


def start_client() -> None:
    """Shortens the waits between a client's tries, and stops the clock, so that the same facts are the same files."""
    from recipe_hf.knowledge import timestamps

    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))
    timestamps.now = lambda after="": "2024-01-01T00:00:00+00:00"


def run(action: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    try:
        return action(*args, **kwargs), None
    except Exception as error:
        return None, ([kind.__name__ for kind in type(error).__mro__], str(error))


def push_base(repo_id: str, **kwargs: Any) -> None:
    tiny_base().push_to_hub(repo_id, **kwargs)
    base_tokenizer().push_to_hub(repo_id, **kwargs)


def push_model(repo_id: str, facts: list[Any] = FACTS, **kwargs: Any) -> str:
    model = tiny_recipe()
    model.config.base_model_name_or_path = "org/base"
    model.add_knowledge(facts)
    return model.push_to_hub(repo_id, **ANN | kwargs)


def push_told_model(repo_id: str, base_model: str, retriever: str, **kwargs: Any) -> bool:
    """Pushes a model that tells its facts as text, and says whether it comes back as it went."""
    from recipe_hf import RecipeForCausalLM

    model = RecipeForCausalLM.from_base_pretrained(base_model, retriever=retriever, **kwargs)
    model.add_knowledge(FACTS)
    model.push_to_hub(repo_id, **ANN)
    loaded = RecipeForCausalLM.from_pretrained(repo_id, **kwargs)
    written = [each.generate(**batch_of(each, MIXED), **GREEDY).tolist() for each in (model, loaded)]
    return written[0] == written[1]


def push_parts(retriever_revision: str | None = None) -> str:
    """Pushes a model in two parts, and says at which commit the retriever is."""
    model = edited_recipe()
    model.config.base_model_name_or_path = "org/base"
    commit = model.push_to_hub("org/retriever", parts="retriever", include_knowledge=False, **ANN)
    named = {"retriever": "org/retriever", "retriever_revision": retriever_revision}
    model.push_to_hub("org/prompts", parts="prompts", **named, **ANN)
    return commit.oid


def push_other_retriever() -> None:
    model = untrained_recipe()
    model.push_to_hub("org/retriever", parts="retriever", **ANN)


def save_parts(directory: Path) -> None:
    model = edited_recipe()
    model.config.base_model_name_or_path = "org/base"
    model.save_pretrained(directory / "retriever", parts="retriever", include_knowledge=False)
    model.save_pretrained(directory / "prompts", parts="prompts", retriever=directory / "retriever")


def upload_folder(directory: Path, repo_id: str) -> None:
    from huggingface_hub import HfApi

    HfApi(**ANN).create_repo(repo_id)
    HfApi(**ANN).upload_folder(folder_path=directory, repo_id=repo_id)


def take_retriever(retriever: str, **kwargs: Any) -> list[Any]:
    """What a config records of a retriever that a new model takes from the Hub."""
    from recipe_hf import RecipeForCausalLM

    options = {"retriever": retriever, "prompt_form": "continuous", "tokenizer": base_tokenizer()}
    model = RecipeForCausalLM.from_base_pretrained(tiny_base(), **options, **kwargs)
    with TemporaryDirectory() as directory:
        model.save_pretrained(directory, parts="prompts")
        config = json.loads((Path(directory) / "config.json").read_text())
    return [config[f"retriever_{name}"] for name in ("name_or_path", "revision", "fingerprint")]


def save_model(directory: Path, **kwargs: Any) -> None:
    edited_recipe().save_pretrained(directory, **ANN | kwargs)


def push_directory(*args: Any, **kwargs: Any) -> str:
    from recipe_hf.hub import push_checkpoint

    return push_checkpoint(*args, **ANN | kwargs)


def load_statements(repo_id: str, **kwargs: Any) -> list[str]:
    from recipe_hf import RecipeForCausalLM

    return [f.statement for f in RecipeForCausalLM.from_pretrained(repo_id, base_model=False, **kwargs).knowledge]


def generate_as_pushed(repo_id: str, **kwargs: Any) -> bool:
    from recipe_hf import RecipeForCausalLM

    outputs = []
    for model in (edited_recipe(), RecipeForCausalLM.from_pretrained(repo_id, **kwargs)):
        outputs.append(model.generate(**batch_of(model, MIXED), max_new_tokens=6, do_sample=False).tolist())
    return outputs[0] == outputs[1]


def some_facts(number: int = 3, dim: int = 8) -> Any:
    import torch

    from recipe_hf import KnowledgeBase

    knowledge = KnowledgeBase(dim)
    facts = [
        {"statement": "Grass is green.", "metadata": {"source": "a look", "sure": True}},
        {"prompt": "The sky is", "answer": "blü", "metadata": {"source": 3}},
        "Snow is white.",
        "Coal is black.",
    ]
    knowledge.add(facts[:number], torch.eye(dim)[:number], encoder_fingerprint="weights")
    return knowledge


def push_facts(repo_id: str, number: int = 3, remove: int | None = None, **kwargs: Any) -> str:
    knowledge = some_facts(number)
    if remove is not None:
        knowledge.remove(remove)
    return knowledge.push_to_hub(repo_id, **ANN | kwargs)


def load_facts(repo_id: str, **kwargs: Any) -> dict[str, Any]:
    from recipe_hf import KnowledgeBase

    knowledge = KnowledgeBase.from_pretrained(repo_id, **kwargs)
    return {
        "facts": [fact.to_dict() for fact in knowledge],
        "past": [fact.statement for fact in knowledge.history()],
        "keys": knowledge.keys([fact.id for fact in knowledge]).tolist(),
        "fingerprint": knowledge.encoder_fingerprint,
    }


def read_dataset(repo_id: str, cache_dir: str) -> list[dict[str, Any]]:
    from datasets import load_dataset

    return list(load_dataset(repo_id, split="train", cache_dir=cache_dir))


def take_over_facts(repo_id: str) -> list[int | None]:
    from recipe_hf import KnowledgeBase

    model = tiny_recipe()
    model.knowledge = KnowledgeBase.from_pretrained(repo_id, repo_type="model", **ANN)
    return [hit.id if hit.fired else None for hit in model.retrieve(MIXED)]


def invoke(*arguments: object) -> tuple[int, str]:
    from typer.testing import CliRunner

    from recipe_hf.cli import app

    environment = {"COLUMNS": "200", "HF_TOKEN": ANN["token"]}
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    return result.exit_code, " ".join(result.output.split())


def upload_card(text: str, repo_id: str = "org/card") -> None:
    from huggingface_hub import HfApi

    HfApi(**ANN).create_repo(repo_id, exist_ok=True)
    # It asks the Hub to validate a README.md before it uploads anything, as `ModelCard.validate` does.
    HfApi(**ANN).upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=repo_id)


def train(parts: Path, output_dir: Path, resume: bool = False, token: str = "hf_ann", **changes: Any) -> list[Any]:
    """Trains for three steps; what was warned of, after which step, and whether there was a checkpoint by then."""
    from recipe_hf.training import trainer as training

    values = {"stages": STAGES[1:2], "eval_steps": 1, "save_steps": 100, "push_to_hub": True} | changes
    said: list[Any] = []
    with patch.dict(os.environ, HF_TOKEN=token), patch.object(training.logger, "warning") as warning:
        trainer = training.Trainer(tiny_config(parts, output_dir, **values))
        warning.side_effect = lambda text: said.append((text, trainer.step, (output_dir / "checkpoint").is_dir()))
        trainer.train(resume)
    return said
