"""What the Hub refuses a card for, as far as that can be told without it."""

from __future__ import annotations

import re

import yaml

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc0-1.0", "openrail", "other", "unknown")
_RELATIONS = ("adapter", "finetune", "merge", "quantized")


def card_errors(content: str) -> list[str]:
    """What the Hub would refuse a card for, as far as that can be told here."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---\s", content, re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        return [f"YAML metadata is not valid: {error}"]
    if not isinstance(data, dict):
        return ["YAML metadata must be an object"]
    errors = [f'"{name}" must not be null' for name, value in data.items() if value is None]
    errors += [
        f'"{n}" must be a string' for n in ("library_name", "pipeline_tag") if not isinstance(data.get(n, ""), str)
    ]
    tags = data.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        errors.append('"tags" must be an array of strings')
    if data.get("license", "mit") not in _LICENSES:
        errors.append(f'"license" must be one of {_LICENSES}')
    if data.get("base_model_relation", "adapter") not in _RELATIONS:
        errors.append(f'"base_model_relation" must be one of {_RELATIONS}')
    for name in ("base_model", "datasets"):
        for value in data[name] if isinstance(data.get(name), list) else [data.get(name, "x")]:
            if not isinstance(value, str) or not _HUB_ID.fullmatch(value):
                errors.append(f'"{name}" with value "{value}" is not valid. Use an id from https://hf.co.')
    for index in data.get("model-index", []):
        for result in index.get("results", []) if "name" in index else [{}]:
            dataset, metrics = result.get("dataset", {}), result.get("metrics", [{}])
            if not {"name", "type"} <= dataset.keys() or "type" not in result.get("task", {}):
                errors.append('"model-index" results must name task.type, dataset.name and dataset.type')
            if not all({"type", "value"} <= metric.keys() for metric in metrics):
                errors.append('"model-index" metrics must have type and value')
    return errors
