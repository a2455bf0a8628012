"""Many processes as one run: they must agree before the first step, and none may wait for one that has died."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import distributed

from gpt2kit import __version__
from gpt2kit.errors import UserError
from gpt2kit.runs import lifecycle
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.training import run_state, watch
from gpt2kit.training.run_state import datamodule_of, gpt2_of
from gpt2kit.training.watch import Watch

Facts = dict[str, str]


class Ranks(Callback):
    """Compares what each process has been told and has read, then watches over them."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        """The resolved config, as plain types."""
        self.resumed: Path | None = None
        """The checkpoint that the run goes on from."""
        self._watch: Watch | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or not distributed.is_initialized():
            return
        self._begin_watch(trainer, trainer.log_dir)
        self._agree(trainer)

    def gone(self, seconds: float) -> str:
        """Which rank has gone, waiting so long for the news; empty if none has."""
        return self._watch.gone(seconds) if self._watch else ""

    def close(self, reason: str = "") -> None:
        """End watching; with a reason, the other ranks are told it."""
        if self._watch is not None:
            self._watch.close(reason)
            self._watch = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.close()

    def _agree(self, trainer: pl.Trainer) -> None:
        """First a hash of everything; only if some differ, everything."""
        own = facts(trainer, self.settings, self.resumed)
        if len(set(_gathered(trainer, _hash(own)))) == 1:
            return
        problem = disagreement(_gathered(trainer, (socket.gethostname(), own)))
        self.close()
        if trainer.is_global_zero:
            raise UserError(problem)
        raise SystemExit(UserError.exit_code)  # rank 0 says why

    def _begin_watch(self, trainer: pl.Trainer, folder: str | None) -> None:
        """Connect all ranks with rank 0; where that cannot be, train without."""
        server = watch.listening() if trainer.is_global_zero else None
        told = [(server.getsockname()[1], secrets.token_hex(16)) if server else None]
        distributed.broadcast_object_list(told, 0)
        assert told[0] is not None
        port, word = told[0]

        def last_words(who: str) -> None:
            if trainer.is_global_zero and folder:
                lifecycle.write_status(Path(folder), "failed", trainer.global_step, who)

        try:
            address = (os.environ.get("MASTER_ADDR", "127.0.0.1"), port)
            self._watch = Watch(trainer.global_rank, address, word, last_words, server)
        except OSError as error:
            print(
                f"note   rank {trainer.global_rank} cannot reach rank 0 at {address[0]}:{port} ({error}), so a rank "
                "that dies will be noticed late",
                file=sys.stderr,
            )


def facts(trainer: pl.Trainer, settings: dict[str, Any], resumed: Path | None) -> Facts:
    """All in which the processes of one run must be alike, by names for people."""
    text = datamodule_of(trainer)
    return {
        "gpt2kit": __version__,
        "torch": str(torch.__version__),
        **{name: str(value) for name, value in lifecycle.flat(settings).items()},
        "the tokenizer": tokenizers.fingerprint(text.tokenizer)[:12],
        **{f"the {split} text": text.store(split).fingerprint[:12] for split in text.files if text.files[split]},
        "the order of batches": _hash(run_state.identity(text, text.global_batch(trainer))),
        "the model's shape": _hash(gpt2_of(trainer).shape),
        "precision": str(trainer.precision),
        "attention": gpt2_of(trainer).choose_attention(trainer.strategy.root_device).value,
        "compile": gpt2_of(trainer).compiled,
        "steps": str(trainer.max_steps),
        "the checkpoint": resumed.name if resumed else "none",  # its name has its step and loss; folders may differ
    }


def disagreement(gathered: list[tuple[str, Facts]]) -> str:
    """Empty if all ranks have the same facts as rank 0; else one line that names the first that does not."""
    first = gathered[0][1]
    others = [(rank, host, found) for rank, (host, found) in enumerate(gathered) if found != first]
    if not others:
        return ""
    rank, host, found = others[0]
    names = [name for name in {**first, **found} if found.get(name) != first.get(name)]
    differences = [f"{name} is {found.get(name)}, on rank 0 {first.get(name)}" for name in names[:5]]
    more = f" ({len(others) - 1} other ranks differ from it, too)" if len(others) > 1 else ""
    return (
        f"rank {rank} on {host} is not like rank 0{more}: {'; '.join(differences)}. Give all machines the same files, "
        "versions and settings"
    )


def _gathered(trainer: pl.Trainer, own: object) -> list[Any]:
    found: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(found, own)
    return found


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
