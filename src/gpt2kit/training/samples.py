"""What the model writes while it learns: the user's own prompts, continued after each validation."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from gpt2kit import files
from gpt2kit.checkpoint import validation
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.errors import UserError, refuse
from gpt2kit.generation.generator import Generator
from gpt2kit.generation.options import GenerationOptions, generation_problems
from gpt2kit.model import finetuning
from gpt2kit.runs import folder
from gpt2kit.training import loggers
from gpt2kit.training.distributed import FSDP
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.run_state import datamodule_of, epochs, gpt2_of

_HEAD = "# Samples\n\nThe same prompts and the same seed each time, continued by the weights of that step.\n"
SHARDED_PROBLEM = "trainer.callbacks TextSamples: does not work with sharded weights. Leave it out"
_SHOWN = 60


class TextSamples(Callback):
    """After each validation, continues prompts with the current weights: in samples.md of the run's folder, and as
    text in TensorBoard, W&B or MLflow. The training goes on as if it were not there, to the last bit.

    Args:
        prompts: what to go on from, in any script; an empty one begins a document.
        max_new_tokens: of each text.
        temperature: 0 takes the likeliest token each time; 1 draws from the model's own probabilities.
        top_k: draw among so many of the likeliest tokens; 0: among all.
        top_p: draw among the likeliest tokens that have this probability together.
        num_samples: texts for each prompt.
        seed: of the draws; the same at each validation, so that texts differ by the weights alone.
    """

    def __init__(
        self,
        prompts: list[str] | None = None,
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        num_samples: int = 1,
        seed: int = 1,
    ) -> None:
        self.prompts = [""] if prompts is None else prompts
        self.options = GenerationOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            num_samples=num_samples,
            max_new_tokens=max_new_tokens,
        )
        refuse([problem.replace("--", "TextSamples.") for problem in generation_problems(self.options)])
        self._noted: set[str] = set()
        self._folder: str | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDP):
            raise UserError(SHARDED_PROBLEM)
        self._folder = None if getattr(trainer, "fast_dev_run", False) else trainer.log_dir  # asks all ranks

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != TrainerFn.FITTING:
            return
        with isolate_rng():
            texts = self.write(gpt2_of(trainer), datamodule_of(trainer).tokenizer)
        section = told(self.prompts, texts, trainer.global_step, epochs(trainer), _figure(trainer, "val_bpb"))
        if self._folder is not None:
            append(Path(self._folder) / folder.SAMPLES, trainer.global_step, section)
        loggers.write_text(trainer.loggers, "samples", section, trainer.global_step)

    def write(self, gpt2: GPT2Module, tokenizer: Any) -> list[list[str]]:
        """The texts of each prompt, the prompt at the beginning of each."""
        opened = LoadedCheckpoint(Path(), gpt2.shape, plain_state(gpt2.state_dict()), tokenizer, {})
        texts = [[prompt] * self.options.num_samples for prompt in self.prompts]
        for chunk in Generator(opened, note=self._note).generate(self.prompts, self.options):
            texts[chunk.prompt][chunk.sample] += chunk.text
        return texts

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            print(f"note   samples: {text}", file=sys.stderr)


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options of a TextSamples."""
    try:
        TextSamples(**options)
    except UserError as error:
        return [str(error)]
    return []


def plain_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a GPT2Module by GPT-2's own names. None is copied but those that LoRA adds to."""
    return validation.model_state(finetuning.merge_lora(state))


def told(prompts: Sequence[str], texts: Sequence[Sequence[str]], step: int, epoch: float, bits: float | None) -> str:
    """A section of samples.md. Texts are indented, so that nothing in them is taken for Markdown."""
    figure = "" if bits is None else f", {bits:.4f} bits per byte"
    lines = [f"## step {step}, epoch {epoch:.2f}{figure}", ""]
    for prompt, some in zip(prompts, texts, strict=True):
        lines += [f"Prompt: {_code(prompt)}" if prompt else "No prompt", ""]
        for text in some:
            lines += [*(f"    {line}" for line in _lines(text)), ""]
            if len(some) > 1:
                lines += ["—", ""]
    return "\n".join(lines)


def append(path: Path, step: int, section: str) -> None:
    """Write a section behind those of earlier steps; later ones are of a way that a resumed run has not taken."""
    known = path.read_text(encoding="utf-8") if path.is_file() else _HEAD
    later = next((found.start() for found in folder.SECTION.finditer(known) if int(found[1]) >= step), len(known))
    files.write_text(path, f"{known[:later].rstrip()}\n\n{section}")


def _lines(text: str) -> list[str]:
    """Lines of a text; other characters that end lines, and controls, are shown as numbers."""
    return ["".join(map(_visible, line)) for line in text.split("\n")]


def _visible(character: str) -> str:
    hidden = (ord(character) < 32 and character != "\t") or character in "\x7f\x85\u2028\u2029"
    return f"<U+{ord(character):04X}>" if hidden else character


def _code(text: str) -> str:
    """A prompt as one line of code."""
    short = "".join(map(_visible, text.replace("\n", "↵")))
    short = short if len(short) <= _SHOWN else short[: _SHOWN - 1] + "…"
    mark = "`" * (max((len(run) for run in re.findall("`+", short)), default=0) + 1)
    return f"{mark}{short}{mark}" if not short.startswith("`") and not short.endswith("`") else f"{mark} {short} {mark}"


def _figure(trainer: pl.Trainer, name: str) -> float | None:
    found = trainer.callback_metrics.get(name)
    return None if found is None else float(found)
