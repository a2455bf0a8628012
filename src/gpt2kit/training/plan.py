"""Prints what a run is: a summary when it starts, more under `--plan`; and checks the text and tokenizer of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

from gpt2kit.data.datamodule import TOKENIZER, TextDataModule
from gpt2kit.errors import UserError
from gpt2kit.text.reader import Reader, Split
from gpt2kit.text.sources import find_files
from gpt2kit.tokenization.train import resolve
from gpt2kit.training.run_info import RunInfo

# A label, which is empty if it is that of the line before, and a text.
Line = tuple[str, str]
_BARS = "▁▂▃▄▅▆▇█"


def summary_lines(info: RunInfo) -> list[Line]:
    """Return the lines that a run prints when it starts."""
    splits = {name: split for name, split in info["text"]["splits"].items() if name != "test"}
    resumed = info["start"]["resumed"]
    return [
        ("text", " | ".join(_format_split(*split) for split in splits.items())),
        ("model", _format_model(info["model"])),
        ("run", _format_run(info["run"])),
        *_device_lines(info),
        ("folder", info["folder"] or "none: nothing is saved"),
        *([("resume", resumed)] if resumed else []),
        *[("start", note) for note in info["start"]["begun"]],
        *[("note", note) for note in info["text"]["notes"]],
    ]


def plan_lines(info: RunInfo) -> list[Line]:
    """Return the lines of `--plan`."""
    text, run, shape = info["text"], info["run"], info["model"]["shape"]
    rates = " and ".join(dict.fromkeys(f"{rate:g}" for rate in run["learning_rates"]))
    resumed = info["start"]["resumed"]
    return [
        *[("text", _format_split(*split) + _format_details(split[1])) for split in text["splits"].items()],
        ("", f"vocabulary of {text['vocabulary']:,}"),
        *[("note", note) for note in text["notes"]],
        *([("resume", f"{resumed}, {run['done']:,} steps done")] if resumed else []),
        ("model", _format_model(info["model"])),
        (
            "",
            f"{shape['n_layer']} layers, {shape['n_head']} heads, width {shape['n_embd']}, "
            f"context {shape['n_positions']}, dropout {shape['resid_pdrop']:g}",
        ),
        *[("start", note) for note in info["start"]["begun"]],
        ("run", _format_run(run)),
        ("", compare_sizes(info)),
        ("", f"{run['optimizer']}, learning rate {rates}, {run['schedule_name']}: {_draw_schedule(run['schedule'])}"),
        *memory_lines(info["memory"]),
        *_time_lines(info),
        *_device_lines(info),
        *_file_lines(info["files"]),
    ]


def print_lines(lines: list[Line], file: Any) -> None:
    """Print lines in two columns."""
    for label, text in lines:
        print(f"{label:<7}{text}", file=file)


def _format_split(name: str, split: RunInfo) -> str:
    return f"{name} {split['documents']:,} documents, {split['bytes']:,} bytes, {split['tokens']:,} tokens"


def _format_details(split: RunInfo) -> str:
    ratio = f", {split['bytes'] / split['tokens']:.2f} bytes per token" if split["tokens"] else ""
    repeated = f", {split['duplicates']:,} documents repeat another" if split["duplicates"] else ""
    return ratio + repeated


def _format_model(model: RunInfo) -> str:
    return f"{model['parameters']:,} parameters, {model['embeddings'] / model['parameters']:.0%} of them embeddings"


def _format_run(run: RunInfo) -> str:
    interval = run["validation_every"]
    no_validation = "no validation (no valid_files or valid_fraction)"
    validation = f"validation every {interval:,} steps" if interval else no_validation
    steps, epoch = f"steps of {run['global_batch']} x {run['block_size']} tokens", f"{run['steps_per_epoch']:,} steps"
    if run["steps"] is None:
        return f"until the time is over, in {steps}; an epoch has {epoch}; {validation}"
    return f"{run['steps']:,} {steps} = {run['epochs']:.2f} epochs of {epoch}; {validation}"


def _device_lines(info: RunInfo) -> list[Line]:
    device, choices = info["start"]["device"], info["start"]["chosen"]
    lines = [("device", f"{device['count']} x {device['kind']} ({device['name']})")]
    return lines + [("auto", f"{name}: {value} ({reason})") for name, (value, reason) in choices.items()]


def compare_sizes(info: RunInfo) -> str:
    """Return how the size of the model, the text and the run fit.

    About 20 tokens per parameter are the best use of a compute budget (Hoffmann et al., 2022). Up to about four epochs,
    repeated text is almost as good as new text (Muennighoff et al., 2023).
    """
    tokens, epochs, parameters = info["run"]["tokens"], info["run"]["epochs"], info["model"]["parameters"]
    if epochs is None:
        return "the number of tokens depends on the speed"
    per_parameter = tokens / parameters
    unique_per_parameter = info["text"]["splits"]["train"]["tokens"] / parameters
    if unique_per_parameter < 1 and epochs > 4:
        advice = "the model is large for this text and will memorize it. Use a smaller one, dropout 0.1, or more text"
    elif unique_per_parameter < 1:
        advice = "the model is large for this text. Stop when val_loss rises, and use dropout 0.1"
    elif per_parameter < 5:
        advice = "the run is short for this model. A smaller model, or more steps, would reach a lower loss"
    elif unique_per_parameter > 100:
        advice = "the model is small for this text. A larger one would learn more from it"
    else:
        advice = "the sizes of model and text fit"
    unique = min(unique_per_parameter, per_parameter)
    return f"{tokens:,} tokens, {per_parameter:.1f} per parameter ({unique:.1f} of them different): {advice}"


def _draw_schedule(factors: list[float]) -> str:
    highest = len(_BARS) - 1
    return "".join(_BARS[min(round(factor * highest), highest)] for factor in factors)


def memory_lines(memory: RunInfo) -> list[Line]:
    """Return the lines about memory, with advice if it does not fit."""
    parts = memory["parts"]
    available = f" of {_format_bytes(memory['free'])} free ({_format_bytes(memory['machine'])} in all)"
    lines = [
        ("memory", f"about {_format_bytes(memory['total'])}{available if memory['machine'] else ''}"),
        ("", ", ".join(f"{part} {_format_bytes(size)}" for part, size in parts.items() if size)),
    ]
    if memory["free"] is not None and memory["total"] > memory["free"]:
        largest = max(parts, key=lambda part: parts[part])
        advice = "use a smaller data.batch_size (with data.global_batch_size), or model.gradient_checkpointing true"
        if largest in ("weights", "gradients", "optimizer state"):
            advice = "use a smaller model, or several devices with trainer.strategy fsdp"
        lines.append(("", f"MORE THAN IS FREE, most of it {largest}: {advice}"))
    return lines


def _time_lines(info: RunInfo) -> list[Line]:
    speed, max_time = info["speed"], info["run"]["max_time"]
    if "problem" in speed:
        return [("time", f"not measured: {speed['problem']}")]
    validations = f", {speed['validations']:,} validations of {speed['validation']:.3g} s"
    steps = f"{speed['left']:,} steps of {speed['step']:.3g} s{validations if speed['validations'] else ''}"
    lines = [("time", f"about {_format_time(speed['seconds'])}: {steps}")]
    if max_time is not None and max_time < speed["seconds"] and info["run"]["steps"] is not None:
        lines.append(("", f"trainer.max_time stops it after {_format_time(max_time)}, before its last step"))
    memory = f"; {_format_bytes(speed['memory'])} of memory at most" if speed["memory"] else ""
    rate = f"{speed['tokens_per_s']:,.0f} tokens/s, MFU {speed['mfu']:.0%}{memory}"
    return [*lines, ("", f"measured over {speed['steps']} steps: {rate}")]


def _file_lines(files: RunInfo) -> list[Line]:
    if files["folder"] is None:
        return [("files", "none: nothing is saved")]
    peak = files["checkpoint"] * (files["kept"] + 1)
    checkpoints = f"checkpoints of {_format_bytes(files['checkpoint'])}, {files['kept']} kept"
    lines = [
        ("files", f"{files['folder']}: config.yaml, metrics.csv, TensorBoard events, status.json, start.json"),
        (
            "",
            f"{checkpoints}, {_format_bytes(peak)} during a save; {_format_bytes(files['free'])} free on the disk",
        ),
    ]
    if peak > files["free"]:
        lines.append(("", "MORE THAN IS FREE: make room, or use another trainer.default_root_dir"))
    return lines


def _format_bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _format_time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{timedelta(seconds=round(seconds))} (hours:minutes:seconds)"


def file_problems(options: Mapping[str, Any], has_initial_weights: bool) -> list[str]:
    """List what is invalid in the text files and the tokenizer that the data module's options name."""
    problems: list[str] = []
    for name in ("train_files", "valid_files", "test_files"):
        if files := options.get(name):
            problems += _problem_of(find_files, [files] if isinstance(files, str) else list(files))
    tokenizer = options.get("tokenizer") or (None if has_initial_weights else TOKENIZER)
    if isinstance(tokenizer, str):
        problems += _problem_of(resolve, tokenizer, [], Reader(), None, Path(str(options["cache_dir"])))
    return problems


def text_problems(data: TextDataModule, global_batch: int) -> list[str]:
    """List what is invalid in the text itself: each split is read."""
    splits: tuple[Split, ...] = get_args(Split)
    problems = [problem for split in splits if data.files[split] for problem in _problem_of(data.store, split)]
    return problems or _problem_of(data.order, global_batch)


def _problem_of(check: Callable[..., object], *args: object) -> list[str]:
    """Return the error that a check raises, as a list of one message or none."""
    try:
        check(*args)
    except UserError as error:
        return [str(error)]
    return []
