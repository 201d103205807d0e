"""Retrievers and prompts apart on the Hub: against a Hub of our own, over a real socket."""

from __future__ import annotations

import json

import pytest

from tests.hub_client import ANN
from tests.test_hub import STATEMENTS, ClientError, client, hub, running, snapshot

__all__ = ["client", "hub", "running"]


def test_prompts_on_the_hub_bring_their_retriever(hub, client, tmp_path):
    client.push_base("org/base", **ANN)
    client.push_parts()
    retriever, prompts = hub.files("org/retriever"), hub.files("org/prompts")
    assert (
        "encoder/tokenizer.json" in retriever
        and not {"tokenizer.json", "knowledge/knowledge.jsonl"} & retriever.keys()
    )
    assert "knowledge/knowledge.jsonl" in prompts and "encoder/tokenizer.json" not in prompts
    assert len(prompts["model.safetensors"].content) < len(retriever["model.safetensors"].content)
    assert client.generate_as_pushed("org/prompts", cache_dir=tmp_path)
    card = hub.text("org/prompts", "README.md")
    assert (
        "holds the prompt encoder (`model.safetensors`), not the retriever, which is loaded from\n`org/retriever`"
        in card
    )
    assert "# RECIPE retriever\n" in hub.text("org/retriever", "README.md")


def test_a_retriever_that_moved_on_is_refused_but_at_its_commit(hub, client, tmp_path):
    client.push_base("org/base", **ANN)
    commit = client.push_parts()
    client.push_other_retriever()
    with pytest.raises(
        ClientError, match="'org/retriever' with weights of SHA-256 .*, whose weights are others"
    ) as raised:
        client.load_statements("org/prompts", cache_dir=tmp_path)
    assert "ValueError" in raised.value.kinds
    assert client.load_statements("org/prompts", cache_dir=tmp_path, retriever_revision=commit) == STATEMENTS
    client.push_parts(retriever_revision=client.push_parts())
    client.push_other_retriever()
    assert client.generate_as_pushed("org/prompts", cache_dir=tmp_path)


def test_a_retriever_taken_from_the_hub_is_recorded_with_its_commit(hub, client, tmp_path):
    commit = client.push_parts()
    name, revision, fingerprint = client.take_retriever("org/retriever", cache_dir=tmp_path)
    assert (name, revision) == ("org/retriever", commit)
    assert fingerprint == json.loads(hub.text("org/prompts", "config.json"))["retriever_fingerprint"]


def test_a_copy_on_this_machine_serves_where_there_is_none_on_the_hub(hub, client, tmp_path):
    client.push_parts()
    client.save_parts(tmp_path)
    del hub.repositories["model", "org/retriever"]
    with pytest.raises(ClientError, match="retriever_name_or_path='org/retriever', could not be loaded") as raised:
        client.load_statements("org/prompts", cache_dir=tmp_path / "cache")
    assert "OSError" in raised.value.kinds
    local = {"cache_dir": tmp_path / "cache", "retriever": tmp_path / "retriever"}
    assert client.load_statements("org/prompts", **local) == STATEMENTS


def test_prompts_that_name_a_directory_go_up_with_a_name_of_the_hub(hub, client, tmp_path):
    client.push_base("org/base", **ANN)
    client.push_parts()
    client.save_parts(tmp_path)
    before = snapshot(tmp_path)
    hub.forget()
    for options in ({}, {"retriever": str(tmp_path / "retriever")}):
        with pytest.raises(ClientError, match="retriever must be a Hub id for a checkpoint"):
            client.push_directory(tmp_path / "prompts", "org/again", **options)
    with pytest.raises(ClientError, match="retriever must be None for a checkpoint that has its own"):
        client.push_directory(tmp_path / "retriever", "org/again", retriever="org/retriever")
    for part in ("retriever", "prompts"):
        with pytest.raises(ClientError, match="retriever_revision must be None without a retriever, got 'v1'"):
            client.push_directory(tmp_path / part, "org/again", retriever_revision="v1")
    assert not hub.uploads and ("model", "org/again") not in hub.repositories
    code, output = client.invoke("push", tmp_path / "prompts", "org/again", "--retriever", "org/retriever")
    assert code == 0, output
    assert client.generate_as_pushed("org/again", cache_dir=tmp_path / "cache")
    assert snapshot(tmp_path).items() >= before.items()


def test_both_parts_may_be_folders_of_one_repository(hub, client, tmp_path):
    client.push_base("org/base", **ANN)
    client.save_parts(tmp_path / "both")
    client.upload_folder(tmp_path / "both", "org/both")
    assert client.generate_as_pushed("org/both", subfolder="prompts", cache_dir=tmp_path / "cache")


def test_a_whole_checkpoint_gives_way_to_a_part(hub, client, tmp_path):
    client.push_base("org/base", **ANN)
    for name in ("org/prompts", "org/retriever"):
        client.push_model(name)
        hub.edit(name, "notes.txt", "mine")
    client.push_parts()
    prompts, retriever = hub.files("org/prompts"), hub.files("org/retriever")
    assert "encoder/tokenizer.json" not in prompts and "tokenizer.json" not in retriever
    assert "notes.txt" in prompts and "notes.txt" in retriever
    assert client.generate_as_pushed("org/prompts", cache_dir=tmp_path)
