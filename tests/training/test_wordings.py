from __future__ import annotations

from collections import Counter

import numpy as np

from recipe_hf.datasets import EditExample
from recipe_hf.training.wordings import OtherProperties, Wordings, load_properties

RNG = np.random.default_rng(0)


def test_every_group_asks_for_one_property():
    groups, names = load_properties()
    assert len(groups) > 300
    seen: dict[tuple[str, str | None], int] = {}
    for number, group in enumerate(groups):
        assert set(group) <= {"prompts", "questions", "rephrasings", "subjects", "answers"}
        assert all(text.endswith("?") for text in group["questions"])
        continued = [*group["prompts"], *group.get("rephrasings", ())]
        assert not any(text.endswith("?") for text in continued)
        for text in {*continued, *group["questions"]} - {"Where is {}?"}:  # which asks for city and country
            assert text.count("{}") == 1
            assert seen.setdefault((text, group.get("subjects")), number) == number
    assert all(isinstance(name, str) for values in names.values() for name in values)


def test_the_wordings_of_counterfact_are_known():
    groups, _ = load_properties()
    wordings = Wordings()
    for prompt in [prompt for group in groups if "rephrasings" in group for prompt in group["prompts"]]:
        assert wordings.draw(RNG, EditExample(prompt.replace("{}", "X"), "a", "X")) is not None, prompt


def test_a_prompt_of_two_properties_has_no_other_words():
    prompts = Counter(prompt for group in load_properties()[0] for prompt in group["prompts"])
    prompt = next(prompt for prompt, count in prompts.items() if count > 1)
    assert Wordings().draw(RNG, EditExample(prompt.replace("{}", "X"), "a", "X")) is None


def test_wordings_ask_for_the_property_of_the_prompt():
    wordings = Wordings()
    example = EditExample("The sex or gender of Le {x} is", "a", "Le {x}")
    assert {wordings.draw(RNG, example) for _ in range(60)} == {
        "The gender of Le {x} is",
        "The sex or gender of Le {x} is",
        "What is Le {x}'s gender?",
        "Le {x}'s sex is",
        "Of what gender is Le {x}?",
    }
    assert wordings.draw(RNG, EditExample("The echo of X answers", "red", "X")) is None
    assert wordings.draw(RNG, EditExample("The mother tongue of X is", "red")) is None


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
