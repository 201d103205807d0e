"""A row of each published layout of knowledge editing data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FLAT = {
    "prompt": "The mother tongue of Danielle Darrieux is",
    "target_new": " English ",
    "subject": "Danielle Darrieux",
    "rephrase_prompt": "Danielle Darrieux, a native",
    "locality_prompt": "Léon Blum spoke",
    "locality_ground_truth": "French",
    "ground_truth": "French",
}
COUNTERFACT = {
    "case_id": 0,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native", "Danielle Darrieux spoke"],
    "neighborhood_prompts": ["The native language of Montesquieu is", "Léon Blum spoke"],
    "attribute_prompts": ["J.-B. Say spoke"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
ZSRE = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did Watts Humphrey attend?",
}
ZSRE_MEND = {
    "input": "Which river runs through Orrville?",
    "prediction": ["Ohio"],
    "alternatives": ["Rhine", "Elbe"],
    "filtered_rephrases": ["What is the river of Orrville?", "Which river runs through Orrville?"],
    "output": [{"answer": "Sugar Creek", "provenance": []}],
}
KNOWEDIT = {
    "subject": "Leo Vale",
    "prompt": "The place of birth of Leo Vale is",
    "target_new": "Riga",
    "portability": {
        "Subject_Aliasing": [{"prompt": "The place of birth of L. Vale is", "ground_truth": "Riga"}],
        "Reasoning": [
            {"prompt": "The country Leo Vale was born in is", "ground_truth": [["Latvia", "LV"], ["EU", "LV"]]}
        ],
        "Logical_Generalization": [],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The gender of Leo Vale is", "ground_truth": [["male", "man"]]},
            {"prompt": "The eye color of Leo Vale is", "ground_truth": [[]]},
        ],
        "Forgetfulness": [{"prompt": "The award Leo Vale won is", "ground_truth": ["Cross"]}],
    },
}


def ripple_test(prompt: str, *answers: dict[str, Any]) -> dict[str, Any]:
    query = {"prompt": prompt, "answers": list(answers), "query_type": "regular", "phrase": None}
    return {"test_queries": [query], "test_condition": "OR", "condition_queries": [query]}


SYRIA = {"value": "Syria", "aliases": ["SY", "Syria"]}
RIPPLE = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Leo Vale is Syria.",
        "subject_id": "Q38111",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q858",
        "original_fact": {
            "prompt": "The name of the country of citizenship of Leo Vale is St. Lucia.",
            "target_id": "Q3",
        },
    },
    "Relation_Specificity": [
        ripple_test("The eye color of Leo Vale is", {"value": "", "aliases": []}),
        ripple_test("The name of the mother of Leo Vale is", {"value": "Ada Vale", "aliases": ["Ada"]}),
    ],
    "Logical_Generalization": [ripple_test("Leo Vale lives in", {"value": "Asia", "aliases": []})],
    "Subject_Aliasing": [ripple_test("The name of the country of citizenship of L. V. is", SYRIA)] * 2,
    "Compositionality_I": [],
    "Compositionality_II": [],
    "Forgetfulness": [ripple_test("The award Leo Vale won is", {"value": "Cross", "aliases": []})],
}
RIPPLE_FLAT = {
    "example_type": "popular",
    "prompt": "The name of the country of citizenship of Leo Vale is",
    "target_new": "Syria",
    "subject": "Leo Vale",
    "ground_truth": "Latvia",
    "Relation_Specificity": [
        {"prompt": "The name of the mother of Leo Vale is", "targets": ["", "Ada Vale", "Ada"]},
        {"prompt": "The eye color of Leo Vale is", "targets": [""]},
    ],
    "Logical_Generalization": [{"prompt": "Leo Vale lives in", "targets": ["Asia"]}],
    "Subject_Aliasing": [{"prompt": "The name of the country of citizenship of L. V. is", "targets": ["Syria", "SY"]}],
    "Compositionality_I": [],
    "Compositionality_II": [],
    "Forgetfulness": [{"prompt": "The award Leo Vale won is", "targets": ["Cross"]}],
}
FACT = {"prompt": "The CEO of Acme is", "answer": "Ann Lee", "unrelated": ["The CEO of Beta is", "Snow is"]}


def write(path: Path, rows: object) -> Path:
    lines = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)  # type: ignore[arg-type]
    path.write_text(lines, encoding="utf-8")
    return path


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
