"""What a run prints when it ends: validation figures, the best checkpoint, a sample and the next commands.

Reads only the run's folder and the text, after training.
"""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.commands import command_name, is_script
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.errors import UserError
from gpt2kit.generation.generator import Generator
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.runs import folder as run_folder
from gpt2kit.runs.pages import mark_hidden
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.training.run_summary import Line

# Tokens of the sample, and of the beginning of a document that it continues.
_NEW_TOKENS, _PROMPT_TOKENS = 60, 8


def end_lines(run: Path, data: TextDataModule, has_sample: bool = True) -> list[Line]:
    """Return the lines of a run that has ended."""
    saved = paths.checkpoints(run)
    lines = _score_lines(run, saved)
    if not saved:
        return lines
    best, prompt, text = paths.best_of(saved)[0], "", ""
    with contextlib.suppress(Exception):  # a finished run must not fail because of its sample
        prompt = first_words(data)
        text = sample(best, prompt) if has_sample else ""
    commands = [command("test", run)] if data.files["test"] else []
    commands.append(command("generate", run, f"--prompt {_quote(prompt or 'The')}"))
    lines.append(("saved", f"{best}{' is the best checkpoint' if len(saved) > 1 else ''}"))
    return lines + _labelled("sample", mark_hidden(text and prompt + text).splitlines()) + _labelled("next", commands)


def stop_lines(run: Path) -> list[Line]:
    """Return the lines of a run that was stopped; none if it has nothing to resume from."""
    newest = next(iter(paths.checkpoints(run)), None)
    if newest is None:
        return []
    step = paths.step_of(newest)
    return [("saved", f"step {step:,}. Resume with: {command('train', run)}")]


def sample(path: Path, prompt: str) -> str:
    """Continue a prompt with the weights of a checkpoint; the same text each time."""
    options = GenerationOptions(max_new_tokens=_NEW_TOKENS)
    generator = Generator(checkpoint.open(path, verify=False), note=lambda note: None)
    return "".join(chunk.text for chunk in generator.generate([prompt], options))


def first_words(data: TextDataModule) -> str:
    """Return the first words of the validation text, else of the training text, on one line."""
    store = data.store("valid" if data.files["valid"] else "train")
    ids = store[1 : 1 + _PROMPT_TOKENS].tolist()  # the first token ends no document, but begins the first one
    eos = tokenizers.find_eos(data.tokenizer)
    ids = ids[: ids.index(eos)] if eos in ids else ids
    line = data.tokenizer.decode(ids).strip().split("\n")[0].rstrip("\N{REPLACEMENT CHARACTER}")
    return line.rpartition(" ")[0] or line  # the last word may be cut off


def command(verb: str, run: Path, options: str = "") -> str:
    """Return a command for a run, in the form in which this program was started."""
    is_newest = any(run.samefile(newest) for newest in paths.runs()[:1])
    name = "last" if is_newest else shlex.quote(str(run))
    program = f"python {command_name(verb)}" if is_script() else command_name(verb)
    option = "--ckpt_path " if is_script() or verb == "train" else ""
    return f"{program} {option}{name} {options}".rstrip()


def _score_lines(run: Path, saved: list[Path]) -> list[Line]:
    """Return the last and the best validation of a run, with their steps. The best one is that of the checkpoint."""
    series = {}
    with contextlib.suppress(UserError):  # saving or logging is off, or the log is damaged
        series = run_folder.read_metrics(run)
    losses, bits = series.get("val_loss", {}), series.get("val_bpb", {})
    if not losses:
        return []
    best = paths.step_of(paths.best_of(saved)[0]) if saved else 0
    steps = {"last": max(losses), "best": best if best in losses else min(losses, key=lambda step: losses[step])}
    texts = {name.partition("/")[2]: values for name, values in series.items() if name.startswith("val_bpb/")}
    lines = []
    for label, step in steps.items():
        figures = f"val_bpb {bits.get(step, float('nan')):.4f}, val_loss {losses[step]:.4f}"
        named = ", ".join(f"{name} {values[step]:.4f}" for name, values in texts.items() if step in values)
        lines.append((label, f"step {step:,}: {figures}" + (f"; val_bpb of {named}" if named else "")))
    return lines


def _labelled(label: str, texts: list[str]) -> list[Line]:
    """Return lines with a label on the first one."""
    return [(label if number == 0 else "", text) for number, text in enumerate(texts)]


def _quote(prompt: str) -> str:
    """Quote an argument for a shell; double quotes work in every shell."""
    return shlex.quote(prompt) if set(prompt) & set('"\\$`!%') else f'"{prompt}"'
