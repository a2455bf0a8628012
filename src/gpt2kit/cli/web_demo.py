"""Implements `web_demo.py`: generate text with trained models on a page in the browser."""

from __future__ import annotations

from gpt2kit.generation.options import Precision


def serve(
    ckpt_path: list[str],
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: str | None = None,
    at_once: int = 2,
    precision: Precision = "auto",
) -> None:
    """Generate text with trained models on a page in the browser.

    Args:
        ckpt_path: .ckpt files, run folders, folders of runs, or Hugging Face folders; may be given several times.
        host: the address to listen at; 127.0.0.1: this machine only; 0.0.0.0: the whole network.
        port: the port to listen at.
        auth: NAME:PASSWORD that the page asks for.
        at_once: requests that are written at the same time; the others wait in a queue.
        precision: 32, bf16, 16; auto: 32 on a CPU, 16 bits on a GPU.
    """
    from gpt2kit.serving import app  # here, so that --help need not wait for torch

    app.serve(ckpt_path, host, port, auth, at_once, precision)
