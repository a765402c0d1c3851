"""A Hub on loopback: what huggingface_hub asks of the real one to make a repository, upload, list and download.

with FakeHub() as hub:
    subprocess.run([...], env={**os.environ, **hub.environment(cache_folder)})
    hub.read("owner/name", "README.md")

The server keeps everything in memory. Repositories are lists of commits; safetensors go through the LFS protocol, the
rest into the commit. `hub.failures` makes requests fail, `hub.log` holds those that came.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_loopback"
ID = r"(?P<id>[^/]+/[^/]+)"


@dataclass
class Repository:
    """Branches of commits; a commit is `(sha, {path: content})`."""

    private: bool = False
    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        commits = self.branches.setdefault(branch, [])
        text = repr((branch, len(commits), sorted((name, _sha256(data)) for name, data in files.items())))
        commits.append((hashlib.sha1(text.encode()).hexdigest(), files))
        return commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for commits in self.branches.values() for c in commits if c[0] == revision), None)


class FakeHub:
    """The server, from `__enter__` to `__exit__`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by sha256
        self.log: list[str] = []
        self.failures: list[tuple[str, int | Callable[[], None]]] = []
        """(regular expression for "METHOD path", status to answer; 0 hangs up; or a function to call first). Each
        serves once."""
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """Variables that make another process use this Hub, with `home` as its cache."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",  # LFS: the protocol of content-addressed chunks is not imitated
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "300",  # instead of ten seconds, which a busy machine may need
            "HF_HUB_ETAG_TIMEOUT": "300",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def connect(self, monkeypatch: Any, home: Path, token: str = TOKEN) -> None:
        """The same for this process, whose huggingface_hub has read its environment already."""
        from huggingface_hub import constants, hf_api

        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", self.endpoint)  # behind huggingface_hub's functions
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """`{path: content}` of a revision."""
        found = self.repositories[repo_id].at(revision)
        assert found is not None, f"no revision {revision} in {repo_id}"
        return found[1]

    def requests(self, pattern: str) -> list[str]:
        """The requests so far, "METHOD path", that match."""
        return [line for line in self.log if re.search(pattern, line)]

    def _failure(self, request: str) -> int | Callable[[], None] | None:
        with self._lock:
            for entry in self.failures:
                if re.search(entry[0], request):
                    self.failures.remove(entry)
                    return entry[1]
        return None


class _Missing(Exception):
    """Of this kind: Repo, Revision or Entry."""


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.log.append(request)
        failure = self.hub._failure(request)
        if callable(failure):
            failure()
        elif failure == 0:
            self.close_connection = True
            return self.connection.close()
        body = self._body()
        if isinstance(failure, int) and failure:
            return self._json(failure, {"error": "made to fail"})
        if self.command in ("POST", "PUT") and "/lfs/" not in path and not self._may_write():
            return self._json(401, {"error": "Invalid credentials in Authorization header"})
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                try:
                    return answer(self, body, **match.groupdict())
                except _Missing as missing:
                    return self._json(404, {"error": f"{missing} not found"}, X_Error_Code=f"{missing}NotFound")
        self._json(404, {"error": f"no route for {request}"})

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, status: int, content: Any, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json", **named})

    def _find(self, id: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        """(sha, files)."""
        repository = self.hub.repositories.get(id)
        if repository is None or (repository.private and not self._may_write()):
            raise _Missing("Repo")
        found = repository.at(revision or "main")
        if found is None:
            raise _Missing("Revision")
        return found

    # Writing.

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        id = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.hub.endpoint}/{id}", "id": id}
        if id in self.hub.repositories:
            return self._json(409, {"error": "You already created this model repo", **answer})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[id] = Repository(private)
        self._json(200, answer)

    def branch(self, body: bytes, id: str, revision: str) -> None:
        branches = self.hub.repositories[id].branches
        if revision in branches:
            return self._json(409, {"error": "Reference already exists"})
        branches[revision] = list(branches["main"])
        self._json(200, {})

    def validate_card(self, body: bytes) -> None:
        parts = json.loads(body)["content"].split("---\n")
        try:
            metadata = yaml.safe_load(parts[1]) if len(parts) > 2 else {}
            errors = [] if isinstance(metadata, dict) else [{"message": "metadata is no mapping"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self._json(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body: bytes, id: str, revision: str) -> None:
        files = self._find(id, revision)[1]
        answer = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _is_lfs(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": _oid(file["path"], files[file["path"]]) if file["path"] in files else None,
            }
            for file in json.loads(body)["files"]
        ]
        self._json(200, {"files": answer})

    def lfs_batch(self, body: bytes, id: str) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                links = ("upload", f"/lfs/{asked['oid']}"), ("verify", "/lfs/verify")
                answer["actions"] = {name: {"href": self.hub.endpoint + path} for name, path in links}
            objects.append(answer)
        self._json(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if _sha256(body) != oid:
            return self._json(400, {"error": "content does not match its address"})
        self.hub.objects[oid] = body
        self._json(200, {})

    def lfs_verify(self, body: bytes) -> None:
        asked = json.loads(body)
        good = len(self.hub.objects.get(asked["oid"], b"")) == asked["size"]
        self._json(200 if good else 400, {"message": "ok" if good else "not there"})

    def commit(self, body: bytes, id: str, revision: str) -> None:
        files = dict(self._find(id, revision)[1])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._json(400, {"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.repositories[id].commit(revision, files)
        url = f"{self.hub.endpoint}/{id}/commit/{sha}"
        self._json(200, {"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": None})

    # Reading.

    def info(self, body: bytes, id: str, revision: str | None = None) -> None:
        sha, files = self._find(id, revision)
        siblings = [{"rfilename": name} for name in sorted(files)]
        self._json(200, {"id": id, "modelId": id, "sha": sha, "siblings": siblings, "private": False, "tags": []})

    def tree(self, body: bytes, id: str, revision: str, folder: str | None = None) -> None:
        files = self._find(id, revision)[1]
        inside = f"{folder}/" if folder else ""
        names = sorted(name for name in files if name.startswith(inside))
        if inside and not names:
            raise _Missing("Entry")
        entries = [self._entry(name, files[name]) for name in names]
        if "recursive=true" not in self.path.lower():
            parts = [name.removeprefix(inside).split("/") for name in names]
            entries = [entry for entry, part in zip(entries, parts, strict=True) if len(part) == 1]
            folders = sorted({inside + part[0] for part in parts if len(part) > 1})
            entries += [{"type": "directory", "path": path, "oid": _blob(path.encode())} for path in folders]
        self._json(200, entries)

    def paths_info(self, body: bytes, id: str, revision: str) -> None:
        files = self._find(id, revision)[1]
        self._json(200, [self._entry(path, files[path]) for path in json.loads(body)["paths"] if path in files])

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _blob(data)}
        if _is_lfs(name):
            entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 130}
        return entry

    def resolve(self, body: bytes, id: str, revision: str, path: str) -> None:
        sha, files = self._find(id, revision)
        if path not in files:
            raise _Missing("Entry")
        data = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(path, data)}"', "Accept-Ranges": "bytes"}
        if _is_lfs(path):
            linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
            # As on the real Hub another host: redirects to the same one are taken for renamed repositories.
            storage = self.hub.endpoint.replace("127.0.0.1", "localhost")
            location = {"Location": f"{storage}/lfs/{_sha256(data)}"}
            return self._answer(302, b"", {**headers, **linked, **location})
        self._content(data, headers)

    def lfs_get(self, body: bytes, oid: str) -> None:
        self._content(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _content(self, data: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._answer(200, data, headers)
        start, stop = int(asked[1]), int(asked[2] or len(data) - 1) + 1
        part = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self._answer(206, data[start:stop], {**headers, **part})


def _is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _oid(path: str, data: bytes) -> str:
    return _sha256(data) if _is_lfs(path) else _blob(data)


_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_card),
    ("POST", f"/api/models/{ID}/branch/(?P<revision>.+)", _Handler.branch),
    ("POST", f"/api/models/{ID}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", f"/api/models/{ID}/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", f"/{ID}.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", "/lfs/verify", _Handler.lfs_verify),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    ("GET HEAD", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_get),
    ("GET", f"/api/(models|datasets)/{ID}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    ("POST", f"/api/(models|datasets)/{ID}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("GET", f"/api/(models|datasets)/{ID}(/revision/(?P<revision>.+))?", _Handler.info),
    ("GET HEAD", f"(/datasets)?/{ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
