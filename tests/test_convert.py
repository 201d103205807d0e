"""Tests of turning a base into a directory of safetensors."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from recipe_hf import RecipeForCausalLM
from recipe_hf.convert import convert_base
from tests.real_models import SMOLLM2, SMOLLM2_GGUF, needs_real_models
from tests.test_cli import invoke
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_recipe import PROMPTS, base_tokenizer, encoder_tokenizer, tiny_base, tiny_encoder

CHAT = [{"role": "user", "content": PROMPTS[0]}]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base with a tokenizer and a generation config of its own."""
    lm = tiny_base()
    lm.generation_config.update(temperature=0.7, do_sample=True)
    lm.save_pretrained(tmp_path / "base")
    base_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(path: Path) -> tuple[PreTrainedModel, object]:
    place = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    where = path.parent if place else path
    return AutoModelForCausalLM.from_pretrained(where, **place), AutoTokenizer.from_pretrained(where, **place)


def assert_same_model(one: Path, other: Path) -> None:
    """The same logits, to the last bit, tokens, chats and ways to generate."""
    (lm, tokenizer), (lm2, tokenizer2) = load(one), load(other)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    assert torch.equal(ids, tokenizer2(PROMPTS[0], return_tensors="pt")["input_ids"])
    assert torch.equal(lm(ids).logits, lm2(ids).logits)
    assert tokenizer.special_tokens_map == tokenizer2.special_tokens_map
    chats = [t.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) for t in (tokenizer, tokenizer2)]
    assert chats[0] == chats[1] and PROMPTS[0] in chats[0]
    assert lm.generation_config.to_diff_dict() == lm2.generation_config.to_diff_dict()


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_a_gguf_file_becomes_a_directory_that_is_the_same_base(gguf, tmp_path):
    result = invoke("convert", gguf, tmp_path / "new" / "base")
    assert result.exit_code == 0 and result.stdout.startswith(f"{tmp_path}/new/base holds {gguf}, ")
    assert_same_model(gguf, tmp_path / "new" / "base")
    assert "quantization_config" not in json.loads((tmp_path / "new" / "base" / "config.json").read_text())
    with safe_open(tmp_path / "new" / "base" / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float32}  # noqa: SIM118
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"base"}


def test_a_checkpoint_takes_the_converted_base(gguf, tmp_path, caplog):
    encoder = {"encoder": tiny_encoder(), "encoder_tokenizer": encoder_tokenizer(), "knowledge_dim": 64}
    model = RecipeForCausalLM.from_base_pretrained(gguf, **encoder)
    model.save_pretrained(tmp_path / "checkpoint")
    directory = convert_base(gguf, tmp_path / "base")
    loaded = RecipeForCausalLM.from_pretrained(tmp_path / "checkpoint", base_model=directory)
    assert caplog.text == ""
    batch = model.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    greedy = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(loaded.generate(**batch, **greedy), model.generate(**batch, **greedy))


def test_a_directory_can_be_copied_in_another_precision(base, tmp_path):
    assert_same_model(base, convert_base(base, tmp_path / "same"))
    assert load(tmp_path / "same")[0].generation_config.temperature == 0.7
    result = invoke("convert", base, tmp_path / "half", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "half")[0].dtype == torch.bfloat16


def test_an_empty_directory_is_filled(base, tmp_path):
    (tmp_path / "new").mkdir()
    assert_same_model(base, convert_base(base, tmp_path / "new"))


def test_nothing_is_overwritten(base, tmp_path):
    before = files(tmp_path)
    for taken in (base, base / "config.json"):
        with pytest.raises(ValueError, match="save_directory must be an empty directory, or not there yet, got"):
            convert_base(base, taken)
    assert files(tmp_path) == before


def test_a_base_is_written_whole_or_not_at_all(base, tmp_path, monkeypatch):
    before = files(tmp_path)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(base_tokenizer()), "save_pretrained", fail)  # It comes last.
    with pytest.raises(OSError, match="No space left on device"):
        convert_base(base, tmp_path / "new")
    assert files(tmp_path) == before


def test_a_base_without_a_tokenizer_is_refused(base, tmp_path):
    for path in base.glob("token*"):
        path.unlink()
    with pytest.raises((OSError, ValueError), match=r"base_model must have a tokenizer, got '.*base'"):
        convert_base(base, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@needs_real_models
def test_the_real_base_is_its_gguf_file_and_loads_at_once():
    started = time.perf_counter()
    AutoModelForCausalLM.from_pretrained(SMOLLM2)
    assert time.perf_counter() - started < 10  # From the GGUF file it takes many times as long.
    assert_same_model(SMOLLM2_GGUF, SMOLLM2)


@pytest.mark.slow
@needs_real_models
def test_the_released_checkpoint_takes_the_real_base_without_a_warning(caplog):
    released = Path(__file__).parent.parent / "checkpoints" / "recipe-smollm2-135m"
    RecipeForCausalLM.from_pretrained(released, base_model=SMOLLM2)
    assert caplog.text == ""
