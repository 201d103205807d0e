"""What the plugin makes of prompts without the base: what `generate` puts before them."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from tests.tiny_recipe import CHAT_TEMPLATE, FACTS, MIXED, PROMPTS, UNRELATED, tiny_base, tiny_recipe

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from recipe_hf.modeling.text_prompts import as_text
from recipe_hf.serving.vllm.embeddings import load_embeddings
from recipe_hf.serving.vllm.lookups import Lookups
from recipe_hf.serving.vllm.model import Asked, PromptingModel


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A base and a checkpoint for it, which knows answers, and the model whole."""
    directory = tmp_path_factory.mktemp("saved")
    model = tiny_recipe(num_answer_prompt_tokens=4)
    model.add_knowledge(FACTS)
    model.save_pretrained(directory / "checkpoint")
    model.lm.save_pretrained(directory / "base")
    return directory, model


@pytest.fixture
def prompting(saved):
    directory, _ = saved
    model = PromptingModel.from_pretrained(directory / "checkpoint", base_model=False)
    model.attach_embeddings(load_embeddings(directory / "base"))
    return model


def _asked(model, prompts, **options):
    return [Asked(ids, **options) for ids in model.tokenizer(prompts)["input_ids"]]


def test_the_prompts_are_those_of_the_whole_model(saved, prompting):
    _, whole = saved
    found = prompting.insertions(_asked(prompting, MIXED))
    assert [hit for hit, _ in found] == whole.retrieve(MIXED)
    assert [inserted is not None for _, inserted in found] == [True, False, True, False]
    retrievals, keys = whole._look_up(MIXED)
    for row in (0, 2):
        prompts, mask = whole.continuous_prompts(keys[row], [retrievals[row].answer])
        hit, inserted = found[row]
        assert inserted.place == 0
        torch.testing.assert_close(inserted.embeds, prompts[0][mask[0]].detach())
        assert hit.num_prompt_tokens == len(inserted) == int(mask.sum())


def test_nothing_of_the_base_is_loaded_but_its_embeddings(saved):
    directory, whole = saved
    lm = load_embeddings(directory / "base")
    embeddings = lm.get_input_embeddings()
    assert torch.equal(embeddings.weight, whole.lm.get_input_embeddings().weight)
    assert {id(p) for p in lm.parameters() if p.device.type != "meta"} == {id(embeddings.weight)}


def test_another_base_is_refused(saved, prompting, tmp_path):
    tiny_base().save_pretrained(tmp_path / "same")
    prompting.attach_embeddings(load_embeddings(tmp_path / "same"))
    tiny_base(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="base_model must be"):
        prompting.attach_embeddings(load_embeddings(tmp_path / "other"))


def test_a_scaled_embedding_keeps_its_scale(tmp_path):
    lm = tiny_base("gemma3")
    lm.save_pretrained(tmp_path)
    tokens = torch.arange(5)
    loaded = load_embeddings(tmp_path).get_input_embeddings()
    assert torch.equal(loaded(tokens), lm.get_input_embeddings()(tokens))
    assert not torch.equal(loaded(tokens), loaded.weight[tokens])


def test_embeddings_in_one_of_several_files(saved, tmp_path):
    _, whole = saved
    whole.lm.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_embeddings(tmp_path).get_input_embeddings()
    assert torch.equal(loaded.weight, whole.lm.get_input_embeddings().weight)


def test_a_base_without_safetensors_is_named(saved, tmp_path):
    _, whole = saved
    whole.lm.config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="The word embeddings of base_model="):
        load_embeddings(tmp_path)


def test_a_chat_is_looked_up_by_its_last_user_message(prompting):
    turns = [{"role": "user", "content": UNRELATED[0]}, {"role": "assistant", "content": "four"}]
    turns += [{"role": "user", "content": PROMPTS[1]}]
    prompting.tokenizer.chat_template = CHAT_TEMPLATE
    text = prompting.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ((hit, _),) = prompting.insertions(_asked(prompting, [text]))
    assert (hit.fired, hit.id) == (True, 1)


def test_each_prompt_is_looked_up_among_facts_of_its_own(prompting):
    (ids,) = prompting.tokenizer(PROMPTS[:1])["input_ids"]
    prompting.add_knowledge([(PROMPTS[0], "Bo Roe")], namespace="theirs")
    prompting.add_knowledge([{"prompt": PROMPTS[1], "answer": "x", "metadata": {"team": 1}}], namespace="theirs")
    asked = [Asked(ids), Asked(ids, "theirs"), Asked(ids, "nobody's"), Asked(ids, "theirs", {"team": 2})]
    statements = [hit.statement if hit.fired else None for hit, _ in prompting.insertions(asked)]
    assert statements == ["The CEO of Acme is Ann Lee", "The CEO of Acme is Bo Roe", None, None]


def test_facts_told_as_text_are_tokens_inside_the_prompt(saved, tmp_path):
    directory, _ = saved
    whole = tiny_recipe(prompt_form="text")
    whole.add_knowledge(FACTS)
    whole.save_pretrained(tmp_path)
    model = PromptingModel.from_pretrained(tmp_path, base_model=False)
    chat = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[2]}], tokenize=False, add_generation_prompt=True
    )
    asked = _asked(model, [PROMPTS[0], UNRELATED[0], chat])
    (first, told), (_, nothing), (_, in_chat) = model.insertions(asked)
    assert nothing is None and told.embeds is None and told.place == 0
    assert model.tokenizer.decode(told.ids) == as_text("The CEO of Acme is Ann Lee")
    assert first.num_prompt_tokens == len(told)
    ids = asked[2].ids
    shown = model.tokenizer.decode([*ids[: in_chat.place], *in_chat.ids, *ids[in_chat.place :]])
    assert shown == chat.replace(PROMPTS[2], as_text("Zork was written by Infocom") + PROMPTS[2])


def test_lookups_that_come_meanwhile_go_together(prompting, monkeypatch):
    sizes, begun, go_on = [], threading.Event(), threading.Event()
    insertions = prompting.insertions

    def counted(asked):
        sizes.append(len(asked))
        begun.set()
        go_on.wait(10)
        return insertions(asked)

    monkeypatch.setattr(prompting, "insertions", counted)
    asked = _asked(prompting, MIXED)

    async def run():
        lookups = Lookups(prompting)
        first = asyncio.create_task(lookups.find(asked[0]))
        await asyncio.to_thread(begun.wait, 10)
        others = [asyncio.create_task(lookups.find(each)) for each in asked[1:]]
        await asyncio.sleep(0)
        others[0].cancel()
        await asyncio.sleep(0)
        go_on.set()
        return [await first, *(await asyncio.gather(*others[1:]))]

    found = asyncio.run(run())
    assert sizes == [1, 3]
    assert [hit.id if hit.fired else None for hit, _ in found] == [0, 2, None]


def test_what_fails_fails_for_those_who_asked(prompting, monkeypatch):
    def broken(asked):
        raise ConnectionError("the store is away")

    asked = _asked(prompting, MIXED[:2])

    async def run():
        lookups = Lookups(prompting)
        with monkeypatch.context() as patched:
            patched.setattr(prompting, "insertions", broken)
            failed = await asyncio.gather(*map(lookups.find, asked), return_exceptions=True)
        return failed, await lookups.find(asked[0])

    failed, (hit, _) = asyncio.run(run())
    assert [type(error) for error in failed] == [ConnectionError, ConnectionError]
    assert hit.fired
