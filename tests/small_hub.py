"""A hub of the size of a test: the few requests that huggingface_hub makes, served from a folder."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    root: Path
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, data: bytes | dict[str, object], status: int = 200, **headers: str) -> None:
        raw = json.dumps(data).encode() if isinstance(data, dict) else data
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _missing(self, code: str) -> None:
        self._answer({"error": code}, 404, X_Error_Code=code, X_Error_Message="not here")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]))
        elif "resolve" in parts:
            self._file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._missing("RepoNotFound")

    do_HEAD = do_GET

    def _describe(self, repo: str) -> None:
        folder = self.root / repo
        if not folder.is_dir():
            self._missing("RepoNotFound")
            return
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [str(file.relative_to(folder)) for file in files]
        if "/tree/" in self.path:
            found = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _digest(file)}
                for name, file in zip(names, files, strict=True)
            ]
            self._answer(json.dumps(found).encode(), Content_Type="application/json")
            return
        siblings: list[dict[str, str]] = [{"rfilename": name} for name in names]
        self._answer({"id": repo, "modelId": repo, "sha": SHA, "siblings": siblings})

    def _file(self, repo: str, name: str) -> None:
        file = self.root / repo / name
        if not file.is_file():
            self._missing("EntryNotFound" if (self.root / repo).is_dir() else "RepoNotFound")
            return
        self._answer(file.read_bytes(), ETag=f'"{_digest(file)}"', X_Repo_Commit=SHA)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.requests.append(f"POST {path}")
        if path == "/api/repos/create":
            given = json.loads(body)
            repo = "/".join(filter(None, (given.get("organization") or "me", given["name"])))
            (self.root / repo).mkdir(parents=True, exist_ok=True)
            self._answer({"url": f"http://{self.headers['Host']}/{repo}"})
        elif "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in path:
            repo = "/".join(path.strip("/").split("/")[2:4])
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    target = self.root / repo / entry["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(entry["value"]["content"]))
            address = f"http://{self.headers['Host']}/{repo}/commit/{SHA}"
            self._answer({"commitUrl": address, "commitOid": SHA})
        else:
            self._answer({"errors": [], "warnings": []})


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def small_hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub whose repositories are folders ``root/user/name``, and the requests it got."""
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"root": root, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
