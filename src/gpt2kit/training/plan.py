"""What a run would be, in words; and everything that is wrong with it, at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

from gpt2kit.data.datamodule import TOKENIZER, TextDataModule
from gpt2kit.errors import UserError
from gpt2kit.text.reader import Reader, Split
from gpt2kit.text.sources import find_files
from gpt2kit.tokenization.train import resolve
from gpt2kit.training.run_info import Facts

_BARS = "▁▂▃▄▅▆▇█"


def opening(facts: Facts) -> list[tuple[str, str]]:
    """The lines at the start of a run."""
    lines = [("text", " | ".join(_split_line(*item) for item in facts["text"]["splits"].items() if item[0] != "test"))]
    lines += [("model", _model_line(facts["model"])), ("run", _run_line(facts["run"])), *_device_lines(facts)]
    lines.append(("folder", facts["folder"] or "none: nothing is saved"))
    if facts["start"]["resumed"]:
        lines.append(("resume", facts["start"]["resumed"]))
    lines += [("start", told) for told in facts["start"]["begun"]]
    return lines + [("note", note) for note in facts["text"]["notes"]]


def whole(facts: Facts) -> list[tuple[str, str]]:
    """The lines of `--plan`."""
    text, run = facts["text"], facts["run"]
    lines = [("text", _split_line(*item) + _more_of_split(item[1])) for item in text["splits"].items()]
    lines.append(("", f"vocabulary of {text['vocabulary']:,}"))
    lines += [("note", note) for note in text["notes"]]
    if facts["start"]["resumed"]:
        lines.append(("resume", f"{facts['start']['resumed']}, {run['done']:,} steps done"))
    lines.append(("model", _model_line(facts["model"])))
    lines.append(("", _shape_line(facts["model"]["shape"])))
    lines += [("start", told) for told in facts["start"]["begun"]]
    lines.append(("run", _run_line(run)))
    lines.append(("", _suits(facts)))
    rates = " and ".join(dict.fromkeys(f"{rate:g}" for rate in run["learning_rates"]))
    lines.append(("", f"{run['optimizer']}, learning rate {rates}, {run['schedule_name']}: {_sketch(run['schedule'])}"))
    lines += _memory_lines(facts["memory"])
    lines += _time_lines(facts)
    lines += _device_lines(facts)
    lines += _file_lines(facts["files"])
    return lines


def show(lines: list[tuple[str, str]], file: Any) -> None:
    """Print them in two columns."""
    for name, line in lines:
        print(f"{name:<7}{line}", file=file)


def _split_line(split: str, found: Facts) -> str:
    return f"{split} {found['documents']:,} documents, {found['bytes']:,} bytes, {found['tokens']:,} tokens"


def _more_of_split(found: Facts) -> str:
    each = f", {found['bytes'] / found['tokens']:.2f} bytes per token" if found["tokens"] else ""
    twice = f", {found['duplicates']:,} documents repeat another" if found["duplicates"] else ""
    return each + twice


def _model_line(model: Facts) -> str:
    share = model["embeddings"] / model["parameters"]
    return f"{model['parameters']:,} parameters, {share:.0%} of them embeddings"


def _shape_line(shape: Facts) -> str:
    return (
        f"{shape['n_layer']} layers, {shape['n_head']} heads, {shape['n_embd']} wide, context {shape['n_positions']}, "
        f"dropout {shape['resid_pdrop']:g}"
    )


def _run_line(run: Facts) -> str:
    every = run["validation_every"]
    validation = f"validation every {every:,} steps" if every else "no valid_files or valid_share, so no validation"
    step = f"steps of {run['global_batch']} x {run['block_size']} tokens"
    if run["steps"] is None:
        return f"until the time is over, in {step}, {run['steps_per_epoch']:,} of them an epoch; {validation}"
    return f"{run['steps']:,} {step} = {run['epochs']:.2f} epochs of {run['steps_per_epoch']:,} steps; {validation}"


def _device_lines(facts: Facts) -> list[tuple[str, str]]:
    """What computes, and how, with the reasons."""
    device, chosen = facts["start"]["device"], facts["start"]["chosen"]
    lines = [("device", f"{device['count']} x {device['kind']} ({device['name']})")]
    return lines + [("auto", f"{name}: {value} ({why})") for name, (value, why) in chosen.items()]


def _suits(facts: Facts) -> str:
    """Whether the model's size suits the text, in a plain word. Some 20 tokens a parameter are the best use of a given
    amount of computing; up to about four epochs, repeated text teaches almost as much as new text."""
    if facts["run"]["epochs"] is None:
        return "how many tokens it will see depends on the pace"
    unique = facts["text"]["splits"]["train"]["tokens"]
    epochs, parameters = facts["run"]["epochs"], facts["model"]["parameters"]
    seen, owned = facts["run"]["tokens"] / parameters, unique / parameters
    told = f"{facts['run']['tokens']:,} tokens, {seen:.1f} per parameter ({min(owned, seen):.1f} of them different): "
    if owned < 1 and epochs > 4:
        return (
            told
            + "a large model for this text: it will learn it by heart. Take a smaller one, dropout 0.1, or more text"
        )
    if owned < 1:
        return told + "a large model for this text; stop when val_loss rises, and give dropout 0.1"
    if seen < 5:
        return told + "a short run for this model; a smaller one, or more steps, would come further"
    if owned > 100:
        return told + "a small model for this text; a larger one would learn more of it"
    return told + "size and text suit each other"


def _sketch(factors: list[float]) -> str:
    return "".join(_BARS[min(round(factor * (len(_BARS) - 1)), len(_BARS) - 1)] for factor in factors)


def _memory_lines(found: Facts) -> Iterator[tuple[str, str]]:
    said = {"optimizer state": "optimizer state and its work"}
    parts = ", ".join(f"{said.get(part, part)} {_size(size)}" for part, size in found["parts"].items() if size)
    room = f" of {_size(found['free'])} free ({_size(found['machine'])} in all)" if found["machine"] else ""
    yield "memory", f"about {_size(found['total'])}{room}"
    yield "", parts
    if found["free"] is not None and found["total"] > found["free"]:
        largest = max(found["parts"], key=lambda part: found["parts"][part])
        smaller = "take a smaller data.batch_size (with data.global_batch), or model.gradient_checkpointing true"
        if largest in ("weights", "gradients", "optimizer state"):
            smaller = "take a smaller model, or several devices with trainer.strategy fsdp"
        yield "", f"MORE THAN IS FREE, most of it {largest}: {smaller}"


def _time_lines(facts: Facts) -> Iterator[tuple[str, str]]:
    tried = facts["trial"]
    if "why_not" in tried:
        yield "time", f"not measured: {tried['why_not']}"
        return
    yield (
        "time",
        f"about {_span(tried['seconds'])}: {tried['left']:,} steps of {tried['step']:.3g} s"
        + (f", {tried['validations']:,} validations of {tried['validation']:.3g} s" if tried["validations"] else ""),
    )
    limit = facts["run"]["max_time"]
    if limit is not None and limit < tried["seconds"] and facts["run"]["steps"] is not None:
        yield "", f"trainer.max_time stops it after {_span(limit)}, before its last step"
    memory = f"; {_size(tried['memory'])} of memory at most" if tried["memory"] else ""
    yield (
        "",
        f"measured over {tried['steps']} steps: {tried['tokens_per_s']:,.0f} tokens/s, MFU {tried['mfu']:.0%}{memory}",
    )


def _file_lines(found: Facts) -> Iterator[tuple[str, str]]:
    if found["folder"] is None:
        yield "files", "none: nothing is saved"
        return
    needed = found["checkpoint"] * (found["kept"] + 1)
    yield "files", f"{found['folder']}: config.yaml, metrics.csv, TensorBoard events, status.json, start.json"
    yield (
        "",
        (
            f"checkpoints of {_size(found['checkpoint'])}, {found['kept']} kept, {_size(needed)} while one is written; "
            f"{_size(found['free'])} free on the disk"
        ),
    )
    if needed > found["free"]:
        yield "", "MORE THAN IS FREE: make room, or choose another trainer.default_root_dir"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{timedelta(seconds=round(seconds))} (hours:minutes:seconds)"


def file_problems(options: Mapping[str, Any], begun: bool) -> list[str]:
    """What is wrong with the text files and the tokenizer that the data module's options name; a run that is begun with
    weights may have its tokenizer from them."""
    found: list[str] = []
    for name in ("train_files", "valid_files", "test_files"):
        if files := options.get(name):
            found += _told(find_files, [files] if isinstance(files, str) else list(files))
    tokenizer = options.get("tokenizer") or (None if begun else TOKENIZER)
    if isinstance(tokenizer, str):
        found += _told(resolve, tokenizer, [], Reader(), None, Path(str(options["cache_dir"])))
    return found


def text_problems(data: TextDataModule, global_batch: int) -> list[str]:
    """What is wrong with the text itself: each split is read."""
    splits: tuple[Split, ...] = get_args(Split)
    found = [problem for split in splits if data.files[split] for problem in _told(data.store, split)]
    return found or _told(data.order, global_batch)


def _told(check: Callable[..., object], *args: object) -> list[str]:
    """The mistake that a check finds, if any."""
    try:
        check(*args)
    except UserError as error:
        return [str(error)]
    return []
