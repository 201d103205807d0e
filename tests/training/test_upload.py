"""`push_to_hub` and `hub_steps` of a run, against the Hub of `hub_server`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import test_hub
from tests.tiny_training import write_parts

running, hub, client = test_hub.running, test_hub.hub, test_hub.client
BROKEN_UPLOAD = {"pattern": "POST .*/preupload/", "times": 6}  # as often as one upload tries


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


def messages(hub: Any) -> list[str]:
    return hub.repositories["model", "org/recipe"].messages[1:]


def test_the_best_checkpoint_is_uploaded_on_the_way_and_at_the_end(hub, client, parts, tmp_path):
    said = client.train(parts, tmp_path / "run", hub_model_id="org/recipe", hub_private_repo=True, hub_steps=1)
    assert not said
    assert messages(hub)[0] == "Best checkpoint by step 1"  # Later ones are commits where the model is a better one.
    assert hub.repositories["model", "org/recipe"].private
    files = hub.files("org/recipe")
    assert {"training.json", "metrics.jsonl"} <= files.keys()
    assert files["model.safetensors"].content == (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert 'RecipeForCausalLM.from_pretrained("org/recipe"' in hub.text("org/recipe", "README.md")


def test_an_upload_on_the_way_that_fails_is_a_warning_with_a_checkpoint_to_resume(hub, client, parts, tmp_path):
    hub.break_connections(**BROKEN_UPLOAD)
    said = client.train(parts, tmp_path / "run", hub_model_id="org/recipe", hub_steps=2)
    ((text, step, was_saved),) = said
    assert text.startswith("The upload at step 2 failed, and training goes on: The upload to 'org/recipe' broke off")
    assert step == 2 and was_saved
    assert messages(hub) == ["Best checkpoint by step 3"]


def test_a_last_upload_that_fails_is_an_error_and_made_again_when_resumed(hub, client, parts, tmp_path):
    hub.break_connections(**BROKEN_UPLOAD)
    with pytest.raises(test_hub.ClientError, match="The training is done, but its upload failed") as caught:
        client.train(parts, tmp_path / "run", hub_model_id="org/recipe")
    assert caught.value.kinds[0] == "OSError" and not messages(hub)
    client.train(parts, tmp_path / "run", resume=True, hub_model_id="org/recipe")
    assert messages(hub) == ["Best checkpoint by step 3"]


@pytest.mark.parametrize(
    ("repo_id", "token", "reason"),
    [
        ("org/recipe", "hf_nobody", "Invalid credentials"),
        ("org/recipe", "hf_bob", "don't have the rights"),
        ("ann/public", "hf_bob", "don't have the rights"),
        ("org/a/b", "hf_ann", "Repo id must be"),
    ],
    ids=["unknown token", "another's organisation", "another's repository", "no repository id"],
)
def test_a_repository_that_cannot_be_written_to_ends_the_run_before_it_begins(
    hub, client, parts, tmp_path, repo_id, token, reason
):
    client.upload_card("---\nlicense: mit\n---\n", "ann/public")
    refused = f"(?s)hub_model_id '{repo_id}' cannot be pushed to: .*{reason}"
    with pytest.raises(test_hub.ClientError, match=refused) as caught:
        client.train(parts, tmp_path / "run", hub_model_id=repo_id, token=token)
    assert caught.value.kinds[0] == "OSError"
    assert not (tmp_path / "run").exists() and hub.repositories.keys() == {("model", "ann/public")}
