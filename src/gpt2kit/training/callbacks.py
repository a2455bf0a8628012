"""Callbacks for `trainer.callbacks`: text samples after each validation, and exports of each epoch's weights."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.seed import isolate_rng
from tokenizers import Tokenizer
from torch import Tensor

from gpt2kit import files
from gpt2kit.checkpoint import validation
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.commands import command_name
from gpt2kit.errors import UserError, first_line, refuse
from gpt2kit.generation.generator import Generator
from gpt2kit.generation.options import GenerationOptions, generation_problems
from gpt2kit.model.config import Dtype
from gpt2kit.model.lora import lora_scale, merge_lora
from gpt2kit.runs import folder as run_folder
from gpt2kit.runs.pages import mark_hidden
from gpt2kit.tokenization.tokenizer import find_eos
from gpt2kit.training import loggers, run_state
from gpt2kit.training.checkpointing import ExactResume
from gpt2kit.training.distributed import FSDP
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.run_state import datamodule_of, epochs_done, gpt2_of, stage_steps

logger = logging.getLogger(__name__)

SHARDED_PROBLEM = "trainer.callbacks TextSamples: does not work with sharded weights. Omit it"
# The subfolder of a run's folder that contains the exports.
EXPORTS = "exports"
_HEADER = "# Samples\n\nThe same prompts and the same seed each time, continued by the weights of that step.\n"
# The longest prompt that a section shows in full, in characters.
_MAX_PROMPT = 60


class TextSamples(Callback):
    """Continues prompts with the current weights after each validation. The texts are written to samples.md in the
    run's folder and to TensorBoard, W&B or MLflow. Training is not affected: the weights are bit-identical with and
    without it.

    Args:
        prompts: Text to continue; an empty prompt is the start of a document. Default: an empty prompt, or a line break
            if the vocabulary has no end-of-text token.
        max_new_tokens: Maximum number of tokens of each text.
        temperature: Lower is more conservative, higher more random, 0 is greedy.
        top_k: Sample from the k most likely tokens only. 0: off.
        top_p: Sample from the most likely tokens whose probabilities together reach top_p. 1: off.
        num_samples: Texts per prompt.
        seed: Random seed, the same at each validation, so that texts differ by the weights alone.
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
        self._notes: set[str] = set()
        self._folder: Path | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDP):
            raise UserError(SHARDED_PROBLEM)
        self._folder = _run_folder(trainer)
        if self.prompts == [""] and find_eos(datamodule_of(trainer).tokenizer) is None:
            self.prompts = ["\n"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != TrainerFn.FITTING:
            return
        step, bits = trainer.global_step, trainer.callback_metrics.get("val_bpb")
        try:
            with isolate_rng():
                texts = self.generate(gpt2_of(trainer), datamodule_of(trainer).tokenizer)
        except UserError as error:
            logger.info(f"samples: no text at step {step}: {error}")
            return
        section = format_section(self.prompts, texts, step, epochs_done(trainer), None if bits is None else float(bits))
        if self._folder is not None:
            append_section(self._folder / run_folder.SAMPLES, step, section)
        loggers.write_text(trainer.loggers, "samples", section, step)

    def generate(self, gpt2: GPT2Module, tokenizer: Tokenizer) -> list[list[str]]:
        """Return the texts of each prompt; a text includes its prompt."""
        state, metadata = plain_state(gpt2, gpt2.state_dict()), {"reader": {"loss_on": gpt2.has_mask}}
        source = LoadedCheckpoint(Path("current weights"), gpt2.shape, tokenizer, metadata, state=state)
        texts = [[prompt] * self.options.num_samples for prompt in self.prompts]
        for chunk in Generator(source, note=self._note).generate(self.prompts, self.options):
            texts[chunk.prompt][chunk.sample] += chunk.text
        return texts

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.add(text)
            logger.info(f"samples: {text}")


class EpochExports(Callback):
    """Writes `exports/epoch_N` in the run's folder at the end of each epoch, as export.py does: under a temporary
    name until a fresh process has loaded it and its logits agree. Training is not affected: the weights are
    bit-identical with and without it. If a folder cannot be written, a warning is printed and training continues.

    Args:
        every: Epochs between exports.
        dtype: The type of the exported weights.
    """

    def __init__(self, every: int = 1, dtype: Dtype = "float32") -> None:
        if every < 1:
            raise UserError(f"EpochExports.every {every}: must be at least 1")
        self.every, self.dtype = every, dtype
        self._folder: Path | None = None
        self._steps_per_epoch = 0
        self._first_step = -1  # the first step after the run was started or resumed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._folder = _run_folder(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        text = datamodule_of(trainer)
        self._steps_per_epoch = text.order(text.global_batch(trainer)).steps_per_epoch
        self._first_step = trainer.global_step
        if self._folder is not None and trainer.is_global_zero:
            for leftover in self._folder.glob(f"{EXPORTS}/.*"):  # of a killed process; this one holds the lock
                shutil.rmtree(leftover, ignore_errors=True)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:  # by now the last step is validated, but not yet saved
            self._between_steps(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._between_steps(trainer)

    def _between_steps(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        epoch, steps = divmod(stage_steps(trainer), self._steps_per_epoch)
        if self._folder is None or steps or not epoch or epoch % self.every:
            return
        target = self._folder / EXPORTS / f"epoch_{epoch}"
        # A run that resumes at the end of an epoch writes the folder only if it is missing because of a kill. After a
        # step that was just trained, an existing folder is replaced: the run went back to an earlier step, so the
        # weights may differ.
        if step == self._first_step and trainer.strategy.broadcast(target.is_dir()):
            return
        state = trainer.strategy.lightning_module_state_dict()  # a collective call: weights may be sharded
        if trainer.is_global_zero:
            self._export(trainer, target, {name: tensor.detach().cpu() for name, tensor in state.items()})

    def _export(self, trainer: pl.Trainer, target: Path, state: dict[str, Tensor]) -> None:
        from gpt2kit.export import card, huggingface  # here, so that trainer.py --help need not import transformers

        shape, tokenizer = gpt2_of(trainer).shape, datamodule_of(trainer).tokenizer
        try:
            with isolate_rng():
                metadata = run_state.describe(trainer, settings_of(trainer))
                state = plain_state(gpt2_of(trainer), state)
                source = LoadedCheckpoint(target, shape, tokenizer, metadata, state=state)
                details = card.Details(samples=card.generate_samples(source), run=self._folder)
                with huggingface.replacing_folder(target) as folder:
                    huggingface.write(source, folder, target.name, self.dtype, details=details)
                    huggingface.check(source, folder, self.dtype)
        except (OSError, RuntimeError, UserError) as error:  # torch reports a full disk as RuntimeError
            logger.warning(
                f"NOT EXPORTED, training continues: {target}: {first_line(error).rstrip('.')}. "
                f"Export a checkpoint later, with {command_name('export')}"
            )


def _run_folder(trainer: pl.Trainer) -> Path | None:
    """Return the run's folder, None if nothing is saved. A collective call."""
    folder = trainer.log_dir
    return None if folder is None or getattr(trainer, "fast_dev_run", False) else Path(folder)


def settings_of(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the resolved config of a run."""
    return next((callback.settings for callback in trainer.callbacks if isinstance(callback, ExactResume)), {})  # type: ignore[attr-defined]


def plain_state(gpt2: GPT2Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a GPT2Module under GPT-2's own names. Only those that LoRA adds to are copied."""
    scale = lora_scale(gpt2.lora_r, gpt2.lora_alpha)
    return validation.model_state(merge_lora(state, scale))


def format_section(
    prompts: Sequence[str], texts: Sequence[Sequence[str]], step: int, epoch: float, bits: float | None
) -> str:
    """Return a section of samples.md. Texts are indented, so that nothing in them is read as Markdown."""
    score = "" if bits is None else f", {bits:.4f} bits per byte"
    lines = [f"## step {step}, epoch {epoch:.2f}{score}", ""]
    for prompt, samples in zip(prompts, texts, strict=True):
        lines += [f"Prompt: {_format_prompt(prompt)}" if prompt else "No prompt", ""]
        for text in samples:
            lines += [*(f"    {line}" for line in mark_hidden(text).split("\n")), ""]
            if len(samples) > 1:
                lines += ["—", ""]
    return "\n".join(lines)


def append_section(path: Path, step: int, section: str) -> None:
    """Write a section after those of earlier steps; delete those from `step` on, which a resumed run replaces."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else _HEADER
    later = [match.start() for match in run_folder.SECTION.finditer(text) if int(match[1]) >= step]
    files.write_text(path, f"{text[: min(later, default=len(text))].rstrip()}\n\n{section}")


def _format_prompt(prompt: str) -> str:
    """Return a prompt as one line of Markdown code, enclosed in more backticks than any run of them in it."""
    line = mark_hidden(prompt).replace("\n", "↵")
    if len(line) > _MAX_PROMPT:
        line = line[: _MAX_PROMPT - 1] + "…"
    mark = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{mark}{space}{line}{space}{mark}"
