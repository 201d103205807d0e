"""Who may do what, asked over a real socket in every way that an outsider might try."""

from __future__ import annotations

import json
import os
import stat
import threading

import pytest

from recipe_hf.serving import ServerSettings, create_app
from recipe_hf.serving.access import Rates, check_address
from recipe_hf.serving.generating import TransformersEngine
from recipe_hf.serving.keys import Keys
from recipe_hf.serving.problems import Problem
from tests import command
from tests.running_server import serving
from tests.tiny_recipe import FACTS, PROMPTS, tiny_recipe

URL = "/v1/knowledge"
SECRET = "The launch code of Acme is 4711-SESAME."


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


class Team:
    """Two teams, each with facts and keys of its own, on one server."""

    def __init__(self, directory):
        self.path = directory / "keys.json"
        self.keys = Keys(self.path)
        self.tokens = {}
        for namespace in ("ours", "theirs", None):
            for role in ("ask", "edit", "admin"):
                self.tokens[namespace, role], _ = self.keys.add(role, namespace)
        self.model = tiny_recipe()
        self.model.open_knowledge(directory / "facts.db")
        (self.secret,) = self.model.add_knowledge([SECRET], namespace="theirs")
        self.model.add_knowledge(["An old one of theirs.", *FACTS], namespace="theirs")
        self.model.remove_knowledge(1, namespace="theirs")
        settings = ServerSettings(knowledge=str(directory / "facts.db"), keys=self.path, rate=None)
        self.app = create_app(settings, self.model, TransformersEngine(self.model))


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    team = Team(tmp_path_factory.mktemp("team"))
    with serving(team.app) as running:
        team.client = running.http()
        yield team
        team.client.close()


@pytest.fixture
def ask(team):
    """Asks with a key of `ours`, or of another namespace."""

    def ask(method, path, role="admin", of="ours", **options):
        headers = options.pop("headers", {}) | bearer(team.tokens[of, role])
        return team.client.request(method, f"{URL}{path}", headers=headers, **options)

    return ask


# ---------------------------------------------------------------------- keys


ROUTES = [
    ("GET", "", "ask"),
    ("GET", "/history", "ask"),
    ("GET", "/export", "ask"),
    ("GET", "/0", "ask"),
    ("POST", "/search", "ask"),
    ("POST", "/explain", "ask"),
    ("POST", "/preview", "ask"),
    ("POST", "", "edit"),
    ("POST", "/import", "edit"),
    ("PUT", "/0", "edit"),
    ("DELETE", "/0", "edit"),
    ("POST", "/0/restore", "edit"),
]


def test_every_route_of_facts_is_known_here(team):
    """A new route must be added to `ROUTES`, so that who may use it is tested."""
    paths = team.app.openapi()["paths"]
    known = {
        (method.upper(), path.removeprefix(URL).replace("{id}", "0"))
        for path, methods in paths.items()
        if path.startswith(URL)
        for method in methods
    }
    assert known == {(method, path) for method, path, _ in ROUTES}


@pytest.mark.parametrize(("method", "path", "role"), ROUTES)
def test_no_route_answers_without_a_key_that_may(team, ask, method, path, role):
    told = []
    token = team.tokens["ours", "edit"]
    of_other_id = token.replace(token.split("-")[1], Keys(team.path).list()[0].id)
    for headers in (
        {},
        {"Authorization": ""},
        {"Authorization": f"Basic {token}"},
        {"Authorization": "Bearer"},
        bearer("recipe--"),
        bearer(token[:-1]),
        bearer(token + "x"),
        bearer(token.upper()),
        bearer(token.replace("recipe-", "other-")),
        bearer(of_other_id),
        bearer(Keys(team.path).list()[0].sha256),
    ):
        answer = team.client.request(method, f"{URL}{path}", headers=headers)
        told.append((answer.status_code, answer.text, answer.headers["www-authenticate"]))
        team.app.state.rates = Rates(None)
    assert len(set(told)) == 1 and told[0][0] == 401
    if role == "edit":
        refused = ask(method, path, "ask", json={"facts": ["x"]})
        assert refused.status_code == 403 and "takes a key with the role edit, got one with ask" in refused.text


def test_a_key_counts_as_soon_as_it_is_added_and_no_longer_once_it_is_revoked(team, tmp_path):
    added = command.run("keys", "add", "--role", "ask", "--namespace", "ours", "--keys", team.path)
    token, id_ = added.stdout.strip(), added.stdout.split("-")[1]
    assert team.client.get(URL, headers=bearer(token)).status_code == 200
    assert id_ in command.run("keys", "list", "--keys", team.path).stdout
    assert command.run("keys", "revoke", id_, "--keys", team.path).returncode == 0
    assert team.client.get(URL, headers=bearer(token)).status_code == 401


def test_of_a_key_a_hash_is_kept_in_a_file_of_the_owners(tmp_path):
    path = tmp_path / "of" / "keys.json"
    token, key = Keys(path).add("ask", name="Ann")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert token.split("-", 2)[2] not in path.read_text() and key.sha256 in path.read_text()
    assert len(token.split("-", 2)[2]) == 43  # 256 bits.
    assert Keys(path).find(token) == key and Keys(path).find(token + " ") is None
    path.chmod(0o640)
    with pytest.raises(PermissionError, match="readable by its owner only"):
        Keys(path)


def test_nobody_is_let_in_while_the_file_is_missing_or_damaged(tmp_path):
    path = tmp_path / "keys.json"
    token, _ = Keys(path).add("ask")
    text = path.read_text()
    with serving(create_app(ServerSettings(keys=path), tiny_recipe())) as running, running.http() as client:
        assert client.get(URL, headers=bearer(token)).status_code == 200
        path.write_text("{")
        answer = client.get(URL, headers=bearer(token))
        assert answer.status_code == 503 and str(tmp_path) not in answer.text
        path.unlink()
        assert client.get(URL, headers=bearer(token)).status_code == 401
        path.write_text(text)
        path.chmod(0o600)
        assert client.get(URL, headers=bearer(token)).status_code == 200


def test_keys_added_at_once_are_all_kept(tmp_path):
    threads = [threading.Thread(target=Keys(tmp_path / "keys").add, args=("ask",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Keys(tmp_path / "keys")) == 8


# ---------------------------------------------------------------------- namespaces


def test_a_key_may_name_no_namespace_but_its_own(ask):
    told = set()
    for wanted in ("theirs", "nobody's", "", "OURS", "ours ", "%"):
        for method, path, _ in ROUTES:
            given = {"json": {"facts": ["x"], "query": "x"} if path in ("", "/preview") else {"query": "x"}}
            answer = ask(method, path, params={"namespace": wanted}, **given)
            if path in ("", "/preview", "/search", "/explain") and method == "POST" and answer.status_code == 422:
                continue  # The body of another route.
            assert answer.status_code == 403, (method, path, answer.text)
            told.add(answer.json()["detail"].replace(repr(wanted), "…"))
    assert told == {"namespace must be 'ours', the key's, got …."}


def test_facts_of_others_are_as_if_they_were_not(team, ask):
    """What a key of `ours` is told does not depend on what `theirs` holds, in any byte that it may see."""
    answers = {}
    # Facts of theirs, one that left, and one of nobody's.
    for id_ in (team.secret, 2, 1, 9):
        for method, path in (("GET", ""), ("DELETE", ""), ("PUT", ""), ("POST", "/restore")):
            answer = ask(method, f"/{id_}{path}", **({"json": "Another."} if method == "PUT" else {}))
            headers = {name: it for name, it in answer.headers.items() if name not in ("date", "x-request-id")}
            told = (answer.status_code, answer.text.replace(f"got {id_}.", "got N."), json.dumps(headers))
            answers.setdefault(method, set()).add(told)
    assert all(len(each) == 1 for each in answers.values())
    assert {status for each in answers.values() for status, *_ in each} == {404}


def test_no_answer_tells_of_facts_of_others(team, ask):
    words = {"query": SECRET, "k": 100}
    given = {"facts": [SECRET, *FACTS], "questions": [SECRET, *PROMPTS]}
    answers = [
        ask("GET", ""),
        ask("GET", "", params={"q": "SESAME"}),
        ask("GET", "/history"),
        ask("GET", "/history", params={"prompt": "An old one of theirs."}),
        ask("GET", "/export", params={"history": True}),
        ask("POST", "/search", json=words),
        ask("POST", "/search", json=words | {"where": {"namespace": "theirs"}}),
        ask("POST", "/explain", json=words),
        ask("POST", "/explain", json=words | {"where": {}}),
        ask("POST", "/preview", json=given),
    ]
    assert all(answer.status_code == 200 for answer in answers)
    seen = answers.pop().json()  # It quotes what it was sent.
    assert all(not fact["replaces"] and not fact["supersedes"] for fact in seen["facts"])
    assert all(each["before"]["fact"] is None for each in seen["questions"])
    for answer in answers:
        assert "4711" not in answer.text.replace(json.dumps(SECRET), "") and "Ann Lee" not in answer.text
    assert ask("GET", "").json()["total"] == 0
    mine = ask("POST", "", json={"facts": [SECRET], "on_conflict": "error"})
    assert mine.status_code == 200 and mine.json()["superseded"] == []
    ask("DELETE", f"/{mine.json()['ids'][0]}")


def test_an_idempotency_key_of_others_tells_nothing(team, ask):
    body, headers = {"facts": ["Something of theirs."]}, {"Idempotency-Key": "shared"}
    theirs = ask("POST", "", of="theirs", json=body, headers=headers)
    ours = ask("POST", "", json=body, headers=headers)
    other = ask("POST", "", role="edit", json={"facts": ["Another."]}, headers=headers)
    assert theirs.status_code == ours.status_code == other.status_code == 200
    assert "idempotency-replayed" not in ours.headers
    for id_ in (*ours.json()["ids"], *other.json()["ids"]):
        ask("DELETE", f"/{id_}")
    ask("DELETE", f"/{theirs.json()['ids'][0]}", of="theirs")


def test_the_other_namespace_stays_as_it_was(team, ask):
    before = list(team.model.knowledge.namespace("theirs"))
    for method, path, _ in ROUTES:
        for content in (b"", json.dumps({"facts": [SECRET]}).encode()):
            for name in ("theirs", "../theirs", "ours\x00theirs"):
                ask(method, path, params={"namespace": name}, content=content)
                ask(method, path, json={"namespace": name, "query": SECRET}, headers={"X-Namespace": "theirs"})
    assert list(team.model.knowledge.namespace("theirs")) == before


def test_an_answer_rests_on_no_fact_of_others(team):
    """Through OpenAI's routes, whatever `recipe` says; the answers are those of a model that holds no facts."""
    prompt = {"prompt": PROMPTS[0], "max_tokens": 4, "temperature": 0}
    chat = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 4, "temperature": 0}
    theirs = bearer(team.tokens["theirs", "ask"])
    for path, body in (("/v1/completions", prompt), ("/v1/chat/completions", chat)):
        body["model"] = "recipe"

        def send(key, body=body, path=path, **recipe):
            return team.client.post(path, json=body | {"recipe": recipe}, headers=key)

        assert send({}).status_code == 401
        found = send(theirs).json()
        assert (found.get("recipe") or found["choices"][0]["recipe"])["fired"]
        for role in ("ask", "admin"):
            ours = bearer(team.tokens["ours", role])
            for namespace in ("theirs", ""):
                refused = send(ours, namespace=namespace)
                assert refused.status_code == 403 and "namespace must be 'ours'" in refused.text
            for recipe in ({}, {"namespace": "ours"}, {"where": {"namespace": "theirs"}}):
                answer = send(ours, **recipe)
                assert answer.status_code == 200 and "Ann Lee" not in answer.text
                assert not (answer.json().get("recipe") or answer.json()["choices"][0]["recipe"])["fired"]


def test_a_key_of_all_namespaces_chooses_one(team, ask):
    assert ask("GET", "", of=None).json()["total"] == 0
    found = ask("GET", "", of=None, params={"namespace": "theirs", "q": "sesame"}).json()["facts"]
    assert [fact["statement"] for fact in found] == [SECRET]


def test_metrics_are_for_no_key_of_one_namespace(team):
    for role in ("ask", "edit", "admin"):
        assert team.client.get("/metrics", headers=bearer(team.tokens["ours", role])).status_code == 403
    assert team.client.get("/metrics").status_code == 401
    assert team.client.get("/metrics", headers=bearer(team.tokens[None, "ask"])).status_code == 200


# ---------------------------------------------------------------------- keys over HTTP


def test_admins_manage_the_keys_of_their_namespace(team):
    def send(method, path="", role="admin", of="ours", **options):
        return team.client.request(method, f"/v1/keys{path}", headers=bearer(team.tokens[of, role]), **options)

    for role in ("ask", "edit"):
        assert send("GET", role=role).status_code == send("POST", role=role, json={}).status_code == 403
    added = send("POST", json={"role": "ask", "name": "Ann"}).json()
    assert team.client.get(URL, headers=bearer(added["key"])).status_code == 200
    assert {key["namespace"] for key in send("GET").json()} == {"ours"}
    assert "sha256" not in send("GET").text and added["key"].split("-", 2)[2] not in send("GET").text
    assert {key["namespace"] for key in send("GET", of=None).json()} == {"ours", "theirs", None}
    for namespace in ("theirs", ""):
        assert send("POST", json={"role": "admin", "namespace": namespace}).status_code == 403
    (theirs, *_) = [key["id"] for key in send("GET", of="theirs").json()]
    refused, unknown = send("DELETE", f"/{theirs}"), send("DELETE", "/" + "0" * len(theirs))
    assert refused.status_code == unknown.status_code == 404
    assert refused.text.replace(theirs, "") == unknown.text.replace("0" * len(theirs), "")
    assert send("DELETE", f"/{added['id']}").status_code == 204
    assert team.client.get(URL, headers=bearer(added["key"])).status_code == 401


# ---------------------------------------------------------------------- who may connect


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "localhost.example.com"])
def test_other_addresses_than_loopback_need_keys(host, tmp_path):
    with pytest.raises(ValueError, match="as long as there are no keys"):
        check_address(host, None)
    with pytest.raises(ValueError, match="as long as there are no keys"):
        create_app(ServerSettings(host=host, keys=tmp_path / "none"), tiny_recipe())
    keys = Keys(tmp_path / "keys")
    keys.add("ask")
    check_address(host, keys)


def test_without_keys_pages_of_other_sites_are_not_answered(server):
    with server.http() as client:
        assert client.get(URL).status_code == 200
        own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
        assert client.post(URL, json={"facts": ["a"]}, headers=own).status_code == 200
        for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"):
            assert client.get(URL, headers={"Host": host}).status_code == 200
        before = len(server.model.knowledge)
        for headers in (
            {"Host": "evil.example"},  # A name that was made to lead here.
            {"Host": "evil.example:8000"},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://["},
            {"Host": "["},
            {"Host": ""},
            {"Origin": "http://127.0.0.1.evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            for method, path in (("GET", ""), ("POST", ""), ("POST", "/import")):
                answer = client.request(method, f"{URL}{path}", headers=headers, json={"facts": ["a"]})
                assert answer.status_code == 403, (headers, answer.text)
        assert len(server.model.knowledge) == before


def test_no_other_origin_is_allowed_to_read(server):
    with server.http() as client:
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        for method in ("OPTIONS", "GET"):
            answer = client.request(method, URL, headers=headers)
            assert not [name for name in answer.headers if name.startswith("access-control-")]


# ---------------------------------------------------------------------- how much


def test_a_key_may_ask_only_so_often(tmp_path):
    keys = Keys(tmp_path / "keys")
    (one, _), (other, _) = keys.add("ask"), keys.add("ask")
    settings = ServerSettings(keys=tmp_path / "keys", rate="3/minute")
    with serving(create_app(settings, tiny_recipe())) as running, running.http() as client:
        answers = [client.get(URL, headers=bearer(one)) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert 1 <= int(answers[3].headers["retry-after"]) <= 60
        assert answers[3].headers["content-type"] == "application/problem+json"
        assert client.get(URL, headers=bearer(other)).status_code == 200


def test_what_is_no_rate_is_refused():
    with pytest.raises(ValueError, match="rate must be one such as '600/minute' or '20/second', got 'often'."):
        Rates("often")


def test_strangers_may_try_only_so_often():
    rates = Rates(None)
    for _ in range(60):
        rates.count_stranger("192.0.2.1")
    rates.count_stranger("192.0.2.2")
    with pytest.raises(Problem, match="429"):
        rates.count_stranger("192.0.2.1")


def test_a_body_may_be_only_so_large(tmp_path):
    settings = ServerSettings(max_body_bytes=1000)
    with serving(create_app(settings, tiny_recipe())) as running, running.http() as client:
        for content in (b"x" * 1001, (b"x" * 100 for _ in range(1000))):
            answer = client.post(URL, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 413 and answer.json()["detail"] == "The body must be of at most 1000 bytes."


def test_a_strangers_body_is_not_read(tmp_path):
    keys = Keys(tmp_path / "keys.json")
    keys.add("edit", None)
    model = tiny_recipe()
    app = create_app(ServerSettings(keys=tmp_path / "keys.json"), model, TransformersEngine(model))
    with serving(app) as running, running.http() as client:
        for path in (URL, f"{URL}/search", "/v1/chat/completions", "/v1/completions"):
            said = client.post(path, content=b"{no JSON", headers={"Content-Type": "application/json"})
            assert said.status_code == 401 and said.headers["WWW-Authenticate"] == "Bearer", path
        codes = {client.post(URL, content=b"{", headers=bearer("wrong")).status_code for _ in range(70)}
        assert codes == {401, 429}
