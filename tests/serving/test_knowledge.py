"""Facts over HTTP, on a tiny model and a real socket: what Python's interface does, and what only a server must do."""

from __future__ import annotations

import json
import threading

import pytest

from recipe_hf.serving import ServerSettings, create_app
from recipe_hf.serving.preview import _trying
from tests.running_server import serving
from tests.tiny_recipe import FACTS, PROMPTS, tiny_recipe, verified_recipe

URL = "/v1/knowledge"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = tiny_recipe()
    model.open_knowledge(tmp_path_factory.mktemp("facts") / "facts.db")
    return model


@pytest.fixture(scope="module")
def client(model):
    settings = ServerSettings(knowledge=str(model.knowledge._store.path), max_import_bytes=2**20, rate=None)
    with serving(create_app(settings, model)) as running, running.http() as client:
        yield client


@pytest.fixture(autouse=True)
def empty(model):
    """Each test begins without facts; ids go on."""
    model.knowledge.clear()


def add(client, *facts, **options):
    answer = client.post(URL, json={"facts": facts or FACTS, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def problem(answer, status):
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["status"] == status
    return answer.json()["detail"]


# ---------------------------------------------------------------------- adding


def test_what_is_added_is_used_by_the_next_request(client, model):
    (id_,) = add(client, ["The CEO of Acme is", "Ann Lee"])["ids"]
    assert model.retrieve(PROMPTS[0])[0].id == id_
    fact = client.get(f"{URL}/{id_}").json()
    assert {name: fact[name] for name in ("statement", "prompt", "answer", "metadata", "valid_from")} == {
        "statement": "The CEO of Acme is Ann Lee",
        "prompt": "The CEO of Acme is",
        "answer": "Ann Lee",
        "metadata": {},
        "valid_from": None,
    }


def test_all_forms_of_a_fact_are_taken(client):
    told = {"prompt": "A", "answer": "b", "metadata": {"n": 1}, "valid_from": "2020-01-01"}
    ids = add(client, "Dogs bark.", ["Zork was", "a game"], told)["ids"]
    facts = client.get(URL).json()["facts"]
    assert [fact["id"] for fact in facts] == ids
    assert [fact["statement"] for fact in facts] == ["Dogs bark.", "Zork was a game", "A b"]
    assert (facts[2]["metadata"], facts[2]["valid_from"][:10]) == ({"n": 1}, "2020-01-01")


@pytest.mark.parametrize(
    "facts", [[], [3], ["ok", ""], [{"prompt": "A"}], [{"statement": "A", "more": 1}], ["x" * 500], [["a", "b", "c"]]]
)
def test_errors_are_those_of_python_and_nothing_is_added(client, model, facts):
    before = len(model.knowledge)
    answer = client.post(URL, json={"facts": facts})
    detail = problem(answer, 422)
    with pytest.raises(ValueError) as error:
        model.add_knowledge(facts)
    assert detail == str(error.value) or facts == []
    assert len(model.knowledge) == before


def test_what_is_too_large_is_refused(client):
    assert "prompt must be of at most 8192" in problem(
        client.post(URL, json={"facts": [{"statement": "a", "prompt": "x" * 9000, "answer": "b"}]}), 422
    )
    assert "metadata must be of at most" in problem(
        client.post(URL, json={"facts": [{"statement": "a", "metadata": {"x": "y" * 20000}}]}), 422
    )
    problem(client.post(URL, json={"facts": ["a"] * 1001}), 422)


def test_metadata_too_deep_to_be_answered_are_refused(client, model):
    def nested(levels):
        metadata = json.loads('{"a":' * levels + "1" + "}" * levels)
        return {"statement": "Dogs bark.", "metadata": metadata}

    for url in (URL, f"{URL}/preview"):
        answer = client.post(url, json={"facts": [nested(300)]})
        assert problem(answer, 422) == "facts[0].metadata must be nested at most 32 levels deep, got more."
    line = json.dumps(nested(300))
    assert "line 1.metadata" in problem(client.post(f"{URL}/import", content=line, headers=LINES), 422)
    assert len(model.knowledge) == 0
    add(client, nested(31))
    assert client.get(URL).json()["facts"][0]["metadata"] == nested(31)["metadata"]


def test_on_conflict_is_that_of_python_and_what_left_is_named(client):
    (old,) = add(client, ["Zork was", "a game"])["ids"]
    assert add(client, ["Zork was", "a toy"], on_conflict="keep") == {"ids": [old], "superseded": [], "reported": []}
    detail = problem(client.post(URL, json={"facts": ["Dogs bark.", ["Zork was", "x"]], "on_conflict": "error"}), 422)
    assert detail.startswith("facts[1] must have a new prompt under on_conflict='error'")
    made = add(client, ["Zork was", "a cat"], ["Zork was", "a dog"])
    first, second = made["ids"]
    assert made["superseded"] == [
        {"id": old, "statement": "Zork was a game", "replaced_by": first},
        {"id": first, "statement": "Zork was a cat", "replaced_by": second},
    ]
    assert "needs a checkpoint with a verifier" in problem(
        client.post(URL, json={"facts": ["a"], "on_conflict": "supersede"}), 422
    )
    problem(client.post(URL, json={"facts": ["a"], "on_conflict": "burn"}), 422)


def test_superseding_and_reporting_name_what_they_found(tmp_path):
    model = verified_recipe()
    model.config.supersede_threshold = -1e3  # The verifier affirms every pair.
    with serving(create_app(ServerSettings(), model)) as running, running.http() as client:
        made = add(client, "Dogs bark.", on_conflict="report")
        assert {(each["id"], each["by"]) for each in made["reported"]} == {(id_, 4) for id_ in range(4)}
        assert made["superseded"] == [] and len(model.knowledge) == 5
        seen = client.post(f"{URL}/preview", json={"facts": ["Cats purr."], "on_conflict": "supersede"}).json()
        assert {each["id"] for each in seen["facts"][0]["supersedes"]} == set(range(5))
        made = add(client, "Cats purr.", "Dogs howl.", on_conflict="supersede")
        assert {(each["id"], each["replaced_by"]) for each in made["superseded"]} == {
            *((id_, 5) for id_ in range(5)),
            (5, 6),
        }
        answer = client.post(
            f"{URL}/import?on_conflict=supersede",
            content='"Fish swim."\n"Birds fly."\n',
            headers={"Content-Type": "application/x-ndjson"},
        ).json()
        assert [each["id"] for each in answer["superseded"]] == [6, 7]


# ---------------------------------------------------------------------- the same request again


def test_the_same_request_again_is_answered_again_and_not_carried_out(client, model):
    def send(facts, key="one"):
        return client.post(URL, json={"facts": facts}, headers={"Idempotency-Key": key})

    first, again = send(["Dogs bark."]), send(["Dogs bark."])
    assert first.json() == again.json() and len(model.knowledge) == 1
    assert "idempotency-replayed" not in first.headers and again.headers["idempotency-replayed"] == "true"
    assert send(["Dogs bark."], "two").json()["ids"] != first.json()["ids"]
    assert "Idempotency-Key must be a new one for another request" in problem(send(["Cats purr."]), 422)
    id_ = model.knowledge.history()[-1].id
    url, headers = f"{URL}/{id_}/restore", {"Idempotency-Key": "three"}
    assert client.post(url, headers=headers).json() == client.post(url, headers=headers).json()


def test_an_idempotency_key_is_of_one_namespace(client, model):
    def send(namespace):
        headers, params = {"Idempotency-Key": "of one"}, {"namespace": namespace}
        return client.post(URL, json={"facts": ["Dogs bark."]}, headers=headers, params=params)

    first, elsewhere, again = send("here"), send("there"), send("here")
    assert "Idempotency-Key must be a new one for another request" in problem(elsewhere, 422)
    assert again.headers["idempotency-replayed"] == "true" and again.json() == first.json()
    assert len(model.knowledge.namespace("here")) == 1 and len(model.knowledge.namespace("there")) == 0


def test_a_request_that_failed_may_be_sent_again(client):
    headers = {"Idempotency-Key": "failing"}
    problem(client.post(URL, json={"facts": [""]}, headers=headers), 422)
    assert client.post(URL, json={"facts": ["Dogs bark."]}, headers=headers).status_code == 200


def test_the_same_request_at_the_same_time_is_carried_out_once(client, model):
    answers = []

    def send():
        headers = {"Idempotency-Key": "at once"}
        answers.append(client.post(URL, json={"facts": [f"Fact {n}." for n in range(40)]}, headers=headers))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {200, 409} and len(model.knowledge) == 40
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 409)
    assert len({json.dumps(answer.json()["ids"]) for answer in answers if answer.status_code == 200}) == 1


# ---------------------------------------------------------------------- reading


def test_pages_follow_one_another_by_a_cursor(client, model):
    ids = add(client, *(f"Fact {n}." for n in range(7)))["ids"]
    seen, after = [], None
    while True:
        page = client.get(URL, params={"limit": 3} | ({} if after is None else {"after": after})).json()
        seen += [fact["id"] for fact in page["facts"]]
        assert page["total"] == len(model.knowledge)
        if (after := page["next"]) is None:
            break
        if len(seen) == 3:  # What comes and goes meanwhile neither repeats nor hides another.
            client.delete(f"{URL}/{ids[0]}")
            add(client, "Later.")
    assert seen[:7] == ids and len(seen) == 8
    page = client.get(URL, params={"limit": 2, "newest": True}).json()
    assert [fact["id"] for fact in page["facts"]] == seen[:-3:-1]
    page = client.get(URL, params={"newest": True, "after": page["next"]}).json()
    assert [fact["id"] for fact in page["facts"]] == seen[-3:0:-1]


def test_pages_may_be_of_facts_with_a_text(client):
    add(client, "Dogs bark.", "Cats purr.", {"statement": "Fish swim.", "metadata": {"by": "Dogberry"}})
    found = client.get(URL, params={"q": "DOG"}).json()
    assert [fact["statement"] for fact in found["facts"]] == ["Dogs bark.", "Fish swim."]


def test_history_is_newest_first_and_in_pages(client, model):
    ids = add(client, "One.", "Two.", "Three.")["ids"]
    for id_ in ids:
        assert client.delete(f"{URL}/{id_}").status_code == 204
    page = client.get(f"{URL}/history", params={"limit": 2}).json()
    assert [fact["id"] for fact in page["facts"]] == [ids[2], ids[1]]
    assert page["facts"][0]["reason"] == "removed" and page["total"] == len(model.knowledge.history())
    rest = client.get(f"{URL}/history", params={"after": page["next"], "limit": 1}).json()
    assert rest["facts"][0]["id"] == ids[0]
    of_prompt = client.get(f"{URL}/history", params={"prompt": "Two."}).json()["facts"]
    assert {fact["statement"] for fact in of_prompt} == {"Two."}


def test_search_and_explain(client):
    ids = add(client)["ids"]
    found = client.post(f"{URL}/search", json={"query": PROMPTS[2], "k": 2}).json()["facts"]
    assert len(found) == 2 and found[0]["fact"]["id"] == ids[2] and found[0]["score"] > found[1]["score"]
    assert client.post(f"{URL}/search", json={"query": "x", "where": {"source": "y"}}).json() == {"facts": []}
    explained = client.post(f"{URL}/explain", json={"query": PROMPTS[2], "k": 3}).json()
    assert [each["reason"] for each in explained["candidates"]].count("used") == 1
    assert explained["candidates"][0]["fired"] and len(explained["candidates"]) == 3
    assert client.post(f"{URL}/explain", json={"query": ""}).json()["note"]


# ---------------------------------------------------------------------- changing


def test_replacing_takes_the_place_of_one_version(client):
    (old,) = add(client, ["Zork was", "a game"])["ids"]
    made = client.put(f"{URL}/{old}", json={"prompt": "Zork is", "answer": "a game"}).json()
    assert made["fact"]["statement"] == "Zork is a game" and made["superseded"][0]["id"] == old
    new = made["ids"][0]
    assert problem(client.put(f"{URL}/{old}", json="Lost update."), 409) == (
        f"Fact {old} was replaced by fact {new} meanwhile."
    )
    assert client.delete(f"{URL}/{new}").status_code == 204
    assert problem(client.put(f"{URL}/{new}", json="x"), 409) == f"Fact {new} was removed meanwhile."
    problem(client.put(f"{URL}/{new + 1}", json="x"), 404)


def test_removing_and_restoring(client, model):
    (id_,) = add(client, ["Zork was", "a game"])["ids"]
    client.delete(f"{URL}/{id_}")
    assert model.retrieve("Zork was")[0].id is None
    with pytest.raises(KeyError) as error:
        model.knowledge.remove(id_)
    for method in ("GET", "DELETE"):
        assert problem(client.request(method, f"{URL}/{id_}"), 404) == error.value.args[0]
    (instead,) = add(client, ["Zork was", "a toy"])["ids"]
    made = client.post(f"{URL}/{id_}/restore").json()
    assert [each["id"] for each in made["superseded"]] == [instead]
    assert client.get(f"{URL}/{made['ids'][0]}").json()["statement"] == "Zork was a game"
    problem(client.post(f"{URL}/{made['ids'][0]}/restore"), 404)


# ---------------------------------------------------------------------- preview


def test_a_preview_tells_what_would_be_and_keeps_nothing(client, model):
    add(client, FACTS[1], ["The CEO of Acme is", "Bo Roe"])
    before, history = list(model.knowledge), model.knowledge.history()
    given = {"facts": [["The CEO of Acme is", "Ann Lee"]], "questions": [PROMPTS[0], PROMPTS[1]], "max_tokens": 4}
    seen = client.post(f"{URL}/preview", json=given).json()
    assert [each["statement"] for each in seen["facts"][0]["replaces"]] == ["The CEO of Acme is Bo Roe"]
    assert seen["facts"][0]["supersedes"] is None
    changed, same = seen["questions"]
    assert changed["after"]["fact"] == {"id": None, "statement": "The CEO of Acme is Ann Lee"}
    assert changed["after"]["fired"] and changed["before"]["fact"]["id"] == before[1].id
    assert same["before"] == same["after"] and same["after"]["fired"] and same["after"]["fact"]["id"] == before[0].id
    assert list(model.knowledge) == before and model.knowledge.history() == history
    add(client, ["The CEO of Acme is", "Ann Lee"])
    given |= {"facts": ["Dogs bark."]}
    assert (
        client.post(f"{URL}/preview", json=given).json()["questions"][0]["before"]["answer"]
        == (changed["after"]["answer"])
    )


def test_a_preview_may_be_of_a_fact_put_in_the_place_of_another(client, model):
    (old,) = add(client, ["The CEO of Acme is", "Ann Lee"])["ids"]
    given = {"facts": [FACTS[1]], "questions": [PROMPTS[0], PROMPTS[1]], "in_place_of": old, "max_tokens": 1}
    first, second = client.post(f"{URL}/preview", json=given).json()["questions"]
    assert first["before"]["fired"] and not first["after"]["fired"]
    assert second["after"]["fired"] and second["after"]["fact"]["id"] is None
    assert list(model.knowledge.ids()) == [old]
    problem(client.post(f"{URL}/preview", json=given | {"in_place_of": old + 1}), 404)


def test_previews_are_refused_where_too_many_wait_and_the_server_answers_others(client):
    given = {"facts": ["Dogs bark."], "questions": ["Do dogs bark?"]}
    taken = [_trying.acquire(blocking=False) for _ in range(100)].count(True)
    try:
        answer = client.post(f"{URL}/preview", json=given)
        assert problem(answer, 429) and answer.headers["retry-after"]
    finally:
        _trying.release(taken)
    assert client.post(f"{URL}/preview", json=given).status_code == 200


def test_a_preview_is_refused_as_adding_would_be(client):
    add(client, ["Zork was", "a game"])
    refused = {"facts": [["Zork was", "a toy"]], "on_conflict": "error"}
    assert "must have a new prompt" in problem(client.post(f"{URL}/preview", json=refused), 422)
    problem(client.post(f"{URL}/preview", json={"facts": ["a"], "on_conflict": "supersede"}), 422)


# ---------------------------------------------------------------------- files

LINES = {"Content-Type": "application/x-ndjson"}


def test_what_is_exported_can_be_imported(client, model, tmp_path):
    add(client, *FACTS, {"statement": "Naïve café.", "metadata": {"a": [1, None]}, "valid_until": "2999-01-01"})
    lines = client.get(f"{URL}/export").text
    model.knowledge.export(tmp_path / "facts.jsonl")
    assert lines == (tmp_path / "facts.jsonl").read_text("utf-8")
    facts = [fact.statement for fact in model.knowledge]
    model.knowledge.clear()
    answer = client.post(f"{URL}/import", content=lines, headers=LINES)
    assert len(answer.json()["ids"]) == 5 and [fact.statement for fact in model.knowledge] == facts
    again = client.post(f"{URL}/import", files={"file": ("facts.jsonl", lines)}, headers={"Idempotency-Key": "form"})
    assert len(again.json()["superseded"]) == 5 and len(model.knowledge) == 5
    with_history = client.get(f"{URL}/export", params={"history": True}).text.splitlines()
    assert len(with_history) == 5 + len(model.knowledge.history())


def test_a_file_of_several_batches_is_added_whole_or_not_at_all(client, model):
    lines = [json.dumps([f"The number {n} is", str(n)]) for n in range(600)]
    last = model.knowledge.history()
    assert problem(client.post(f"{URL}/import", content="\n".join([*lines, "{"]), headers=LINES), 422) == (
        "line 601: not JSON (Expecting property name enclosed in double quotes)."
    )
    duplicate = "\n".join([*lines, lines[300]])
    assert problem(client.post(f"{URL}/import?on_conflict=error", content=duplicate, headers=LINES), 422).startswith(
        "line 601 must have a new prompt under on_conflict='error'"
    )
    assert len(model.knowledge) == 0 and model.knowledge.history() == last
    headers = LINES | {"Idempotency-Key": "file"}
    first = client.post(f"{URL}/import", content="\n".join(lines), headers=headers)
    assert len(first.json()["ids"]) == len(model.knowledge) == 600
    assert client.post(f"{URL}/import", content="\n".join(lines), headers=headers).json() == first.json()
    keys = model.knowledge.keys(first.json()["ids"][250:260])
    assert keys.allclose(model.encode_statements([f"The number {n} is {n}" for n in range(250, 260)]), atol=1e-5)


def test_what_is_no_file_of_facts_is_refused(client):
    assert "line 2 must be a statement" in problem(
        client.post(f"{URL}/import", content='"a"\n3\n', headers=LINES), 422
    )
    assert "at least one fact" in problem(client.post(f"{URL}/import", content="\n", headers=LINES), 422)
    assert "UTF-8" in problem(client.post(f"{URL}/import", content=b"\xff\xfe", headers=LINES), 422)
    problem(client.post(f"{URL}/import", content='"a"', headers={"Content-Type": "application/x-parquet"}), 415)
    problem(client.post(f"{URL}/import", data={"file": "a"}, files={"other": b"x"}), 400)
    assert "at most 1048576 bytes" in problem(client.post(f"{URL}/import", content=b"x" * 2**21, headers=LINES), 413)

    def endless():
        while True:
            yield b'"a fact"\n' * 1000

    problem(client.post(f"{URL}/import", content=endless(), headers=LINES), 413)


# ---------------------------------------------------------------------- after a restart


def test_answers_and_changes_outlast_the_server(tmp_path):
    path = tmp_path / "facts.db"
    answers = []
    for _ in range(2):
        model = tiny_recipe()
        model.open_knowledge(path)
        with serving(create_app(ServerSettings(knowledge=str(path)), model)) as running, running.http() as client:
            sent = client.post(URL, json={"facts": ["Dogs bark."]}, headers={"Idempotency-Key": "k"})
            answers.append(sent.json())
            assert len(model.knowledge) == 1
        model.knowledge.close()
    assert answers[0] == answers[1]


def test_a_second_server_on_the_same_file_is_refused_at_its_start(tmp_path):
    first, second = tiny_recipe(), tiny_recipe()
    first.open_knowledge(tmp_path / "facts.db")
    with pytest.raises(BlockingIOError, match="It is being written by process"):
        second.open_knowledge(tmp_path / "facts.db")


def test_a_server_that_only_reads_follows_the_one_that_writes(tmp_path):
    path = tmp_path / "facts.db"
    writing, reading = tiny_recipe(), tiny_recipe()
    writing.open_knowledge(path)
    reading.open_knowledge(path, read_only=True)
    settings = ServerSettings(knowledge=str(path))
    with (
        serving(create_app(settings, writing)) as one,
        serving(create_app(ServerSettings(knowledge=str(path), read_only=True), reading)) as other,
        one.http() as writer,
        other.http() as reader,
    ):
        for n, fact in enumerate(FACTS):
            (id_,) = add(writer, fact)["ids"]
            assert reader.get(URL).json()["total"] == n + 1
            found = reader.post(f"{URL}/explain", json={"query": PROMPTS[n]}).json()["candidates"][0]
            assert found["fired"] and found["fact"]["id"] == id_
        assert problem(reader.post(URL, json={"facts": ["a"]}), 403) == "The facts are read only on this server."
