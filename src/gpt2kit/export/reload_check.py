"""Load an exported folder with transformers alone, and compute the results that `export` compares.

`export` runs this file in a separate process, from outside the package, so that the results depend on the folder alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def reload(folder: str, ids: list[int], prompt: int, text: str, adapter: str | None = None) -> dict[str, Any]:
    """Return the logits of `ids`, a greedy continuation of the first `prompt` ids, the ids of `text`, and those
    that a pipeline begins with; also the logits of model.gguf, if there is one.

    With `adapter`, the folder of one, return the logits of the model with it only."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokens = torch.tensor([ids])
    if adapter is not None:
        from peft import PeftModel

        with torch.inference_mode():
            return {"logits": PeftModel.from_pretrained(model, adapter)(tokens).logits[0]}
    with torch.inference_mode():
        logits = model(tokens).logits[0]
        greedy = tokens[:, :prompt]
        if len(ids) > prompt:  # a context of one token has no room for another
            greedy = model.generate(
                greedy,
                attention_mask=torch.ones(1, prompt, dtype=torch.long),
                do_sample=False,
                max_new_tokens=len(ids) - prompt,
                eos_token_id=None,
            )
    gguf_logits = None
    if (Path(folder) / "model.gguf").is_file():
        # With the config of the folder: without it, transformers assumes a context of 1024 for GPT-2 in this format.
        gguf_model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file="model.gguf", config=model.config, dtype=torch.float32, trust_remote_code=False
        )
        with torch.inference_mode():
            gguf_logits = gguf_model(tokens).logits[0]
    begin = "" if tokenizer.bos_token else text[:1] or "a"  # without that token, a text begins with a prompt
    (sample,) = pipeline("text-generation", model=folder)(begin, return_tensors=True, max_new_tokens=1)
    return {
        "logits": logits,
        "gguf": gguf_logits,
        "greedy": greedy[0].tolist(),
        "ids": tokenizer(text, add_special_tokens=False)["input_ids"],
        "tied": model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr(),
        "problems": sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]])),
        "begun": sample["generated_token_ids"][:-1],
    }


if __name__ == "__main__":
    import torch

    arguments, results = sys.argv[1:]
    torch.save(reload(**json.loads(arguments)), results)
