"""Second moments of keys: counted right, kept by base and layer, and refused for another base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipe_hf.evaluation.editors.memory.layers import find_layers
from recipe_hf.evaluation.editors.memory.moments import KeyText, MomentStore, load_moments
from recipe_hf.evaluation.editors.memory.writing import write_texts
from tests.evaluation.editors.memory.editors_at_hand import key_text
from tests.tiny_recipe import base_tokenizer, tiny_base

TOKENIZER = base_tokenizer()


def store(text: KeyText, seed: int = 0) -> MomentStore:
    lm = tiny_base(seed=seed)
    return MomentStore(lm, TOKENIZER, find_layers(lm), text)


@torch.no_grad()
def test_they_are_the_mean_over_the_tokens_of_the_file(tmp_path: Path):
    text = key_text(tmp_path, 300)
    held = store(text)
    first, second = held.get([0, 1])
    ids = TOKENIZER(text.file.read_text())["input_ids"][:300]
    keys: list[torch.Tensor] = []
    held.layers[1].down.register_forward_hook(lambda m, args, output: keys.append(args[0][0]))
    for start in range(0, 300, 128):
        held.lm(torch.tensor([ids[start : start + 128]]))
    expected = sum(torch.outer(key, key) for part in keys for key in part) / 300
    assert torch.allclose(second.second, expected, atol=1e-4, rtol=1e-4)
    assert first.count == second.count == 300
    assert not torch.allclose(first.second, second.second)


def test_a_second_editor_counts_nothing(tmp_path: Path):
    text = key_text(tmp_path)
    counted = store(text).get([0, 1])
    again = store(text)

    def fail(*args: object) -> None:
        raise AssertionError("counted again")

    again.lm.register_forward_pre_hook(fail)
    for one, other in zip(counted, again.get([1, 0])[::-1], strict=True):
        assert torch.equal(one.second, other.second) and (one.count, one.source) == (other.count, other.source)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 and not list(tmp_path.glob("*.part"))


def test_those_of_another_base_layer_or_text_are_not_taken(tmp_path: Path):
    text = key_text(tmp_path)
    one, other = store(text), store(text, seed=1)
    one.get([0])
    assert not other.path(0).exists() and not store(KeyText(text.file, 100, directory=tmp_path)).path(0).exists()
    with pytest.raises(ValueError, match=f"Second moments must be of base {other.base}, got those of base {one.base}"):
        load_moments(one.path(0), other.base, 0)
    one.path(0).rename(other.path(0))
    with pytest.raises(ValueError, match="Second moments must be of base"):
        other.get([0])
    with pytest.raises(ValueError, match="Second moments must be of layer 1, got those of layer 0"):
        load_moments(other.path(0), one.base, 1)


def test_a_fine_tune_of_a_layer_is_another_base(tmp_path: Path):
    text = key_text(tmp_path)
    one, tuned = store(text), store(text)
    tuned.layers[1].add(torch.full_like(tuned.layers[1].weight(), 1e-3))
    assert MomentStore(tuned.lm, TOKENIZER, tuned.layers, text).base != one.base == store(text).base


def test_a_damaged_file(tmp_path: Path):
    held = store(key_text(tmp_path))
    held.path(0).write_bytes(b"{}")
    with pytest.raises(ValueError, match="must hold second moments of keys, and does not .*: delete it"):
        held.get([0])


def test_text_that_the_base_writes(tmp_path: Path):
    lm = tiny_base()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    texts = write_texts(lm, TOKENIZER, 6, 9, seed=3, top_k=0)
    assert torch.equal(torch.rand(1), expected)
    assert texts == write_texts(lm, TOKENIZER, 6, 9, seed=3, top_k=0) != write_texts(lm, TOKENIZER, 6, 9, top_k=0)
    assert [len(text) for text in texts[:2]] == [len("The") + 9, len("The") + 9] and texts[0] != texts[1]
    text = KeyText(num_tokens=200, directory=tmp_path)
    (moments,) = store(text).get([0])
    # Texts are written to their end.
    assert 200 <= moments.count < 400 and "written by the base, seed 0" in moments.source


@pytest.mark.parametrize("kwargs", [{"num_tokens": 0}, {"file": Path("nowhere.txt")}])
def test_text_that_cannot_be(kwargs: dict):
    name, value = next(iter(kwargs.items()))
    with pytest.raises((ValueError, FileNotFoundError), match=f"{name} must be .* got .*{value}"):
        KeyText(**kwargs)


def test_an_empty_file(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="file must have text, got the empty"):
        store(KeyText(tmp_path / "empty.txt", directory=tmp_path)).get([0])
