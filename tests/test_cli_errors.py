"""What the command line says of what it cannot use: one line that names it, exit code 2, and nothing is changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from recipe_hf.knowledge import KnowledgeBase
from tests.test_cli import assert_refused, invoke, lines
from tests.tiny_recipe import base_tokenizer, edited_recipe, tiny_base

QUESTION = "The CEO of Acme is"
ALIEN_TOKENIZER = '{"added_tokens": [], "model": {}}'


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint and its base, with tokenizers and facts."""
    directory = tmp_path_factory.mktemp("errors")
    tiny_base().save_pretrained(directory / "base")
    base_tokenizer().save_pretrained(directory / "base")
    edited_recipe().save_pretrained(directory / "checkpoint")
    (directory / "data.jsonl").write_text('{"prompt": "A is", "answer": "b"}\n')
    return directory


@pytest.fixture
def parts(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to be damaged, which is the working directory too."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse_to_answer(
    message: str, *, checkpoint: object = "checkpoint", base: object = "base", prompt: str = QUESTION
):
    assert_refused(invoke("ask", checkpoint, prompt, "--base-model", base), message)


@pytest.mark.parametrize("command", ["ask", "explain"])
@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_prompt(saved, command, blank):
    result = invoke(command, saved / "checkpoint", QUESTION, blank)
    assert_refused(result, f"PROMPTS must not be blank, got {blank!r}.")


def test_a_prompt_longer_than_the_base_takes(saved):
    options = ["--base-model", saved / "base"]
    message = "PROMPTS must be of at most 493 tokens, the base's 512 less those of facts and answer, got one of 600."
    assert_refused(invoke("ask", saved / "checkpoint", "x" * 600, *options), message)
    assert invoke("ask", saved / "checkpoint", "x" * 493, *options).exit_code == 0
    asked = invoke("ask", saved / "checkpoint", QUESTION, *options, "--max-new-tokens", 600)
    assert_refused(asked, "--max-new-tokens must be at most 508, got 600.")


def test_a_checkpoint_that_names_no_base(saved):
    message = "--base-model must be given"
    assert_refused(invoke("ask", saved / "checkpoint", QUESTION), message)


@pytest.mark.parametrize("named", ["", " ", "./no", "/no/such", "a/b/c", "no.gguf", "data.jsonl", "checkpoint.gguf"])
def test_a_base_that_cannot_be_one(parts, named):
    (parts / "checkpoint.gguf").mkdir()
    message = f"--base-model must be a directory or a GGUF file that exists, or a Hub id, got {named!r}."
    refuse_to_answer(message, base=named)
    assert_refused(invoke("demo", "--checkpoint", "checkpoint", "--base-model", named), message)


@pytest.mark.parametrize("named", ["models/no", "org/name", "name"])
def test_a_base_that_is_not_here_nor_within_reach(parts, named, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = invoke("ask", "checkpoint", QUESTION, "--base-model", named)
    start = "recipe-hf: --base-model must be a directory or a GGUF file that exists, or a Hub id that is there, got "
    assert_refused(result, f"{start}{named!r} (")
    assert "couldn't connect" in result.output.lower() and result.output.count(named) == 1


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def change_config(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda base: (base / "config.json").write_text("{no"), "is not a valid JSON file"),
        (lambda base: (base / "config.json").write_text("[]"), "cannot be loaded"),
        (lambda base: (base / "config.json").unlink(), "config.json"),
        (lambda base: change_config(base / "config.json", hidden_size="x"), "hidden_size"),
        (lambda base: change_config(base / "config.json", intermediate_size=48), "mismatched"),
        (lambda base: change_config(base / "config.json", model_type="no"), "`no`"),
        (lambda base: shorten(base / "model.safetensors"), "SafetensorError"),
        (lambda base: (base / "model.safetensors").write_bytes(b""), "SafetensorError"),
        (lambda base: (base / "model.safetensors").unlink(), "no file named model.safetensors"),
    ],
)
def test_a_damaged_base(parts, damage: Callable[[Path], object], said):
    damage(parts / "base")
    result = invoke("ask", "checkpoint", QUESTION, "--base-model", "base")
    told = [line for line in result.output.splitlines() if line.startswith("recipe-hf: ")]
    assert result.exit_code == 2 and told == result.output.splitlines()[-1:]  # transformers logs a report of its own.
    assert told[0].startswith("recipe-hf: --base-model='base' cannot be loaded (") and said in told[0]


@pytest.mark.parametrize("content", [b"", b"no gguf at all", b"GGUF\3\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0"])
def test_a_damaged_gguf_file(parts, content):
    (parts / "base.gguf").write_bytes(content)
    refuse_to_answer("--base-model='base.gguf' cannot be loaded (", base="base.gguf")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda ck: (ck / "config.json").write_text("{no"), "config.json is damaged: "),
        (lambda ck: (ck / "config.json").write_text("[]"), "CHECKPOINT must be a RECIPE checkpoint, got 'checkpoint'"),
        (lambda ck: change_config(ck / "config.json", model_type="llama"), "of model type 'llama'"),
        (lambda ck: (ck / "config.json").unlink(), "CHECKPOINT must be a directory with a config.json"),
        (lambda ck: shorten(ck / "model.safetensors"), "model.safetensors is damaged"),
        (lambda ck: (ck / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda ck: (ck / "checksums.json").write_text("{"), "checksums.json is damaged"),
        (lambda ck: (ck / "checksums.json").write_text("[1]"), "checksums.json is damaged"),
        (lambda ck: (ck / "tokenizer.json").write_text("{}"), "The tokenizer of 'checkpoint' cannot be loaded"),
        (lambda ck: (ck / "tokenizer.json").write_text("{no"), "The tokenizer of 'checkpoint' cannot be loaded"),
        (lambda ck: (ck / "encoder" / "tokenizer.json").write_text(ALIEN_TOKENIZER), "of 'checkpoint/encoder' cannot"),
        (lambda ck: shutil.rmtree(ck / "encoder"), "encoder is missing"),
        (lambda ck: (ck / "knowledge" / "manifest.json").write_text("{no"), "manifest.json is damaged"),
    ],
)
def test_a_damaged_checkpoint(parts, damage: Callable[[Path], object], said):
    damage(parts / "checkpoint")
    refuse_to_answer(said)


def test_a_checkpoint_whose_sizes_were_altered(parts):
    change_config(parts / "checkpoint" / "config.json", knowledge_dim=128)
    result = invoke("ask", "checkpoint", QUESTION, "--base-model", "base")
    assert result.exit_code == 2
    assert "recipe-hf: The weights in checkpoint are truncated or altered: " in result.output.splitlines()[-1]


def test_a_model_without_a_tokenizer_for_its_base(parts):
    for path in (parts / "checkpoint").glob("token*"):
        path.unlink()
    assert invoke("ask", "checkpoint", QUESTION, "--base-model", "base").exit_code == 0
    for path in (parts / "base").glob("token*"):
        path.unlink()
    result = invoke("ask", "checkpoint", QUESTION, "--base-model", "base")
    assert result.exit_code == 2 and "--base-model must have a tokenizer beside it" in result.output


def test_facts_that_a_file_does_not_hold(parts):
    (parts / "empty.jsonl").write_text("\n")
    message = "--from must be a file of at least one fact, got 'empty.jsonl', which holds none."
    assert_refused(invoke("add", "checkpoint", "--from", "empty.jsonl"), message)
    assert_refused(invoke("add", "checkpoint", "A fact.", "--from", "empty.jsonl"), message)
    assert_refused(
        invoke("add", "checkpoint"), "add needs at least one statement, --prompt with --answer, or --from FILE."
    )
    assert_refused(invoke("add", "checkpoint", ""), "facts[0].statement must be a non-empty string, got ''.")
    assert len(KnowledgeBase.load(parts / "checkpoint" / "knowledge")) == 4


def test_an_id_given_twice_is_removed_once(parts):
    assert lines(invoke("remove", "checkpoint", 0, 0)) == [
        "removed 0 The CEO of Acme is Ann Lee",
        "checkpoint now holds 3 facts.",
    ]


@pytest.mark.parametrize("command", ["evaluate", "compare", "ablate", "sweep", "efficiency", "harness"])
@pytest.mark.parametrize("path", ["", " ", "base", "no.json", "no"])
def test_data_that_cannot_be_there(parts, command, path):
    checkpoint = [] if command == "sweep" else ["checkpoint"]
    option = "--facts" if command == "harness" else "--dataset"
    validation = ["--validation", "data.jsonl"] if command == "ablate" else []
    message = f"{option} must be a file that exists, or org/name:file.json on the Hub, got {path!r}."
    assert_refused(invoke(command, *checkpoint, option, path, *validation), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "checkpoint", ""), "path must end in .jsonl or .parquet, got '.'."),
        (("push", "checkpoint", ""), "REPO_ID must be ORGANISATION/NAME"),
        (("push", "checkpoint", "a b"), "REPO_ID must be ORGANISATION/NAME"),
        (("list", "checkpoint", "--knowledge", ""), "path must be the file of a knowledge base, got the directory"),
        (("salvage", "", "new.db"), "DAMAGED must be the file of a knowledge base"),
        (("sweep", "--dataset", "data.jsonl", "--config", "base"), "--config must be a file that exists, got 'base'."),
        (("train", "--config", ""), "--config must be a file that exists, got '.'."),
        (
            ("evaluate", "checkpoint", "--dataset", "data.jsonl", "--general", ""),
            "--general must be a file that exists",
        ),
        (("convert", "", "new"), "BASE must be a directory or a GGUF file that exists, or a Hub id, got ''."),
        (("convert", "base", "checkpoint"), "DIR must be an empty directory, or not there yet, got 'checkpoint'."),
        (("convert", "base", "data.jsonl"), "DIR must be an empty directory, or not there yet, got 'data.jsonl'."),
    ],
)
def test_other_arguments_that_make_no_sense(parts, arguments, message):
    assert_refused(invoke(*arguments), message)


@pytest.mark.parametrize("arguments", [("ask", "checkpoint", "x", "--dtype", "int8"), ("list", "--no"), ("no",), ()])
def test_usage_errors_show_the_usage(parts, arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2 and "Usage: " in result.output and "Traceback" not in result.output
