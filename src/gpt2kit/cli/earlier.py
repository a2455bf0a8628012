"""What a resumed run takes over from its earlier starts, and says of what has changed since."""

from __future__ import annotations

import sys
from typing import Any

from lightning_fabric.utilities.rank_zero import rank_zero_only

from gpt2kit.model.backends import ASKED
from gpt2kit.runs import lifecycle
from gpt2kit.training import run_info
from gpt2kit.training.trainer import as_list


def settle(config: Any, saved: Any) -> None:
    """Of what differs from the run's own config, the optimizer and its schedule stay unless --override is given."""
    asked = lifecycle.flat(config.clone().as_dict())
    for name, was in lifecycle.flat(saved.as_dict()).items():
        now = asked.get(name, was)
        if was == now or name in ("config", "ckpt_path", "override", "plan"):
            continue
        begun = name in ("model.init_from", "model.new_vocabulary")
        stays = name.startswith(("model.optimizer", "model.schedule")) and not config.override
        rank_zero_only(print)(
            f"resume: {name} stays {was} (asked for {now}{'' if begun else '; --override takes it'})"
            if stays or begun
            else f"resume: {name} was {was}, now {now}",
            file=sys.stderr,
        )
    for name in ("init_from", "new_vocabulary"):  # what the run began with is over
        config.model[name] = saved.model[name]
    if not config.override:
        config.model.optimizer, config.model.schedule = saved.model.optimizer, saved.model.schedule


def same_ids(config: Any, starts: list[dict[str, Any]]) -> None:
    """Go on in the runs that W&B and MLflow know this one by."""
    ids = starts[-1].get("loggers", {}) if starts else {}
    for spec in as_list(config.trainer.logger):
        name = str(getattr(spec, "class_path", "")).rsplit(".", 1)[-1]
        option = {"WandbLogger": "id", "MLFlowLogger": "run_id"}.get(name)
        if option and name in ids and spec.init_args.get(option) is None:
            spec.init_args[option] = ids[name]


def say_other_choices(before: list[dict[str, Any]], now: run_info.Facts) -> None:
    """What `auto` or another machine has changed since the last start; the settings may be the same."""
    known = before[-1].get("start", {}) if before else {}
    for name, was in known.get("chosen", {}).items():
        value, reason = now["chosen"].get(name, was)
        if value != was[0] and reason != ASKED:  # what is asked for is said with the other settings
            told = f"resume: {name} was {was[0]}, now {value} ({reason}); equal but for rounding from here on"
            print(told, file=sys.stderr)
