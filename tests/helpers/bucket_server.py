"""Serves buckets on loopback with the protocol of gs://; started by `buckets.serve`.

Where the emulator differs from the real service, and something here depends on it, this script adds
the real behaviour: downloads name the generation of an object, an upload with ifGenerationMatch=0
fails if the object exists, and uploaded bytes stay as they are. The bucket `denied` forbids
everything, and every second request to the bucket `flaky` fails.
"""

from __future__ import annotations

import http
import itertools
import json
import logging
import re
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects

BUCKETS = ("pod", "flaky", "denied")
_REQUESTS = itertools.count()
_read_data, _download = server._read_data, objects.download


def read_data(handler: Any, query: dict[str, list[str]]) -> Any:
    """Returns the body of a request, which may be asked for twice; keeps line ends in uploads."""
    if not hasattr(handler, "body"):
        content_type = handler.headers.get("Content-Type") or ""
        boundary = re.search(r"multipart/related.*boundary=[\"']?([^\"';]+)", content_type)
        if boundary is None:
            handler.body = _read_data(handler, query)
        else:
            raw = server._decode_raw_data(server._read_raw_data(handler), handler)
            _, meta, content, _ = raw.split(b"--" + boundary[1].encode(), 3)
            blank_line = re.search(rb"(\r?\n)\r?\n", content)
            header, content = content[: blank_line.start()], content[blank_line.end() :]
            kind = re.search(rb"(?i)content-type: *([^\r\n]+)", header)
            handler.body = {
                "meta": json.loads(re.search(rb"\{.*\}", meta, re.DOTALL)[0]),
                "content": content.removesuffix(blank_line[1]),
                "content-type": kind[1].decode() if kind else "application/octet-stream",
            }
    return handler.body


def download(request: Any, response: Any, storage: Any, *args: Any, **options: Any) -> None:
    """Names the generation in a header, as TensorStore requires."""
    _download(request, response, storage, *args, **options)
    try:
        file = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = file["generation"]
    except NotFound:
        pass


class Router(server.Router):
    """Answers with an error where a real bucket would; otherwise as the emulator."""

    def handle(self, method: str) -> None:
        error = self._error(method)
        if error is None:
            super().handle(method)
            return
        response = server.Response(self._request_handler)
        read_data(self._request_handler, {})
        response.status = error
        response.json({"error": {"code": error.value, "message": error.phrase}})
        response.close()

    def _error(self, method: str) -> http.HTTPStatus | None:
        url = urlparse(self._request_handler.path)
        query = parse_qs(url.query)
        matched = re.search(r"/b/([^/]+)(?:/o/([^/]+))?", url.path)
        if matched is None:
            return None
        if matched[1] == "denied":
            return http.HTTPStatus.FORBIDDEN
        if "/moveTo/" in url.path:
            return http.HTTPStatus.METHOD_NOT_ALLOWED  # the emulator's own answer is repeated
        if matched[1] == "flaky" and next(_REQUESTS) % 2:
            return http.HTTPStatus.SERVICE_UNAVAILABLE
        if method == "POST" and query.get("ifGenerationMatch") == ["0"]:
            body = read_data(self._request_handler, query)
            name = query["name"][0] if "name" in query else body["meta"]["name"]
            try:
                self._request_handler.storage.get_file_obj(matched[1], unquote(name))
            except NotFound:
                return None
            return http.HTTPStatus.PRECONDITION_FAILED
        return None


def main() -> None:
    """Serves until the process is killed; prints the port."""
    server.Router, server._read_data, objects.download = Router, read_data, download
    server.HANDLERS = tuple(
        (path, {m: download if h is _download else h for m, h in handlers.items()})
        for path, handlers in server.HANDLERS
    )
    logging.disable()  # objects that do not exist
    server.server.HTTPServer.handle_error = lambda *_: None  # clients that read no further
    emulator = server.Server("localhost", 0, in_memory=True)
    for bucket in BUCKETS:
        buckets.create_bucket(bucket, emulator._storage)
    emulator.start()
    print(emulator._api._httpd.server_address[1], flush=True)
    server.threading.Event().wait()


if __name__ == "__main__":
    main()
