"""Models of the web demo as HTML files: each is written once, into a folder that is removed when the demo stops."""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpt2kit.errors import MachineError, UserError
from gpt2kit.export import html, html_tokenizer
from gpt2kit.serving.models import Service

ROUTE = "/model.html"
_MAX_NAME = 60  # characters; a file name has at most 255 bytes


class Downloads:
    """The files of the models of a service. A file has the weights that the service has loaded."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: dict[str, Path] = {}
        self._numbers = itertools.count()

    def prepare(self, name: str) -> Iterator[int]:
        """Write the file of a model, unless it exists; yield the number of characters after each part."""
        opened = self._service.checkpoint(name)
        if self.ready(name):
            return
        if problems := html_tokenizer.html_problems(opened.tokenizer):
            raise UserError(f"{name}: {'; '.join(problems)}")
        path = self._new_path()
        try:
            with path.open("w", encoding="utf-8", newline="\n") as file:
                for part in html.parts(opened, "int8", name):
                    yield file.write(part)
            self._files[name] = path
        except OSError as error:
            raise MachineError(f"{name}: the page cannot be written ({error.strerror}). Free some space") from None
        finally:
            if self._files.get(name) != path:  # an error, or the client has left
                path.unlink(missing_ok=True)

    def _new_path(self) -> Path:
        if self._folder is None or not Path(self._folder.name).is_dir():  # some systems empty /tmp
            self._folder = tempfile.TemporaryDirectory(prefix="gpt2kit-", ignore_cleanup_errors=True)
        return Path(self._folder.name, f"{next(self._numbers)}.html")

    def ready(self, name: str) -> Path | None:
        """Return the file of a model; None if it is not ready."""
        path = self._files.get(name)
        return path if path and path.is_file() else None

    async def respond(self, name: str = "") -> Any:
        """Answer a request for the file of a model. 404: it is not ready."""
        from starlette.responses import FileResponse, JSONResponse

        path = self.ready(name)
        if path is None:
            return JSONResponse({"detail": "no such page, or not ready"}, 404)
        headers = {
            "content-disposition": content_disposition(file_name(name)),
            # A browser that showed the file nevertheless would not run it with the rights of the demo.
            "content-security-policy": "sandbox",
            "cache-control": "private, no-store",
        }
        return FileResponse(path, headers=headers, media_type="application/octet-stream")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Remove the files when the server stops."""
        try:
            yield
        finally:
            self._files.clear()
            if self._folder:
                self._folder.cleanup()


def file_name(name: str) -> str:
    """Return the name of a model's file: valid on every system, and without characters that are not visible."""
    stem = "".join(letter if letter.isprintable() and letter not in '<>:"/\\|?*' else "_" for letter in name)
    return f"{stem[:_MAX_NAME].strip(' .') or 'model'}.html"


def link(name: str) -> str:
    """Return the address of a model's file, relative to the page."""
    return f"{ROUTE.removeprefix('/')}?name={quote(name, safe='')}"


def content_disposition(name: str) -> str:
    """Return the header that makes a browser save a file under a name (RFC 6266), also one that is not ASCII."""
    ascii_name = re.sub(r"[^A-Za-z0-9 ._-]", "_", name)
    return f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(name, safe='')}"
