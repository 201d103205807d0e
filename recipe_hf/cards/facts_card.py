"""The card of facts published alone, as a dataset."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

#: The file that `datasets` reads, and its columns.
FACTS_TABLE = "facts.jsonl"
COLUMNS = {"id": "int64", "statement": "string", "prompt": "string", "answer": "string", "metadata": "string"}
_TEMPLATE = Path(__file__).with_name("facts_card_template.md")


def facts_card(repo_id: str) -> DatasetCard:
    """The card of a dataset repository of facts."""
    data = DatasetCardData(
        tags=["recipe", "knowledge-editing"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": FACTS_TABLE}]}],
        dataset_info={"features": [{"name": name, "dtype": dtype} for name, dtype in COLUMNS.items()]},
    )
    return DatasetCard.from_template(data, template_path=str(_TEMPLATE), repo_id=repo_id)
