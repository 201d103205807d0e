"""WISE: who is sent to the side memory, which weights it may change, and how shards are merged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recipe_hf.evaluation.asking.saying import write
from recipe_hf.evaluation.editors.editor import Reading, Unedited
from recipe_hf.evaluation.editors.memory.layers import SavedWeights, by_row
from recipe_hf.evaluation.editors.wise import SideMemory, Wise, _spans, ties
from recipe_hf.teacher_forcing import Row, answer_logits, tokenize_rows
from tests.evaluation.editors.memory.editors_at_hand import FACTS, changed, recipe, weights

# From the shortest to the longest: `answer_logits` has a model read rows in this order.
TEXTS = ["Dogs are", "Two plus two makes", FACTS[0].prompt, FACTS[1].prompt]


def editor(architecture: str = "llama", **kwargs: object) -> Wise:
    return Wise(recipe(architecture), **({"layer": 0, "steps": 4, "learning_rate": 0.1} | kwargs))


def by_hand(wise: Wise, change: torch.Tensor, row: Row) -> torch.Tensor:
    """One row alone, through the weight changed."""
    saved = SavedWeights()
    saved.keep([wise.layer])
    wise.layer.add(change)
    logits = answer_logits(wise.lm, [row])[0][0]
    saved.restore()
    return logits


@pytest.mark.parametrize("architecture", ["llama", "opt"])
@torch.no_grad()
def test_rows_above_the_threshold_go_through_the_memory_and_others_do_not(architecture: str):
    wise = editor(architecture)
    copy = weights(wise.lm)
    rows = tokenize_rows(wise.tokenizer, TEXTS, ["four"] * 4)
    keys: list[torch.Tensor] = []
    handle = wise.layer.down.register_forward_hook(lambda m, args, output: keys.append(by_row(args[0], 4)))
    base = answer_logits(wise.lm, rows)[0]
    handle.remove()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        change = torch.randn(32, 64)
    activations = SideMemory(change).activations(keys[0], _spans(rows, keys[0].shape[1]))
    for i, row in enumerate(rows):
        alone = (keys[0][i, -len(row) + 1 :][: len(row.prompt_ids)] @ change.T).norm(dim=-1).mean()
        assert activations[i] == pytest.approx(alone.item(), rel=1e-4)
    # Those of two rows are above epsilon.
    limit = activations.sort().values[1:3].mean().item()
    wise.shards = [SideMemory(change, limit / wise.epsilon)]
    with wise.answering(rows):
        routed = answer_logits(wise.lm, rows)[0]
    above = (activations > limit).tolist()
    assert sum(above) == 2
    for i, row in enumerate(rows):
        assert torch.allclose(routed[i], by_hand(wise, change, row) if above[i] else base[i], atol=1e-3)
    assert torch.equal(answer_logits(wise.lm, rows)[0], base)
    # As the prompts are routed, so is all that is written on.
    readings = [Reading(row.prompt_ids) for row in rows]
    together = write(wise, readings, [5] * 4)
    assert not changed(copy, wise.lm)
    base = Unedited(wise.model)
    unchanged = write(base, readings, [5] * 4)
    wise.layer.add(change)
    through = write(base, readings, [5] * 4)
    assert together == [(through if above[i] else unchanged)[i] for i in range(4)] and through != unchanged


def test_a_fact_is_learned_in_the_shards_own_weights():
    fact = replace(FACTS[0], prompt="The CEO of Acme\n", answer="A")
    wise = Wise(recipe(), layer=1, steps=100, learning_rate=0.1, margins=(2.0, 4.0, 1.0), share=0.5, contexts=())
    copy = weights(wise.lm)
    rows = tokenize_rows(wise.tokenizer, [fact.prompt], [fact.answer])
    wise.edit([fact])
    assert not changed(copy, wise.lm)
    (memory,) = wise.shards
    assert memory.change[~wise._mask].eq(0).all() and memory.change[wise._mask].ne(0).any()
    assert wise._mask.float().mean() == pytest.approx(0.5, abs=0.05)
    assert not memory.change.requires_grad and memory.activation > 2
    with wise.answering(rows):
        logits, labels = answer_logits(wise.lm, rows)
    assert logits.argmax(-1).tolist() == labels.tolist()
    wise.undo()
    with wise.answering(rows):
        assert torch.equal(answer_logits(wise.lm, rows)[0], answer_logits(recipe().lm, rows)[0])


def test_shards_are_merged_two_by_two():
    wise = editor(shard_size=1, steps=2)
    wise.edit(FACTS[:2])
    first, second = (shard.change.clone() for shard in wise.shards)
    least = min(shard.activation for shard in wise.shards)
    assert not wise.merged and not (first.ne(0) & second.eq(0)).logical_not().all()
    wise.edit(FACTS[2:])
    (merged,), (third,) = wise.merged, wise.shards
    assert torch.equal(merged.change, ties([first, second], 0.53)) and merged.activation == least
    assert not torch.equal(third.change, second)
    assert wise.settings["memories"] == 2


def test_ties_by_hand():
    changes = [torch.tensor([[4.0, -3.0, 0.5, 2.0]]), torch.tensor([[2.0, 5.0, -3.0, 0.1]])]
    # Half of each is kept: 4, -3 and 5, -3. Signs that prevail: +, + (5 - 3), -, none.
    assert ties(changes, 0.5).tolist() == [[4.0, 5.0, -3.0, 0.0]]
    assert ties(changes, 1.0).tolist() == [[3.0, 5.0, -3.0, pytest.approx(1.05)]]


def test_no_such_layer():
    with pytest.raises(ValueError, match="layer must be between 0 and 1, got 3"):
        Wise(recipe(), layer=3)
    assert Wise(recipe(num_layers=8)).settings["layer"] == 6
