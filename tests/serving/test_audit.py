"""The audit: who changed which fact, when, from what to what; no change without its line."""

from __future__ import annotations

import json
import os
import stat

import pytest

from recipe_hf.serving import ServerSettings, create_app
from recipe_hf.serving.access import Principal
from recipe_hf.serving.audit import Audit, Change
from recipe_hf.serving.keys import Keys
from recipe_hf.serving.receipts import Receipt, Receipts
from tests.running_server import serving
from tests.tiny_recipe import tiny_recipe

URL = "/v1/knowledge"
WHO = Principal("key", "edit", "ours")


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def served(tmp_path):
    """A client, the model, the audit and the key's id."""
    token, key = Keys(tmp_path / "keys").add("edit", "ours")
    model = tiny_recipe()
    model.open_knowledge(tmp_path / "facts.db")
    app = create_app(ServerSettings(knowledge=str(tmp_path / "facts.db"), keys=tmp_path / "keys"), model)
    with (
        serving(app) as running,
        running.http(headers={"Authorization": f"Bearer {token}"}) as client,
    ):
        yield client, model.knowledge.namespace("ours"), tmp_path / "facts.db-audit.jsonl", key.id
    model.knowledge.close()


def test_each_change_of_a_fact_is_a_line(served):
    client, knowledge, path, key = served
    old, other = client.post(URL, json={"facts": [["Zork was", "a game"], "Dogs bark."]}).json()["ids"]
    (new,) = client.post(URL, json={"facts": [["Zork was", "a toy"]]}).json()["ids"]
    (put,) = client.put(f"{URL}/{other}", json="Dogs howl.").json()["ids"]
    client.delete(f"{URL}/{put}")
    (back,) = client.post(f"{URL}/{old}/restore").json()["ids"]
    lines = rows(path)
    assert [(line["action"], line["id"]) for line in lines] == [
        ("add", old),
        ("add", other),
        ("add", new),
        ("replace", new),
        ("add", put),
        ("replace", put),
        ("remove", put),
        ("restore", back),
        ("replace", back),
    ]
    replaced = lines[3]
    assert replaced["who"] == {"key": key, "role": "edit"} and replaced["namespace"] == "ours"
    assert replaced["before"]["statement"] == "Zork was a game" and replaced["before"]["id"] == old
    assert replaced["after"] == knowledge.find(new).to_dict() | {"id": new} or replaced["after"]["id"] == new
    assert lines[0]["change"] == lines[1]["change"] != lines[2]["change"] == lines[3]["change"]
    assert lines[0]["before"] is None and lines[6]["after"] is None
    assert all(line["at"] >= lines[0]["at"] for line in lines)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_what_changes_nothing_leaves_no_line(served):
    client, knowledge, path, _ = served
    client.post(URL, json={"facts": ["Dogs bark."]}, headers={"Idempotency-Key": "k"})
    before = path.read_text()
    client.post(URL, json={"facts": ["Dogs bark."]}, headers={"Idempotency-Key": "k"})
    client.post(URL, json={"facts": ["Dogs bark."], "on_conflict": "keep"})
    client.post(URL, json={"facts": ["Cats purr.", ""]})
    client.post(f"{URL}/preview", json={"facts": ["Cats purr."]})
    client.delete(f"{URL}/77")
    assert path.read_text() == before and len(knowledge) == 1


def test_no_change_without_its_line(served):
    client, knowledge, path, _ = served
    path.mkdir()  # It cannot be written.
    answer = client.post(URL, json={"facts": ["Dogs bark."]})
    assert answer.status_code == 503 and str(path.parent) not in answer.text
    assert len(knowledge) == 0 and not knowledge.history()
    path.rmdir()
    (id_,) = client.post(URL, json={"facts": ["Dogs bark."]}).json()["ids"]
    path.rename(path.with_suffix(".1"))  # As logrotate does.
    client.delete(f"{URL}/{id_}")
    assert [line["action"] for line in rows(path)] == ["remove"]


def test_a_change_that_fails_after_its_line_is_said_to_be_undone(served):
    client, knowledge, path, _ = served
    os.rename(path.parent / "facts.db", path.parent / "away.db")
    assert client.post(URL, json={"facts": ["Dogs bark."]}, headers={"Idempotency-Key": "k"}).status_code == 503
    assert [line["action"] for line in rows(path)] == ["add", "undone"]
    assert rows(path)[0]["change"] == rows(path)[1]["change"]
    os.rename(path.parent / "away.db", path.parent / "facts.db")
    answer = client.post(URL, json={"facts": ["Dogs bark."]}, headers={"Idempotency-Key": "k"})
    assert "idempotency-replayed" not in answer.headers  # The receipt of what was undone does not count.
    assert [fact.statement for fact in knowledge] == ["Dogs bark."]


def test_rows_are_written_all_or_none(tmp_path):
    audit = Audit(tmp_path / "audit")

    def failing():
        yield {"a": 1}
        raise ValueError("no")

    audit.write([{"first": True}])
    with pytest.raises(ValueError, match="no"):
        audit.write(failing())
    assert rows(tmp_path / "audit") == [{"first": True}]
    with pytest.raises(ValueError, match="later"), audit.record(WHO, "ours") as recording:
        recording.write([Change("add", None, None)])
        raise ValueError("later")
    assert [row["action"] for row in rows(tmp_path / "audit")[1:]] == ["add", "undone"]


def test_receipts_outlast_the_process_and_a_week(tmp_path, monkeypatch):
    path = tmp_path / "receipts"
    receipts = Receipts(path)
    with receipts.claim("ann", "k", b"request", lambda receipt: True) as claim:
        claim.write(Receipt({"ids": [1]}, "", 1, "now"))
    receipts.close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    again = Receipts(path)
    with again.claim("ann", "k", b"request", lambda receipt: receipt.id == 1) as claim:
        assert claim.earlier == Receipt({"ids": [1]}, "", 1, "now")
    for who, made in (("bo", True), ("ann", False)):  # Of another, or never made.
        with again.claim(who, "k", b"request", lambda receipt, made=made: made) as claim:
            assert claim.earlier is None
    monkeypatch.setattr("recipe_hf.serving.receipts._KEPT", -1)
    with again.claim("ann", "l", b"", lambda receipt: True) as claim:
        claim.write(Receipt({}, ""))
    with again.claim("ann", "k", b"request", lambda receipt: True) as claim:
        assert claim.earlier is None
