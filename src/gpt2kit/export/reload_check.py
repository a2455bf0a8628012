"""What anybody does with an exported folder: load it with transformers alone, and write.

`export` runs this file in a process of its own, outside the package, so that nothing but the folder can help.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def reload(folder: str, ids: list[int], prompt: int, text: str) -> dict[str, Any]:
    """Logits of `ids`, a greedy continuation of their first `prompt`, the ids of `text`, what a pipeline writes; also
    the logits of model.gguf, if there is one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(tokens).logits[0]
        greedy = model.generate(
            tokens[:, :prompt],
            attention_mask=torch.ones(1, prompt, dtype=torch.long),
            do_sample=False,
            max_new_tokens=len(ids) - prompt,
            eos_token_id=None,
        )
    gguf = None
    if (Path(folder) / "model.gguf").is_file():
        # The config comes from the folder: transformers knows no other context than 1024 for a GPT-2 in this format.
        told_by = model.config
        gguf = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file="model.gguf", config=told_by, dtype=torch.float32, trust_remote_code=False
        )
        with torch.inference_mode():
            gguf = gguf(tokens).logits[0]
    writer = pipeline("text-generation", model=folder)
    return {
        "logits": logits,
        "gguf": gguf,
        "greedy": greedy[0].tolist(),
        "ids": tokenizer(text, add_special_tokens=False)["input_ids"],
        "tied": model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr(),
        "lacking": sorted(map(str, [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]])),
        "written": writer("a", return_full_text=False)[0]["generated_text"],
    }


def main(asked: str, answer: str) -> None:
    """Read the arguments of `reload` from one file, write its answer to another."""
    import torch

    torch.save(reload(**json.loads(Path(asked).read_text(encoding="utf-8"))), answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
