"""An exported folder in another program; tests/proofs/prove_clients.py has more programs and kinds of tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from helpers import Outcome, Run

from gpt2kit.cli import export, generate, parser

PROMPTS = ["the quick", "number 7", "good morning fox"]
TOKENS = 5


def test_the_pipeline_of_transformers_continues_prompts_as_generate_does(
    run: Run, tmp_path: Path, reload_in_process: None, call: Callable[..., Outcome]
) -> None:
    from transformers import pipeline

    export.export(str(run.folder), tmp_path / "model")
    prompts = [argument for prompt in PROMPTS for argument in ("--prompt", prompt)]
    greedy = ["--temperature", 0, "--max_new_tokens", TOKENS, "--no_token_healing", "--json"]
    code, out, err = call(lambda argv: parser.run(generate.generate, argv), run.folder, *prompts, *greedy)
    assert code == 0, err
    expected = [json.loads(line)["text"] for line in out.splitlines()]
    generator = pipeline("text-generation", model=str(tmp_path / "model"), device="cpu")
    settings = {"do_sample": False, "max_new_tokens": TOKENS, "return_full_text": False}
    texts = [generator(prompt, **settings)[0]["generated_text"] for prompt in PROMPTS]
    assert texts == expected and len(set(texts)) > 1
