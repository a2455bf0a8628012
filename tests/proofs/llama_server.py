"""The HTTP server of llama.cpp, that of `llama-server`, in the Python package xllamacpp, which embeds it.

As a script it needs xllamacpp and nothing else: python llama_server.py FILE CONTEXT
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main(file: str, context: str) -> None:
    """Serve a GGUF file at a free port, print the address, and end when the input does."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.port = file, int(context), 0
    params.n_gpu_layers = 0
    # One request at a time, computed in float32 from the cache on: greedy text is that of other programs.
    params.n_parallel = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


@contextlib.contextmanager
def serving(python: str | Path, file: Path, context: int) -> Iterator[str]:
    """Run the server with an interpreter that has xllamacpp, and yield its address."""
    with tempfile.TemporaryFile("w+") as log:
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        server = subprocess.Popen([python, __file__, str(file), str(context)], env=environment, text=True, **pipes)
        try:
            address = next((line.strip() for line in server.stdout if line.startswith("http")), None)
            if address is None:
                log.seek(0)
                raise RuntimeError(f"llama.cpp does not serve {file}: {log.read()[-1500:]}")
            yield address
        finally:
            server.terminate()
            server.communicate(timeout=60)


def ask(address: str, path: str, **request: object) -> dict[str, Any]:
    """Return the answer to a request in JSON."""
    body = urllib.request.Request(
        f"{address}/{path}", json.dumps(request).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(body, timeout=60) as answer:
        return dict(json.load(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
