from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from recipe_hf.datasets import EditExample
from recipe_hf.training import questions
from recipe_hf.training.questions import OtherProperties, QuestionForms

RNG = np.random.default_rng(0)


def test_every_prompt_has_one_group_of_questions():
    groups = yaml.safe_load(Path(questions.__file__).with_name("question_forms.yaml").read_text())
    prompts = [prompt for group in groups for prompt in group["prompts"]]
    assert len(prompts) == len(set(prompts)) > 150
    for group in groups:
        assert set(group) == {"prompts", "questions"}
        assert all(text.count("{}") == 1 for text in group["prompts"] + group["questions"])
        assert all(text.endswith("?") for text in group["questions"]) and len(group["questions"]) >= 2


def test_questions_ask_for_the_property_of_the_prompt():
    forms = QuestionForms()
    drawn = {forms.draw(RNG, EditExample("Le {x} was named for", "a", "Le {x}")) for _ in range(50)}
    assert drawn == {
        "What is Le {x} named after?",
        "Who or what was Le {x} named for?",
        "After what is Le {x} called?",
    }
    assert forms.draw(RNG, EditExample("The colour of X is", "red", "X")) is None
    assert forms.draw(RNG, EditExample("The mother tongue of X is", "red")) is None


def fact(prompt: str, answer: str, subject: str, unrelated: tuple[tuple[str, str], ...] = ()) -> EditExample:
    return EditExample(prompt.format(subject), answer, subject, unrelated=unrelated)


def test_other_properties_share_no_answer_and_are_asked_for_often():
    examples = [fact("{} was born in", city, f"P{n}") for n, city in enumerate(["Oslo", "Rome", "Lima"])]
    examples += [fact("{} died in", city, f"Q{n}") for n, city in enumerate(["Bonn", "Rome", "Nice"])]
    examples += [fact("{} speaks", "Greek", f"R{n}", ((f"The job of R{n} is", "cook"),)) for n in range(3)]
    examples += [fact("{} rarely says", "no", "T"), EditExample("nobody's", "a")]
    others = OtherProperties(examples)
    drawn = {others.draw(RNG, examples[0]) for _ in range(60)}
    assert drawn == {"P0 speaks", "The job of P0 is"}
    assert {others.draw(RNG, examples[6]) for _ in range(60)} == {"R0 was born in", "R0 died in", "The job of R0 is"}
    assert others.draw(RNG, examples[-1]) is None
    assert OtherProperties(examples[-2:]).draw(RNG, examples[-2]) is None
