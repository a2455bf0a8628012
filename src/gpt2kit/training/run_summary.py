"""Print the description of a run (`run_info`): a summary when it starts, and more with `--plan`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from gpt2kit.data.stages import parse_stages, stage_lines
from gpt2kit.tokenization.report import format_bytes
from gpt2kit.training.run_info import RunInfo

# A label, empty if it is the same as on the line before, and a text.
Line = tuple[str, str]

_BARS = "▁▂▃▄▅▆▇█"
_SIZE_TEXTS = {
    "model.n_layer": "{} layers",
    "model.n_head": "{} heads",
    "model.n_embd": "width {}",
    "model.dropout": "dropout {:g}",
    "model.optimizer.init_args.weight_decay": "weight decay {:g}",
}


def summary_lines(info: RunInfo) -> list[Line]:
    """Return the lines that a run prints when it starts."""
    splits = {name: split for name, split in info["text"]["splits"].items() if name != "test"}
    resumed = info["start"]["resumed"]
    return [
        ("text", _format_documents(info["text"])),
        *([("", info["text"]["held_out"])] if info["text"]["held_out"] else []),
        ("", " | ".join(_format_split(*split) for split in splits.items())),
        *_mix_lines(info["text"]),
        ("model", _format_model(info["model"])),
        ("run", _format_run(info["run"])),
        *_stage_lines(info["run"]),
        *_size_lines(info),
        *_device_lines(info["start"]),
        ("folder", info["folder"] or "none: nothing is saved"),
        *([("resume", resumed)] if resumed else []),
        *[("start", note) for note in info["start"]["begun"]],
        *[("note", note) for note in info["text"]["notes"]],
    ]


def plan_lines(info: RunInfo) -> list[Line]:
    """Return the lines of `--plan`."""
    text, run, shape = info["text"], info["run"], info["model"]["shape"]
    architecture = (
        f"{shape['n_layer']} layers, {shape['n_head']} heads, width {shape['n_embd']}, "
        f"context {shape['n_positions']}, dropout {shape['resid_pdrop']:g}"
    )
    rates = " and ".join(dict.fromkeys(f"{rate:g}" for rate in run["learning_rates"]))
    bars = "".join(_BARS[min(round(factor * 7), 7)] for factor in run["schedule"])
    resumed = info["start"]["resumed"]
    return [
        ("text", _format_documents(text)),
        *([("", text["held_out"])] if text["held_out"] else []),
        *[("", _format_split(name, split) + _format_details(split)) for name, split in text["splits"].items()],
        *_mix_lines(text),
        ("", f"vocabulary of {text['vocabulary']:,}"),
        *[("note", note) for note in text["notes"]],
        *([("resume", resumed + (f", {run['done']:,} steps done" if run["done"] else ""))] if resumed else []),
        ("model", _format_model(info["model"])),
        ("", architecture),
        *_size_lines(info),
        *[("start", note) for note in info["start"]["begun"]],
        ("run", _format_run(run)),
        *_stage_lines(run),
        ("", compare_sizes(info)),
        ("", f"{run['optimizer']}, learning rate {rates}, {run['schedule_name']}: {bars}"),
        *memory_lines(info["memory"]),
        *_time_lines(info["speed"], run),
        *_device_lines(info["start"]),
        *_file_lines(info["files"]),
    ]


def print_lines(lines: list[Line], file: Any) -> None:
    """Print lines in two columns."""
    for label, text in lines:
        print(f"{label:<7}{text}", file=file)


def _count(number: int, noun: str) -> str:
    """Return a number and a noun, such as `1 document` or `12 documents`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _format_documents(text: RunInfo) -> str:
    others = ""
    if text["document"].startswith("a file"):
        others = " line or paragraph"
    change = f"--data.reader.document{others} changes it"
    return f"{_count(text['documents'], 'document')} ({text['document']}; {change}), {format_bytes(text['bytes'])}"


def _format_split(name: str, split: RunInfo) -> str:
    documents = _count(split["documents"], "document")
    return f"{name} {documents}, {split['bytes']:,} bytes, {split['tokens']:,} tokens"


def _mix_lines(text: RunInfo) -> list[Line]:
    """Return a line for each of several training texts."""
    line = "{name}: {tokens:,} tokens, {passes:.2f} passes in an epoch ({how})"
    return [("", line.format(**each)) for each in text["mix"]]


def _format_details(split: RunInfo) -> str:
    ratio = f", {split['bytes'] / split['tokens']:.2f} bytes per token" if split["tokens"] else ""
    repeated = f", {split['duplicates']:,} documents repeat another" if split["duplicates"] else ""
    return ratio + repeated


def _format_model(model: RunInfo) -> str:
    return f"{model['parameters']:,} parameters, {model['embeddings'] / model['parameters']:.0%} of them embeddings"


def _format_run(run: RunInfo) -> str:
    interval = run["validation_every"]
    no_validation = "no validation (data.valid_fraction sets it)"
    validation = f"validation every {interval:,} steps" if interval else no_validation
    steps, epoch = f"steps of {run['global_batch']} x {run['block_size']} tokens", f"{run['steps_per_epoch']:,} steps"
    if run["steps"] is None:
        return f"until the time limit, in {steps}; an epoch has {epoch}; {validation}"
    return f"{run['steps']:,} {steps} = {run['epochs']:.2f} epochs of {epoch}; {validation}"


def _stage_lines(run: RunInfo) -> list[Line]:
    """Return a line for each of several stages of a run."""
    stages = parse_stages(run)
    last_step = run["steps"] and stages[-1].first_step + run["steps"]
    return [("stages" if number == 0 else "", line) for number, line in enumerate(stage_lines(stages, last_step))]


def _size_lines(info: RunInfo) -> list[Line]:
    """Return a line of the numbers that replace `auto`; none if all are set, as in a resumed run."""
    options, passes, tokens = info["auto"]["options"], info["auto"]["passes"], info["text"]["splits"]["train"]["tokens"]
    chosen = [text.format(options[name]) for name, text in _SIZE_TEXTS.items() if name in options]
    number = f"{passes:,.0f}" if passes >= 10 else f"{passes:.2g}"
    reason = f"for {number} passes over {tokens:,} tokens. Set these options to change them"
    return [("auto", f"{', '.join(chosen)}: {reason}")] if chosen else []


def _device_lines(start: RunInfo) -> list[Line]:
    device, choices = start["device"], start["chosen"]
    lines = [("device", f"{device['count']} x {device['kind']} ({device['name']})")]
    return lines + [("auto", f"{name}: {value} ({reason})") for name, (value, reason) in choices.items()]


def compare_sizes(info: RunInfo) -> str:
    """Compare the sizes of the model, the text and the run, and return advice.

    About 20 tokens per parameter are the best use of a compute budget (Hoffmann et al., 2022). Up to about four epochs,
    repeated text is almost as good as new text (Muennighoff et al., 2023).
    """
    tokens, epochs, parameters = info["run"]["tokens"], info["run"]["epochs"], info["model"]["parameters"]
    if epochs is None:
        return "the number of tokens depends on the speed"
    per_parameter = tokens / parameters
    unique_per_parameter = info["text"]["splits"]["train"]["tokens"] / parameters
    if unique_per_parameter < 1 and info["model"]["shape"]["resid_pdrop"] > 0:
        advice = "the text is small for this model, and dropout limits how much is memorized. More text helps most"
    elif unique_per_parameter < 1 and epochs > 4:
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
    return f"{tokens:,} tokens, {per_parameter:.1f} per parameter ({unique:.1f} unique): {advice}"


def memory_lines(memory: RunInfo) -> list[Line]:
    """Return the lines about memory, with advice if it does not fit."""
    parts = memory["parts"]
    available = ""
    if memory["free"] is not None:
        available = f" of {_format_bytes(memory['free'])} free ({_format_bytes(memory['machine'])} in total)"
    lines = [
        ("memory", f"about {_format_bytes(memory['total'])}{available}"),
        ("", ", ".join(f"{part} {_format_bytes(size)}" for part, size in parts.items() if size)),
    ]
    if memory["free"] is not None and memory["total"] > memory["free"]:
        largest = max(parts, key=lambda part: parts[part])
        advice = "use a smaller data.batch_size (with data.global_batch_size), or model.gradient_checkpointing true"
        if largest in ("weights", "gradients", "optimizer state"):
            advice = "use a smaller model, or several devices with trainer.strategy fsdp"
        lines.append(("", f"MORE THAN IS FREE, most of it {largest}: {advice}"))
    return lines


def _time_lines(speed: RunInfo, run: RunInfo) -> list[Line]:
    if "problem" in speed:
        return [("time", f"not measured: {speed['problem']}")]
    steps = f"{speed['left']:,} steps of {speed['step']:.3g} s"
    if speed["validations"]:
        steps += f", {speed['validations']:,} validations of {speed['validation']:.3g} s"
    lines = [("time", f"about {_format_time(speed['seconds'])}: {steps}")]
    max_time = run["max_time"]
    if max_time is not None and max_time < speed["seconds"] and run["steps"] is not None:
        lines.append(("", f"trainer.max_time stops the run after {_format_time(max_time)}, before its last step"))
    memory = f"; peak memory {_format_bytes(speed['memory'])}" if speed["memory"] else ""
    mfu = f", MFU {speed['mfu']:.0%}" if speed["mfu"] is not None else ""
    rate = f"{speed['tokens_per_s']:,.0f} tokens/s{mfu}{memory}"
    return [*lines, ("", f"measured over {_count(speed['steps'], 'step')}: {rate}")]


def _file_lines(files: RunInfo) -> list[Line]:
    if files["folder"] is None:
        return [("files", "none: nothing is saved")]
    peak = files["checkpoint"] * (files["kept"] + 1)
    checkpoints = f"checkpoints of {_format_bytes(files['checkpoint'])}, {files['kept']} kept"
    space = f"{_format_bytes(peak)} during a save; {_format_bytes(files['free'])} free on the disk"
    lines = [
        ("files", f"{files['folder']}: config.yaml, metrics.csv, TensorBoard events, status.json, start.json"),
        ("", f"{checkpoints}, {space}"),
    ]
    if peak > files["free"]:
        lines.append(("", "MORE THAN IS FREE: free some space, or use another trainer.default_root_dir"))
    return lines


def _format_bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _format_time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{timedelta(seconds=round(seconds))} (hours:minutes:seconds)"
