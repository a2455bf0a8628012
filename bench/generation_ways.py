"""The ways of generation that bench/generate.py compares. Each is greedy and ignores the end of a document."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CompileConfig, GPT2LMHeadModel

from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import UserError
from gpt2kit.export import gguf as gguf_file
from gpt2kit.export import huggingface
from gpt2kit.generation.decoder import Decoder, TokenSequence
from gpt2kit.generation.options import SamplingOptions
from gpt2kit.model.config import GGUFType
from gpt2kit.model.inference import InferenceGPT2
from gpt2kit.tokenization.tokenizer import EOS

GREEDY = SamplingOptions(temperature=0.0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Task:
    """What every way generates."""

    opened: LoadedCheckpoint
    folder: Path  # the exported model; also for the files of other programs
    prompt: list[int]
    tokens: int
    threads: int
    node_modules: Path | None


@dataclass(frozen=True)
class Turn:
    """The new ids of each text, and the seconds to the first and the last token."""

    rows: list[list[int]]
    first: float
    total: float


Way = Callable[[int], Turn]  # generates this number of texts together


def placeholder_tokenizer(size: int) -> Tokenizer:
    """Return a byte-level tokenizer with `size` tokens: GGUF and CTranslate2 require one, though only ids are used."""
    tokens = [EOS, "a", "b", "ab", *sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"a", "b"})]
    tokens += [f"unused{i}" for i in range(size)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens[:size])}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def use_gpt2kit(task: Task, dtype: torch.dtype) -> Way:
    gpt2 = InferenceGPT2(task.opened.shape, task.opened.state, DEVICE, dtype)

    def generate(batch: int) -> Turn:
        begin = time.perf_counter()
        sequences = [TokenSequence(task.prompt, sample) for sample in range(batch)]
        loop = Decoder(gpt2, sequences, GREEDY, eos=-1)
        loop.step()
        first = time.perf_counter() - begin
        for _ in range(task.tokens - 1):
            loop.step()
        return Turn([sequence.new for sequence in sequences], first, time.perf_counter() - begin)

    return generate


def use_transformers(task: Task, dtype: torch.dtype = torch.float32, is_compiled: bool = False, **options: Any) -> Way:
    gpt2 = GPT2LMHeadModel.from_pretrained(task.folder, dtype=dtype).to(DEVICE)
    if is_compiled:
        options |= {"cache_implementation": "static", "compile_config": CompileConfig(dynamic=False)}
        options["compile_config"]._compile_all_devices = True  # also on a CPU

    def generate(batch: int) -> Turn:
        times: list[float] = []
        begin = time.perf_counter()
        ids = torch.tensor([task.prompt] * batch, device=DEVICE)
        result = gpt2.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=task.tokens,
            do_sample=False,
            eos_token_id=None,
            stopping_criteria=[lambda ids, scores: bool(times.append(time.perf_counter()))],
            **options,
        )
        rows = result[:, len(task.prompt) :].tolist()
        return Turn(rows, times[0] - begin, time.perf_counter() - begin)

    return generate


def use_llama(task: Task, kind: GGUFType) -> Way:
    """Generate in a process of its own, with a float32 cache for the float32 model, else llama.cpp's default."""
    if not (shutil.which("node") and task.node_modules and (task.node_modules / "node-llama-cpp").is_dir()):
        raise UserError(
            "needs Node.js 20; npm install --prefix DIR node-llama-cpp@3.22.1; --node_modules DIR/node_modules"
        )
    path = task.folder / f"{kind}.gguf"
    write_gguf(path, task.opened, kind)
    options = {"file": str(path), "cache": "F32" if kind == "f32" else "F16"}
    options |= {"prompt": task.prompt, "tokens": task.tokens, "threads": task.threads}
    command = ["node", str(ROOT / "bench/llama_generate.mjs"), str(task.node_modules), json.dumps(options)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def generate(batch: int) -> Turn:
        print(batch, file=process.stdin)
        return Turn(**json.loads(process.stdout.readline()))

    return generate


def write_gguf(path: Path, opened: LoadedCheckpoint, kind: GGUFType) -> None:
    state = huggingface.round_weights(opened, "float32")
    gguf_file.write(path, opened.shape, state, opened.tokenizer, "benchmark", kind)


def use_ctranslate2(task: Task, kind: str) -> Way:
    if not importlib.util.find_spec("ctranslate2"):
        raise UserError("needs pip install ctranslate2==4.8.5")
    import ctranslate2

    folder = str(task.folder / f"ctranslate2_{kind}")
    ctranslate2.converters.TransformersConverter(str(task.folder)).convert(folder, quantization=kind)
    generator = ctranslate2.Generator(folder, compute_type=kind, intra_threads=task.threads)
    prompt = [task.opened.tokenizer.id_to_token(i) for i in task.prompt]

    def generate(batch: int) -> Turn:
        times: list[float] = []
        begin = time.perf_counter()
        results = generator.generate_batch(
            [prompt] * batch,
            max_length=task.tokens,
            end_token=[],
            include_prompt_in_result=False,
            callback=lambda step: bool(times.append(time.perf_counter())),
        )
        return Turn([result.sequences_ids[0] for result in results], times[0] - begin, time.perf_counter() - begin)

    return generate


WAYS: dict[str, Callable[[Task], Way]] = {
    "gpt2kit": partial(use_gpt2kit, dtype=torch.float32),
    "gpt2kit_bf16": partial(use_gpt2kit, dtype=torch.bfloat16),
    "transformers": use_transformers,
    "transformers_bf16": partial(use_transformers, dtype=torch.bfloat16),
    "transformers_compiled": partial(use_transformers, is_compiled=True),
    "llama_f32": partial(use_llama, kind="f32"),
    "llama_f16": partial(use_llama, kind="f16"),
    "llama_q8_0": partial(use_llama, kind="q8_0"),
    "ctranslate2": partial(use_ctranslate2, kind="float32"),
    "ctranslate2_int8": partial(use_ctranslate2, kind="int8"),
    "no_cache": partial(use_transformers, use_cache=False),
}
