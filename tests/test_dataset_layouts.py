from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipe_hf.datasets import EditExample, load_examples
from tests.dataset_rows import COUNTERFACT, FACT, FLAT, KNOWEDIT, RIPPLE, RIPPLE_FLAT, ZSRE, ZSRE_MEND, write


def test_flat_counterfact(tmp_path: Path):
    first, second = load_examples(write(tmp_path / "cf.json", [FLAT, FLAT | {"target_new": "Welsh"}]))
    assert first == EditExample(
        prompt="The mother tongue of Danielle Darrieux is",
        answer="English",
        subject="Danielle Darrieux",
        rephrasings=("Danielle Darrieux, a native",),
        unrelated=(("Léon Blum spoke", "French"),),
        ground_truth="French",
    )
    assert (first.rephrase_prompt, first.locality_prompt, first.locality_answer) == (
        "Danielle Darrieux, a native",
        "Léon Blum spoke",
        "French",
    )
    assert second.answer == "Welsh"


def test_counterfact_of_rome(tmp_path: Path):
    assert load_examples(write(tmp_path / "cf.json", [COUNTERFACT])) == [
        EditExample(
            prompt="The mother tongue of Danielle Darrieux is",
            answer="English",
            subject="Danielle Darrieux",
            rephrasings=("Shayna does this. Danielle Darrieux, a native", "Danielle Darrieux spoke"),
            unrelated=(("The native language of Montesquieu is", "French"), ("Léon Blum spoke", "French")),
            ground_truth="French",
        )
    ]


def test_zsre_leaves_out_rows_without_a_new_answer(tmp_path: Path):
    assert load_examples(write(tmp_path / "zsre.json", [ZSRE | {"alt": ""}, ZSRE])) == [
        EditExample(
            prompt="What university did Watts Humphrey attend?",
            answer="University of Michigan",
            subject="Watts Humphrey",
            rephrasings=("What university did Watts Humphrey take part in?",),
            unrelated=(("who played desmond doss father in hacksaw ridge?", "Hugo Weaving"),),
            ground_truth="Illinois Institute of Technology",
        )
    ]


@pytest.mark.parametrize("row", [ZSRE, FLAT])
def test_question_of_the_portability_files(tmp_path: Path, row: dict[str, Any]):
    question = {"Recalled Relation": "r", "New Question": "In which state did he study?", "New Answer": "Michigan"}
    (example,) = load_examples(write(tmp_path / "a.json", [row | {"portability": question}]))
    assert example.portability == {"Reasoning": (("In which state did he study?", ("Michigan",)),)}


def test_zsre_of_mend(tmp_path: Path):
    rows = [ZSRE_MEND, ZSRE_MEND | {"alternatives": []}, ZSRE_MEND | {"input": "Who runs Orrville?"}]
    first, last = load_examples(write(tmp_path / "zsre.jsonl", rows))
    assert first == EditExample(
        prompt="Which river runs through Orrville?",
        answer="Rhine",
        rephrasings=("What is the river of Orrville?",),
        unrelated=(("Who runs Orrville?", "Sugar Creek"),),
        ground_truth="Sugar Creek",
        unrelated_is_made_up=True,
    )
    assert last.prompt == "Who runs Orrville?"


def test_knowedit(tmp_path: Path):
    rows = [KNOWEDIT, KNOWEDIT | {"rephrase_prompt": "Leo Vale was born in", "ground_truth": ["Oslo"]}]
    rows.append(KNOWEDIT | {"rephrase": "Where is Leo Vale from?"})
    first, second, third = load_examples(write(tmp_path / "knowedit.json", rows))
    assert first == EditExample(
        prompt="The place of birth of Leo Vale is",
        answer="Riga",
        subject="Leo Vale",
        unrelated=(("The gender of Leo Vale is", "male"), ("The award Leo Vale won is", "Cross")),
        unrelated_kinds=("Relation_Specificity", "Forgetfulness"),
        portability={
            "Subject_Aliasing": (("The place of birth of L. Vale is", ("Riga",)),),
            "Reasoning": (("The country Leo Vale was born in is", ("Latvia", "LV", "EU")),),
        },
    )
    assert (second.rephrasings, second.ground_truth) == (("Leo Vale was born in",), "Oslo")
    assert third.rephrasings == ("Where is Leo Vale from?",)


def test_kinds_of_knowedit_may_have_a_dot_in_their_name(tmp_path: Path):
    asked = {"v1.0": [{"prompt": "The gender of Leo Vale is", "ground_truth": "male"}]}
    path = write(tmp_path / "knowedit.json", [KNOWEDIT | {"portability": asked, "locality": asked}])
    (example,) = load_examples(path)
    assert example.portability == {"v1.0": (("The gender of Leo Vale is", ("male",)),)}
    assert (example.unrelated, example.unrelated_kinds) == ((("The gender of Leo Vale is", "male"),), ("v1.0",))


def test_rippleedits_of_the_recipe_authors(tmp_path: Path):
    recent = {name: value for name, value in RIPPLE_FLAT.items() if name != "ground_truth"} | {"target_new": "Mali"}
    path = write(tmp_path / "ripe_test.json", [RIPPLE_FLAT, RIPPLE_FLAT | {"target_new": ""}, recent])
    first, last = load_examples(path)
    assert first == EditExample(
        prompt="The name of the country of citizenship of Leo Vale is",
        answer="Syria",
        subject="Leo Vale",
        unrelated=(("The name of the mother of Leo Vale is", "Ada Vale"), ("The award Leo Vale won is", "Cross")),
        unrelated_kinds=("Relation_Specificity", "Forgetfulness"),
        portability={
            "Logical_Generalization": (("Leo Vale lives in", ("Asia",)),),
            "Subject_Aliasing": (("The name of the country of citizenship of L. V. is", ("Syria", "SY")),),
        },
        ground_truth="Latvia",
    )
    assert (last.answer, last.ground_truth) == ("Mali", "")


def test_rippleedits(tmp_path: Path):
    assert load_examples(write(tmp_path / "popular.json", [RIPPLE])) == [
        EditExample(
            prompt="The name of the country of citizenship of Leo Vale is",
            answer="Syria",
            unrelated=(
                ("The name of the mother of Leo Vale is", "Ada Vale"),
                ("The award Leo Vale won is", "Cross"),
            ),
            unrelated_kinds=("Relation_Specificity", "Forgetfulness"),
            portability={
                "Logical_Generalization": (("Leo Vale lives in", ("Asia",)),),
                "Subject_Aliasing": (("The name of the country of citizenship of L. V. is", ("Syria", "SY")),),
            },
            ground_truth="St. Lucia",
        )
    ]


@pytest.mark.parametrize(
    ("statement", "former", "split"),
    [
        ("The director of Life is Short is Bo.", None, ("The director of Life is Short is", "Bo")),
        ("The names of the siblings of Ann Is are Al.", None, ("The names of the siblings of Ann Is are", "Al")),
        ("Moon is followed by Sun.", None, ("Moon is followed by", "Sun")),
        ("Moon follows Sun.", None, ("Moon follows", "Sun")),
        ("The anthem of Ito is Life is All.", "The anthem of Ito is Low.", ("The anthem of Ito is", "Life is All")),
        ("The anthem of Ito is Low.", "The anthem of Ito is Long.", ("The anthem of Ito is", "Low")),
    ],
)
def test_statements_of_rippleedits_are_split(
    tmp_path: Path, statement: str, former: str | None, split: tuple[str, str]
):
    edit = {"prompt": statement, "original_fact": {"prompt": former}}
    (example,) = load_examples(write(tmp_path / "recent.json", [RIPPLE | {"edit": edit}]))
    assert (example.prompt, example.answer) == split


def test_rippleedits_without_an_object_is_left_out_and_without_a_verb_refused(tmp_path: Path):
    rows = [RIPPLE | {"edit": {"prompt": "The place of birth of Leo Vale is ."}}, RIPPLE]
    assert [e.answer for e in load_examples(write(tmp_path / "recent.json", rows))] == ["Syria"]
    path = write(tmp_path / "recent.json", [RIPPLE, RIPPLE | {"edit": {"prompt": "Leo Vale."}}])
    with pytest.raises(
        ValueError, match=r"row 1: field 'edit\.prompt' must be a prompt that ends in is, are, .*'Leo Vale\.'"
    ):
        load_examples(path)


def test_own_facts(tmp_path: Path):
    full = FACT | {"subject": "Acme", "rephrasings": ["Who runs Acme?"], "metadata": {"source": "x"}}
    path = write(tmp_path / "facts.jsonl", [full, FACT])
    path.write_text("\ufeff" + path.read_text().replace("\n", "\r\n\r\n") + "\n", encoding="utf-8")
    first, second = load_examples(path)
    assert first == EditExample(
        prompt="The CEO of Acme is",
        answer="Ann Lee",
        subject="Acme",
        rephrasings=("Who runs Acme?",),
        unrelated=(("The CEO of Beta is", "Ann Lee"), ("Snow is", "Ann Lee")),
    )
    assert (second.subject, second.rephrasings, second.rephrase_prompt) == ("", (), "The CEO of Acme is")


# bad rows


@pytest.mark.parametrize("value", [None, "  ", 3, ["x"]])
def test_bad_field_is_named_with_its_row(tmp_path: Path, value: object):
    path = write(tmp_path / "cf.json", [FLAT, FLAT | {"rephrase_prompt": value}])
    with pytest.raises(ValueError, match=r"cf\.json, row 1: field 'rephrase_prompt' must be a non-empty string, got"):
        load_examples(path)


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (
            COUNTERFACT,
            {"requested_rewrite": {"prompt": "a"}},
            r"field 'requested_rewrite\.subject' must be a non-empty",
        ),
        (COUNTERFACT, {"neighborhood_prompts": [{"a": 1}]}, "field 'neighborhood_prompts' must be a string or a list"),
        (ZSRE, {"loc": None}, "field 'loc' must be a non-empty string, got None"),
        (ZSRE_MEND, {"input": 3}, "field 'input' must be a non-empty string, got 3"),
        (ZSRE_MEND, {"output": "x"}, "field 'output' must be a list, got 'x'"),
        (KNOWEDIT, {"locality": []}, "field 'locality' must be an object of lists of questions, by kind"),
        (
            KNOWEDIT,
            {"locality": {"A": [{"ground_truth": "x"}]}},
            r"locality\.A\[0\]: field 'prompt' must be a non-empty",
        ),
        (RIPPLE, {"edit": {}}, r"field 'edit\.prompt' must be a non-empty string"),
        (RIPPLE, {"Forgetfulness": ["x"]}, r"Forgetfulness\[0\] must be a JSON object, got 'x'"),
        (FACT, {"answer": ""}, "field 'answer' must be a non-empty string, got ''"),
        (KNOWEDIT, {"locality": {"v1.0": "x"}}, r"field 'locality\.v1\.0' must be a list, got 'x'"),
        (
            RIPPLE_FLAT,
            {"Forgetfulness": [{"targets": ["x"]}]},
            r"Forgetfulness\[0\]: field 'prompt' must be a non-emp",
        ),
        (FACT, {"unrelated": ["Snow is", " The CEO of Acme is"]}, "field 'unrelated' must be questions other than"),
        (FACT, {"rephrasing": ["a"]}, "unknown fields rephrasing; allowed are prompt, answer, subject, rephrasings,"),
    ],
)
def test_bad_rows_of_each_layout(tmp_path: Path, row: dict[str, Any], change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=rf"data\.json, row 1(: |, ){message}"):
        load_examples(write(tmp_path / "data.json", [row, row | change]))


def test_row_that_is_not_a_mapping_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="row 1 must be a JSON object, got 'x'"):
        load_examples(write(tmp_path / "cf.json", [FLAT, "x"]))
