"""Implements `gpt2kit demo`: generate text with trained models on a page in the browser."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path

from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.cli.generate import read_prompts_file
from gpt2kit.cli.parser import Positional
from gpt2kit.errors import Problems, UserError, refuse
from gpt2kit.generation.options import Precision

logger = logging.getLogger(__name__)


def serve(
    ckpt_path: Positional[list[str]],
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: str | None = None,
    max_concurrency: int = 2,
    allow_frame: bool = False,
    allow_download: bool = False,
    prompts_file: Path | None = None,
    newline_after_prompt: bool = False,
    precision: Precision = "auto",
    foreign: ForeignOptions = ForeignOptions(),
) -> None:
    """Generate text with trained models on a page in the browser.

    Args:
        ckpt_path: `last` (the newest run), names or folders of runs, folders of several runs, .ckpt files, Hugging Face
            folders, adapters, or checkpoints of nanoGPT with --tokenizer.
        host: Address to listen on. 127.0.0.1: this machine only; 0.0.0.0: the whole network.
        port: Port to listen on.
        auth: NAME:PASSWORD that users must enter.
        max_concurrency: Requests that are generated at the same time; others wait in a queue.
        allow_frame: Let other sites show the page in a frame, as a Hugging Face Space does.
        allow_download: Add a button that hands out the selected model, with its weights, as one HTML file, to everyone
            who can open the page: on 127.0.0.1 also to other users of this machine.
        prompts_file: A file with one example prompt per line, for the page. Default: the prompts of the run's samples.
        newline_after_prompt: End each prompt of the file with a line break, so that the text begins on the next line.
        precision: Precision of weights and arithmetic: 32, bf16 or 16. auto: 32 on a CPU, 16 bits on a GPU.
    """
    name, colon, password = (auth or "").partition(":")
    problems = Problems()
    problems.check(not auth or (name and colon and password), "--auth: must be NAME:PASSWORD")
    problems.check(0 < port < 65536, f"--port {port}: must be from 1 to 65535")
    problems.check(max_concurrency >= 1, f"--max_concurrency {max_concurrency}: must be at least 1")
    needs_file = "--newline_after_prompt: needs --prompts_file, whose prompts it ends with a line break"
    problems.check(prompts_file or not newline_after_prompt, needs_file)
    refuse(problems.messages)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the web page needs Gradio. Run pip install 'gradio>=6,<7'")
    from gpt2kit.serving import app  # here, so that --help does not import torch
    from gpt2kit.serving.models import MAX_CHARACTERS, Service, find_models

    examples = read_examples(prompts_file, newline_after_prompt, MAX_CHARACTERS) if prompts_file else []
    models = find_models(ckpt_path)
    app.check_port(host, port)
    service = Service(models, precision, examples, foreign, allow_download)
    application = app.app(service, host, (name, password) if auth else None, max_concurrency, allow_frame)
    service.load()
    from gpt2kit.serving.server import make_server

    address = f"[{host}]" if ":" in host else host
    count = "1 model" if len(models) == 1 else f"{len(models)} models"
    print(f"http://{address}:{port}  {count}; Ctrl-C stops it", file=sys.stderr)
    if not app.is_loopback(host) and not auth:
        logger.info(f"anyone who can reach {host} can use it. Require a password with --auth NAME:PASSWORD")
    make_server(application, host, port).run()


def read_examples(prompts_file: Path, newline_after_prompt: bool, max_characters: int) -> list[str]:
    """Return the example prompts of a file."""
    end = "\n" if newline_after_prompt else ""
    examples = [prompt.text + end for prompt in read_prompts_file(prompts_file, "prompt")]
    if any(len(example) > max_characters for example in examples):
        raise UserError(
            f"--prompts_file {prompts_file}: a prompt has more than {max_characters:,} characters. Shorten it"
        )
    return examples
