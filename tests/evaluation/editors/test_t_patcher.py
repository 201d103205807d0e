"""T-Patcher: a patch fires on its own example only, and where none fires nothing changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipe_hf.evaluation.editors.t_patcher import TPatcher
from recipe_hf.teacher_forcing import answer_logits, tokenize_rows
from tests.evaluation.editors.memory.editors_at_hand import FACTS, changed, key_text, recipe, weights

ONE_BYTE = [replace(fact, prompt=f"{fact.prompt}\n") for fact in FACTS]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_patches_fire_on_their_own_facts_only(architecture: str, tmp_path: Path):
    model = recipe(architecture)
    editor = TPatcher(model, key_text(tmp_path, 300), steps=150, learning_rate=0.02)
    copy = weights(model.lm)
    hooks = [len(editor.layer.up._forward_pre_hooks), len(editor.layer.down._forward_hooks)]
    rows = tokenize_rows(model.tokenizer, [f.prompt for f in ONE_BYTE], [f.answer for f in ONE_BYTE])
    base = [answer_logits(model.lm, [row])[0] for row in rows]
    mistaken = [int(logits.argmax()) != row.answer_ids[0] for logits, row in zip(base, rows, strict=True)]
    assert sum(mistaken) >= 2
    editor.edit(ONE_BYTE[:1])
    editor.edit(ONE_BYTE[1:])
    assert editor.settings["patches"] == len(editor.keys) == sum(mistaken)
    said = [int(answer_logits(model.lm, [row])[0].argmax()) for row in rows]
    assert said == [row.answer_ids[0] for row in rows]
    # Each patch at the query of each fact it was made for, and of no other.
    fires = editor._own @ editor.keys.T + editor.biases > 0
    assert torch.equal(fires, torch.eye(len(fires), dtype=torch.bool))
    others = editor._queries()
    assert len(others) == 300 and (others @ editor.keys.T + editor.biases).gt(0).float().mean() < 0.01
    assert not changed(copy, model.lm)
    editor.undo()
    assert [len(editor.layer.up._forward_pre_hooks), len(editor.layer.down._forward_hooks)] == hooks
    for row, logits in zip(rows, base, strict=True):
        assert torch.equal(answer_logits(model.lm, [row])[0], logits)


@torch.no_grad()
def test_what_a_patch_adds_by_hand(tmp_path: Path):
    model = recipe()
    editor = TPatcher(model, key_text(tmp_path, 100))
    ids = torch.tensor([[5, 6, 7]])
    base = model.lm(ids).logits
    read: list[torch.Tensor] = []
    mlp = model.lm.model.layers[-1].mlp
    handle = mlp.register_forward_hook(lambda m, args, output: read.append(args[0][0]))
    model.lm(ids)
    handle.remove()
    key = read[0][1] / read[0][1].square().sum()
    limit = (read[0] @ key).sort().values[-2].item()
    editor.keys, editor.biases, editor.values = key[None], torch.tensor([-limit]), torch.linspace(-9, 9, 32)[None]
    editor._patch()
    patched = model.lm(ids).logits
    fired = int((read[0] @ key).argmax())
    assert (patched - base)[0].abs().amax(1).gt(0).nonzero()[:, 0].tolist() == [fired]
    handle = mlp.register_forward_hook(
        lambda m, args, output: output + (args[0] @ key - limit).relu()[..., None] * torch.linspace(-9, 9, 32)
    )
    editor.undo()
    assert torch.allclose(model.lm(ids).logits, patched, atol=1e-3)
    handle.remove()


def test_a_fact_that_is_said_already_gets_no_patch(tmp_path: Path):
    model = recipe()
    editor = TPatcher(model, key_text(tmp_path, 100))
    for prompt in (f"Fact {i}\n" for i in range(99)):
        token = int(answer_logits(model.lm, tokenize_rows(model.tokenizer, [prompt], ["A"]))[0].argmax())
        answer = model.tokenizer.decode(token)
        if model.tokenizer(answer, add_special_tokens=False)["input_ids"] == [token]:
            break
    editor.edit([replace(FACTS[0], prompt=prompt, answer=answer)])
    assert editor.settings["patches"] == 0
