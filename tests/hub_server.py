"""A small Hugging Face Hub in memory: its HTTP protocol as far as the tests need, without Xet.

Large files move through a second host name, as on the Hub, so that a client must not send its token there.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.card_rules import card_errors

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.gguf", "*.arrow", "*.parquet")
LFS_SIZE = 10_000_000
_REPO = r"/(?P<type>models|datasets)/(?P<id>[\w.-]+(?:/[\w.-]+)?)"
_FILES = r"/(?:(?P<type>datasets)/)?(?P<id>[\w.-]+(?:/[\w.-]+)?)"


@dataclass(frozen=True)
class File:
    """A file of a commit; of a large one, the repository holds a pointer only."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        text = self.content
        if self.is_lfs:
            text = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
                self.sha256.encode(),
                len(text),
            )
        return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid


@dataclass
class Repository:
    """Commits, each the whole tree it left, and the branches and pull requests that point at them."""

    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: dict[str, File], message: str) -> str:
        tree = json.dumps({name: file.git_oid for name, file in sorted(files.items())})
        oid = hashlib.sha1(f"{len(self.commits)} {message} {tree}".encode()).hexdigest()
        self.commits[oid] = files
        self.messages.append(message)
        self.refs[ref] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class Refusal(Exception):
    """An answer other than success, as the Hub gives it."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


class Hub:
    """A Hub with two users, `ann` (who is in the organisation `org`) and `bob`, whose tokens are `hf_ann`, `hf_bob`.

    Attributes:
        repositories: By type and id, such as `("model", "org/name")`.
        uploads: Names (of large files: sums) of what was uploaded, with their sizes, since `forget`.
        requests: Counts of requests since `forget`, by method and path.
        leaks: Requests that carried a token to the storage of large files.
    """

    def __init__(self) -> None:
        self.users = {"hf_ann": "ann", "hf_bob": "bob"}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.storage: dict[str, bytes] = {}
        self.leaks: list[str] = []
        self.forget()
        self._breaks: dict[str, list[int]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        port = self._server.server_address[1]
        self.endpoint, self.storage_endpoint = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def forget(self) -> None:
        """Empties `uploads` and `requests`."""
        self.uploads: dict[str, int] = {}
        self.requests: Counter[str] = Counter()

    def break_connections(self, pattern: str, times: int, after: int = 0) -> None:
        """Cuts the next `times` connections whose method and path match `pattern`, once `after` of them passed."""
        self._breaks[pattern] = [after, times]

    def mend(self) -> None:
        """Takes `break_connections` back."""
        self._breaks.clear()

    def is_cut(self, request: str) -> bool:
        for pattern, counts in self._breaks.items():
            if re.search(pattern, request):
                if counts[0]:
                    counts[0] -= 1
                elif counts[1]:
                    counts[1] -= 1
                    return True
        return False

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, File]:
        repository = self.repositories[repo_type, repo_id]
        return repository.commits[repository.refs[revision]]

    def edit(self, repo_id: str, name: str, text: str, repo_type: str = "model") -> None:
        """Commits a text to the main branch, as someone does on the Hub's page."""
        edited = {**self.files(repo_id, repo_type=repo_type), name: File(text.encode(), False)}
        self.repositories[repo_type, repo_id].commit("main", edited, f"Edit {name}")

    def text(self, repo_id: str, name: str, *where: str) -> str:
        return self.files(repo_id, *where)[name].content.decode()

    def repository(self, repo_type: str, repo_id: str, user: str | None, write: bool = False) -> Repository:
        repository = self.repositories.get((repo_type, repo_id))
        member = self.is_member(user, repo_id.split("/")[0])
        if repository is None or (repository.private and not member):
            if user is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if write and not member:
            raise Refusal(403 if user else 401, "You don't have the rights to write here.")
        return repository

    @staticmethod
    def is_member(user: str | None, namespace: str) -> bool:
        return user is not None and (namespace == user or (namespace, user) == ("org", "ann"))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: value[0] for name, value in parse_qs(url.query).items()}
        request = f"{self.command} {unquote(url.path)}"
        self.hub.requests[request] += 1
        self.cut = self.hub.is_cut(request)
        if self.cut and self.command == "PUT":
            self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
            return self._hang_up()
        self.body = self._read_body()
        try:
            for method, pattern, name in _ROUTES:
                found = re.fullmatch(pattern, url.path)
                if found and self.command in method:
                    getattr(self, name)(**{key: value and unquote(value) for key, value in found.groupdict().items()})
                    break
            else:
                raise Refusal(404, f"No route for {request}.")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self._send(json.dumps({"error": refusal.message} | refusal.body).encode(), refusal.status, headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.cut and self.command == "POST":
            return self._hang_up()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut else content)
        if self.cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def _repository(self, type: str | None, id: str, write: bool = False) -> Repository:
        return self.hub.repository("dataset" if type == "datasets" else "model", id, self._user(), write)

    def _commit_of(self, repository: Repository, revision: str) -> str:
        oid = repository.resolve(revision)
        if oid is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    # ------------------------------------------------------------ repositories

    def whoami(self) -> None:
        user = self._user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"name": "org"}] if self.hub.is_member(user, "org") else []
        self._json({"type": "user", "name": user, "orgs": orgs, "auth": {"type": "access_token"}})

    def create(self) -> None:
        user, wanted = self._user(), json.loads(self.body)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        kind, namespace = wanted.get("type", "model"), wanted.get("organization") or user
        id = f"{namespace}/{wanted['name']}"
        if not self.hub.is_member(user, namespace):
            raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        url = f"{self.hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{id}"
        if (kind, id) in self.hub.repositories:
            raise Refusal(409, f"You already created this {kind} repo", url=url)
        private = wanted.get("private", False) or wanted.get("visibility") == "private"
        repository = self.hub.repositories[kind, id] = Repository(private)
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        repository.commit("main", {".gitattributes": File(attributes.encode(), False)}, "initial commit")
        self._json({"url": url, "name": id, "id": id})

    def info(self, type: str, id: str, revision: str | None = None) -> None:
        repository = self._repository(type, id)
        oid = self._commit_of(repository, revision or "main")
        siblings = [{"rfilename": name} for name in repository.commits[oid]]
        self._json({"id": id, "sha": oid, "private": repository.private, "siblings": siblings, "tags": []})

    def may_write(self, type: str, id: str) -> None:
        self._repository(type, id, write=True)
        self._json({})

    def tree(self, type: str, id: str, revision: str, folder: str | None) -> None:
        repository = self._repository(type, id)
        files = repository.commits[self._commit_of(repository, revision)]
        found = [_describe(name, file) for name, file in files.items() if not folder or name.startswith(f"{folder}/")]
        if folder and not found:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        self._json(found)

    def branch(self, type: str, id: str, revision: str) -> None:
        repository = self._repository(type, id, write=True)
        if revision in repository.refs:
            raise Refusal(409, f"Reference already exists: {revision}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.refs[revision] = self._commit_of(repository, start)
        self._json({})

    # ---------------------------------------------------------------- download

    def resolve(self, type: str | None, id: str, revision: str, name: str) -> None:
        repository = self._repository(type, id)
        oid = self._commit_of(repository, revision)
        file = repository.commits[oid].get(name)
        if file is None:
            missing = {"X-Repo-Commit": oid, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._send(b"Entry not found", 404, missing)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if not file.is_lfs:
            return self._send_range(file.content, headers)
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        self._send(b"", 302, headers | linked | {"Location": f"{self.hub.storage_endpoint}/storage/{file.sha256}"})

    def stored(self, oid: str) -> None:
        self._expect_no_token()
        self._send_range(self.hub.storage[oid], {"ETag": f'"{oid}"'})

    def _send_range(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(content, 200, headers)
        start, end = int(wanted[1]), len(content)
        self._send(content[start:], 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{end}"})

    def _expect_no_token(self) -> None:
        if "Authorization" in self.headers:
            self.hub.leaks.append(f"{self.command} {self.path}")

    # ------------------------------------------------------------------ upload

    def validate_yaml(self) -> None:
        errors = card_errors(json.loads(self.body)["content"])
        self._json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, type: str, id: str, revision: str) -> None:
        repository = self._repository(type, id, write=True)
        present = repository.commits[self._commit_of(repository, revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            name, large = file["path"], file["size"] > LFS_SIZE
            mode = "lfs" if large or any(fnmatch.fnmatch(name, p) for p in LFS_PATTERNS) else "regular"
            answer = {"path": name, "uploadMode": mode, "shouldIgnore": False}
            answers.append(answer | ({"oid": present[name].etag} if name in present else {}))
        self._json({"files": answers})

    def lfs_batch(self, type: str | None, id: str) -> None:
        self._repository(type, id, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.storage_endpoint}/storage/{wanted['oid']}"}
            stored = wanted["oid"] in self.hub.storage
            objects.append(wanted | ({} if stored else {"actions": {"upload": upload}}))
        self._json({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        self._expect_no_token()
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The content does not have the sum announced.")
        self.hub.storage[oid] = self.body
        self.hub.uploads[oid] = len(self.body)
        self._send(b"")

    def commit(self, type: str, id: str, revision: str) -> None:
        as_pull_request = self.query.get("create_pr") == "1"
        repository = self._repository(type, id, write=not as_pull_request)
        files = dict(repository.commits[self._commit_of(repository, revision)])
        message, uploads = "", {}
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
                uploads[value["path"]] = len(files[value["path"]].content)
                if value["path"] == "README.md" and (errors := card_errors(files["README.md"].content.decode())):
                    raise Refusal(400, errors[0])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.storage:
                    raise Refusal(400, f"LFS pointer of {value['path']} points to a file that does not exist")
                files[value["path"]] = File(self.hub.storage[value["oid"]], True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise Refusal(400, f"Unknown operation {key!r}.")
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        ref = f"refs/pr/{number}" if as_pull_request else revision
        url = f"{self.hub.endpoint}/{'datasets/' if type == 'datasets' else ''}{id}"
        oid = repository.commit(ref, files, message)
        self.hub.uploads |= uploads
        pull_request = {"pullRequestUrl": f"{url}/discussions/{number}"} if as_pull_request else {}
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"} | pull_request)


_ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", f"/api{_REPO}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", f"/api{_REPO}/auth-check/write", "may_write"),
    ("GET", f"/api{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", "tree"),
    ("POST", f"/api{_REPO}/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", f"/api{_REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", f"/api{_REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"{_FILES}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", "/storage/(?P<oid>[0-9a-f]{64})", "store"),
    ("GET HEAD", "/storage/(?P<oid>[0-9a-f]{64})", "stored"),
    ("GET HEAD", f"{_FILES}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "resolve"),
    ("GET", f"/api{_REPO}", "info"),
]


def _describe(name: str, file: File) -> dict[str, Any]:
    described: dict[str, Any] = {"type": "file", "path": name, "oid": file.git_oid, "size": len(file.content)}
    if file.is_lfs:
        described["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return described
