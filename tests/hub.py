"""A stand-in for the HTTP interface of the Hugging Face Hub: repositories in memory, at a local address."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """Commits of repositories, and what was asked for.

    Attributes:
        commits: Files by name, by `ORG/NAME@REVISION`; `main` is the newest.
        created: What repositories were created with.
        requests: Method and path of each request.
        refuses: Whether uploads are refused, as for want of a token.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str]] = []
        self.refuses = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit; return its identifier."""
        names = "".join(f"{name}{hashlib.sha256(content).hexdigest()}" for name, content in sorted(files.items()))
        identifier = hashlib.sha1(names.encode()).hexdigest()
        self.commits[f"{repository}@{identifier}"] = self.commits[f"{repository}@main"] = files
        return identifier

    def identifier_of(self, repository: str, revision: str) -> str:
        files = self.commits[f"{repository}@{revision}"]
        return next(
            name.partition("@")[2]
            for name, each in self.commits.items()
            if each is files and not name.endswith("@main") and name.startswith(f"{repository}@")
        )


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def _body(self) -> bytes:
        self.server.requests.append((self.command, self.path))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        self._file()

    def _file(self) -> None:
        self._body()
        repository, _, rest = self.path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        repository = repository.strip("/")
        files = self.server.commits.get(f"{repository}@{revision}")
        if files is None:
            self._answer(404, X_Error_Code="RepoNotFound")
        elif name not in files:
            commit = self.server.identifier_of(repository, revision)
            self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        else:
            content = files[name]
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._answer(200, content, ETag=tag, X_Repo_Commit=self.server.identifier_of(repository, revision))

    def do_PUT(self) -> None:
        content = self._body()
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self._answer(200)

    def do_POST(self) -> None:
        body = self._body()
        if self.server.refuses:
            self._answer(401, b'{"error": "Invalid username or password."}', Content_Type="application/json")
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            asked = json.loads(body)
            self._json({"url": f"{self.server.address}/{asked['organization']}/{asked['name']}"})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            modes = {True: "lfs", False: "regular"}
            asked = json.loads(body)["files"]
            self._json(
                {
                    "files": [
                        {
                            "path": each["path"],
                            "uploadMode": modes[each["path"].endswith(".safetensors")],
                            "shouldIgnore": False,
                        }
                        for each in asked
                    ]
                }
            )
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.address}/upload"}}}
                for each in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            repository = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            files = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
            identifier = self.server.commit(repository, files)
            address = f"{self.server.address}/{repository}/commit/{identifier}"
            self._json({"success": True, "commitOid": identifier, "commitUrl": address})
        else:
            self._answer(404)


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty hub."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
