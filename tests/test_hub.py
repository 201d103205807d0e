"""Pushing and loading with the real `huggingface_hub` against the Hub of `hub_server`, set by HF_ENDPOINT.

That variable is read once, at import, so what a client does runs in a process of its own, through `client(...)`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipe_hf.cards import write_model_card
from tests import hub_client
from tests.cards.test_model_card import make_checkpoint, make_run
from tests.hub_client import ANN
from tests.hub_server import Hub
from tests.tiny_recipe import FACTS

STATEMENTS = [f"{prompt} {answer}" for prompt, answer in FACTS]


class ClientError(Exception):
    """What a client's process raised: its class and those it derives from, and its words."""

    def __init__(self, kinds: list[str], message: str) -> None:
        super().__init__(f"{kinds[0]}: {message}")
        self.kinds = kinds


class Client:
    """The functions of `hub_client`, each run in the process of `pool`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            value, error = self._pool.submit(hub_client.run, getattr(hub_client, name), args, kwargs).result()
            if error is not None:
                raise ClientError(*error)
            return value

        return call


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, ProcessPoolExecutor]]:
    with closing(Hub()) as hub, pytest.MonkeyPatch.context() as patch:
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
            patch.delenv(name, raising=False)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=hub_client.start_client) as pool:
            yield hub, pool


@pytest.fixture
def hub(running: tuple[Hub, ProcessPoolExecutor]) -> Iterator[Hub]:
    """The Hub, without repositories."""
    hub, _ = running
    hub.repositories.clear()
    hub.storage.clear()
    hub.forget()
    yield hub
    hub.mend()
    assert not hub.leaks


@pytest.fixture
def client(running: tuple[Hub, ProcessPoolExecutor]) -> Client:
    return Client(running[1])


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_model_with_facts_goes_to_the_hub_and_comes_back(hub, client, tmp_path):
    client.push_base("org/base", **ANN)
    url = client.push_model("org/recipe")
    assert url.startswith(f"{hub.endpoint}/org/recipe/commit/")
    files = hub.files("org/recipe")
    assert {"config.json", "model.safetensors", "encoder/tokenizer.json", "knowledge/knowledge.jsonl"} <= files.keys()
    assert files["model.safetensors"].is_lfs and files["knowledge/keys.safetensors"].is_lfs
    assert hub.repositories["model", "org/recipe"].messages == ["initial commit", "Upload a RECIPE checkpoint"]
    assert client.generate_as_pushed("org/recipe", cache_dir=tmp_path)


def test_a_base_takes_the_retriever_of_another_from_the_hub(hub, client, tmp_path):
    client.push_base("org/base", **ANN)
    client.push_model("org/recipe", include_knowledge=False)
    assert client.push_told_model("org/told", "org/base", "org/recipe", cache_dir=tmp_path)
    card = hub.text("org/told", "README.md")
    assert 'from_base_pretrained(base, retriever="org/told")` gives any other base the same.' in card
    assert "gets its statement in front, as hidden text" in card and "ships 4 facts" in card


def test_a_new_repository_gets_a_valid_card_of_its_own(hub, client):
    client.push_model("org/recipe", tags=["capitals"])
    card = hub.text("org/recipe", "README.md")
    data = yaml.safe_load(card.split("---")[1])
    assert data["library_name"] == "recipe_hf" and data["base_model"] == "org/base"
    assert {"recipe", "capitals"} <= set(data["tags"])
    assert 'RecipeForCausalLM.from_pretrained("org/recipe")' in card
    assert "ships 4 facts" in card and "No record of it came with this checkpoint" in card
    assert "{{" not in card and "None" not in card


def test_a_push_without_facts_deletes_those_there_and_says_so(hub, client):
    client.push_model("org/recipe")
    hub.edit("org/recipe", "notes.txt", "mine")
    client.push_model("org/recipe", include_knowledge=False)
    files = hub.files("org/recipe")
    assert not any(name.startswith("knowledge/") for name in files)
    assert "notes.txt" in files
    assert "ships" not in hub.text("org/recipe", "README.md")


def test_the_card_in_the_repository_stays_but_for_its_facts(hub, client):
    client.push_model("org/recipe")
    edited = hub.text("org/recipe", "README.md").replace("## Limits", "## Limits, by hand")
    hub.edit("org/recipe", "README.md", edited)
    client.push_model("org/recipe", facts=FACTS[:1])
    assert hub.text("org/recipe", "README.md") == edited.replace("ships 4 facts", "ships 1 fact")


def test_the_command_pushes_a_directory_with_its_card_and_leaves_it_alone(hub, client, tmp_path):
    client.save_model(tmp_path)
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\n---\n\n# Mine\n\n## Facts shipped\n\nNone.\n\n## More\n\nText.\n"
    )
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "secret").write_text("secret")
    (tmp_path / "knowledge" / "keys.safetensors.new").write_text("left by an interrupted write")
    before = snapshot(tmp_path)
    code, output = client.invoke("push", tmp_path, "org/recipe", "--revision", "draft")
    assert code == 0 and f"with 4 facts and 0 past ones: {hub.endpoint}/org/recipe/commit/" in output
    files = hub.files("org/recipe", "draft")
    assert hub.text("org/recipe", "README.md", "draft") == (
        "---\nlicense: mit\n---\n\n# Mine\n\n## Facts shipped\n\nThis repository ships 4 facts, in plain\n"
        "text in `knowledge/knowledge.jsonl`. They are as public as the repository.\n\n## More\n\nText.\n"
    )
    assert files["model.safetensors"].content == before["model.safetensors"]
    assert ".cache/secret" not in files and "knowledge/keys.safetensors.new" not in files
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"altered", "model.safetensors is damaged"),
        ("knowledge/knowledge.jsonl", b"altered", "knowledge.jsonl is damaged"),
        ("README.md", b"---\nlicense: mine\n---\n", '"license" must be one of'),
        ("config.json", b'{"model_type": "llama"}', "must be a RECIPE checkpoint"),
    ],
)
def test_what_is_not_sound_is_not_published(hub, client, tmp_path, name, content, message):
    client.save_model(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClientError, match=message) as raised:
        client.push_directory(tmp_path, "org/recipe")
    assert "ValueError" in raised.value.kinds
    assert not hub.uploads


def test_a_revision_is_pushed_to_and_loaded_apart(hub, client, tmp_path):
    client.push_model("org/recipe", facts=FACTS[:1])
    client.push_model("org/recipe", facts=FACTS[:3], revision="next")
    cache = {"cache_dir": tmp_path} | ANN
    assert client.load_statements("org/recipe", **cache) == STATEMENTS[:1]
    assert client.load_statements("org/recipe", revision="next", **cache) == STATEMENTS[:3]
    first = hub.repositories["model", "org/recipe"].refs["main"]
    client.push_model("org/recipe", facts=FACTS[:2])
    assert client.load_statements("org/recipe", revision=first, **cache) == STATEMENTS[:1]
    with pytest.raises(ClientError, match="Revision Not Found"):
        client.load_statements("org/recipe", revision="none", **cache)


def test_a_pull_request_leaves_the_branch_alone(hub, client, tmp_path):
    client.push_model("org/recipe", facts=FACTS[:1])
    client.save_model(tmp_path / "saved", push_to_hub=True, repo_id="org/recipe", create_pr=True)
    loads = {"cache_dir": tmp_path} | ANN
    assert client.load_statements("org/recipe", **loads) == STATEMENTS[:1]
    assert client.load_statements("org/recipe", revision="refs/pr/1", **loads) == STATEMENTS


@pytest.mark.parametrize("push,load", [("push_model", "load_statements"), ("push_facts", "load_facts")])
def test_a_private_repository_opens_to_its_token_only(hub, client, tmp_path, push, load):
    getattr(client, push)("org/secret", private=True)
    for token, message in ((False, "401"), ("hf_bob", "404"), ("hf_wrong", "Invalid credentials")):
        with pytest.raises(ClientError, match=message) as raised:
            getattr(client, load)("org/secret", token=token, cache_dir=tmp_path)
        assert {"HfHubHTTPError", "OSError"} <= set(raised.value.kinds)
        assert token == "hf_wrong" or "RepositoryNotFoundError" in raised.value.kinds
        with pytest.raises(ClientError) as raised:
            getattr(client, push)("org/secret", token=token)
        assert {"HfHubHTTPError", "OSError"} <= set(raised.value.kinds)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert getattr(client, load)("org/secret", cache_dir=tmp_path, **ANN)


def test_what_is_neither_directory_nor_repository_is_named(client, hub):
    with pytest.raises(ClientError, match="(?s)Repository Not Found for url.*Nor is there a directory 'my-chekpoint'"):
        client.load_statements("my-chekpoint", **ANN)


def test_a_push_uploads_only_what_changed(hub, client):
    client.push_model("org/recipe")
    hub.forget()
    client.push_model("org/recipe", commit_message="Again")
    assert not hub.uploads
    client.push_model("org/recipe", facts=FACTS[:3], commit_message="Fewer facts")
    keys = hub.files("org/recipe")["knowledge/keys.safetensors"]
    changed = {"knowledge/knowledge.jsonl", "knowledge/manifest.json", "README.md"}
    assert hub.uploads.keys() == changed | {keys.sha256}


def test_facts_alone_go_up_as_a_dataset_and_come_back(hub, client, tmp_path):
    url = client.push_facts("org/facts", 4, remove=3)
    assert url.startswith(f"{hub.endpoint}/datasets/org/facts/commit/")
    where = ("main", "dataset")
    card = hub.text("org/facts", "README.md", *where)
    data = yaml.safe_load(card.split("---")[1])
    (config,) = data["configs"]
    (part,) = config["data_files"]
    rows = [json.loads(line) for line in hub.text("org/facts", part["path"], *where).splitlines()]
    columns = ["id", "statement", "prompt", "answer", "metadata"]
    assert [feature["name"] for feature in data["dataset_info"]["features"]] == columns
    assert all(list(row) == columns for row in rows)
    assert [row["statement"] for row in rows] == ["Grass is green.", "The sky is blü", "Snow is white."]
    assert (rows[1]["id"], rows[1]["prompt"], rows[1]["answer"]) == (1, "The sky is", "blü")
    assert [json.loads(row["metadata"]) for row in rows] == [{"source": "a look", "sure": True}, {"source": 3}, {}]

    loaded = client.load_facts("org/facts", cache_dir=tmp_path)
    assert [fact["statement"] for fact in loaded["facts"]] == [row["statement"] for row in rows]
    assert loaded["facts"][1]["metadata"] == {"source": 3} and loaded["past"] == ["Coal is black."]
    assert loaded["keys"][2] == [0, 0, 1, 0, 0, 0, 0, 0] and loaded["fingerprint"] == "weights"


def test_the_datasets_library_reads_the_facts(hub, client, tmp_path):
    pytest.importorskip("datasets")
    client.push_facts("org/facts")
    rows = client.read_dataset("org/facts", str(tmp_path))
    assert [row["prompt"] for row in rows] == [None, "The sky is", None]


def test_a_push_of_facts_uploads_only_what_changed_and_keeps_the_card(hub, client, tmp_path):
    client.push_facts("org/facts")
    card = hub.text("org/facts", "README.md", "main", "dataset")
    hub.edit("org/facts", "README.md", card.replace("tags:", "license: mit\ntags:"), "dataset")
    hub.forget()
    client.push_facts("org/facts")
    assert not hub.uploads
    client.push_facts("org/facts", 4, revision="more")
    keys = hub.files("org/facts", "more", "dataset")["knowledge/keys.safetensors"]
    changed = {"facts.jsonl", "knowledge/knowledge.jsonl", "knowledge/manifest.json"}
    assert hub.uploads.keys() == changed | {keys.sha256}
    cache = {"cache_dir": tmp_path}
    assert len(client.load_facts("org/facts", **cache)["facts"]) == 3
    assert len(client.load_facts("org/facts", revision="more", **cache)["facts"]) == 4


def test_a_model_takes_over_the_facts_of_another(hub, client):
    client.push_model("org/recipe")
    assert client.take_over_facts("org/recipe") == [0, None, 2, None]


def test_a_download_that_breaks_is_told_and_goes_on_where_it_broke(hub, client, tmp_path):
    client.push_model("org/recipe")
    weights = hub.files("org/recipe")["model.safetensors"].sha256
    hub.break_connections(f"GET /storage/{weights}", times=100)
    with pytest.raises(ClientError, match="The download of 'org/recipe' broke off .*try again") as raised:
        client.load_statements("org/recipe", cache_dir=tmp_path)
    assert "ConnectionError" in raised.value.kinds
    kept = {path.name for path in tmp_path.glob("*/blobs/*")}
    assert not any(name.endswith(".incomplete") or weights in name for name in kept)
    with pytest.raises(ClientError, match="incomplete"):
        client.load_statements("org/recipe", cache_dir=tmp_path, local_files_only=True)

    hub.mend()
    hub.forget()
    assert client.load_statements("org/recipe", cache_dir=tmp_path) == STATEMENTS
    etags = {name: file.etag for name, file in hub.files("org/recipe").items()}
    names = [
        request.rsplit("/", 1)[1] if "/storage/" in request else request.split("/", 5)[5]
        for request in hub.requests
        if request.startswith(("GET /org/", "GET /storage/"))
    ]
    fetched = {etags.get(name, name) for name in names}
    assert weights in fetched and not fetched & kept
    assert client.load_statements("org/recipe", cache_dir=tmp_path, local_files_only=True) == STATEMENTS


def test_one_broken_connection_is_not_noticed(hub, client, tmp_path):
    hub.break_connections("PUT /storage/", times=1)
    client.push_model("org/recipe")
    hub.break_connections("GET /storage/", times=1)
    assert client.load_statements("org/recipe", cache_dir=tmp_path) == STATEMENTS


@pytest.mark.parametrize(
    "request_", ["PUT /storage/", "POST .*/preupload/", "POST .*/objects/batch", "POST .*/create"]
)
@pytest.mark.parametrize("push", ["push_model", "push_facts"])
def test_an_upload_that_breaks_commits_nothing_and_can_be_tried_again(hub, client, push, request_):
    repo_type = "model" if push == "push_model" else "dataset"
    getattr(client, push)("org/recipe", revision="first")
    before = dict(hub.repositories[repo_type, "org/recipe"].refs)
    hub.storage.clear()
    hub.break_connections(request_, times=100)
    with pytest.raises(ClientError, match="The upload to 'org/recipe' broke off .*try again") as raised:
        getattr(client, push)("org/recipe")
    assert "ConnectionError" in raised.value.kinds
    assert hub.repositories[repo_type, "org/recipe"].refs == before
    hub.mend()
    getattr(client, push)("org/recipe")
    assert hub.files("org/recipe", "main", repo_type) == hub.files("org/recipe", "first", repo_type)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, client):
    hub.break_connections("POST .*/commit/", times=1)
    with pytest.raises(ClientError, match="made whole or not at all: try again"):
        client.push_model("org/recipe")
    client.push_model("org/recipe")
    assert hub.repositories["model", "org/recipe"].messages == ["initial commit", "Upload a RECIPE checkpoint"]


def test_the_card_of_a_training_run_is_valid_for_the_hub(hub, client, tmp_path):
    card = str(write_model_card(make_checkpoint(tmp_path), make_run(datasets=["org/data"])))
    client.upload_card(card)
    assert hub.text("org/card", "README.md") == card
    for valid, broken, message in (
        ("base_model: HuggingFaceTB/", "base_model: /data/", '"base_model" with value "/data/SmolLM2'),
        ("    metrics:", "    figures:", '"model-index" metrics must have type and value'),
        ("base_model_relation: adapter", "base_model_relation: beside", '"base_model_relation" must be one of'),
    ):
        assert valid in card
        with pytest.raises(ClientError, match=message) as raised:
            client.upload_card(card.replace(valid, broken))
        assert "ValueError" in raised.value.kinds
