"""`trainer.py`: a LightningCLI without sub-commands. It wires data, model and trainer, and turns the user's units
(epochs, steps, tokens) into optimizer steps once the data is known; nothing else."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, ProgressBar, Timer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from gpt2kit import files
from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli.train_options import Asked, add_options, as_list, first_words, without_find
from gpt2kit.data import parallel_build
from gpt2kit.data.datamodule import TextDataModule, data_problems
from gpt2kit.errors import DivergedError, UserError, first_line, refuse
from gpt2kit.model.backends import (
    choose_precision,
    compile_failure,
    multiply_fast,
    refuse_missing_compiler,
)
from gpt2kit.model.finetuning import adapt
from gpt2kit.training import distributed, estimate, loggers, plan, run_info, tuning, verify_resume
from gpt2kit.training.baseline import Baseline
from gpt2kit.training.checkpointing import KEEP, DurableIO, ExactResume
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.progress import Bar, Measures
from gpt2kit.training.run_setup import RunSetup
from gpt2kit.training.time_limit import TimeHorizon
from gpt2kit.training.trainer import make_trainer, needs_steps, only_time


class DurableConfig(SaveConfigCallback):
    """Writes the run's config.yaml whole or not at all: a resumed run reads it, and any run may be killed."""

    folder: str | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.folder = trainer.log_dir  # asks all ranks, so not in save_config, which only one enters
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.folder is not None:
            text = self.parser.dump(self.config, skip_none=False)
            files.write_text(Path(self.folder) / self.config_filename, text)


class TrainCLI(LightningCLI):
    """LightningCLI with this project's callbacks, loggers, limits and links."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            GPT2Module,
            TextDataModule,
            trainer_class=make_trainer,
            trainer_defaults={"enable_model_summary": False, "log_every_n_steps": 10, "num_sanity_val_steps": 0},
            save_config_callback=DurableConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_kwargs={
                "exit_on_error": False,
                "allow_abbrev": False,
                "description": "Train a GPT-2 on your own text.",
            },
            args=args,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.asked = Asked(parser, args)
        self.config = self.asked.config
        self.args = list(args)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=1, help="decides initial weights, order and dropout")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_options(parser)
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("data.block_size", "model.n_positions")
        # RunSetup sets these when the tokenizer is there; the links keep them out of the config and --help.
        parser.link_arguments("data.tokenizer", "model.vocab_size", compute_fn=lambda _: None)
        parser.link_arguments("data.mask_documents", "model.document_start", compute_fn=lambda _: None)

    def before_instantiate_classes(self) -> None:
        wrong = self.asked.wrong_values()
        if self.asked.planned:
            options = self.config.data.as_dict()
            files = plan.problems_of_files(options, self.config.model.init_from is not None)
            if wrong and not files and not data_problems(options):  # else the text is read when all is made
                files = plan.problems_of_text(self._text(), self.config.data.batch_size)
            wrong += files
        self.asked.refuse_wrong(wrong)

    def _text(self) -> TextDataModule:
        made = self.parser.instantiate_classes(Namespace(data=self.config.data))  # type: ignore[no-untyped-call]
        text: TextDataModule = made.data
        return text

    def build_text(self) -> list[str]:
        """Build what --part or --merge asks for, of the data's options alone; a line for each split."""
        if self.config.merge is not None and (self.config.merge < 1 or self.config.part is not None):
            raise UserError(f"--merge {self.config.merge}: must be at least 1, and without --part")
        if self.config.data.streaming:
            raise UserError(
                "data.streaming true: --part and --merge build a store on a local disk. Add --data.streaming false "
                "--data.cache_dir FOLDER, then copy the store to the URL (docs/scaling.md)"
            )
        text = self._text()
        if self.config.part is not None:
            return parallel_build.build_each(text.corpora(), *parallel_build.numbers(self.config.part), text.cache_dir)
        return parallel_build.merge_each(text.corpora(), self.config.merge, text.cache_dir)

    def instantiate_classes(self) -> None:
        if self.asked.builds_text:
            return
        try:
            super().instantiate_classes()
        except UserError as error:
            told = str(error)
            if rest := [problem for problem in self.asked.problems if problem not in told]:
                raise UserError("; ".join([*rest, told])) from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        options = dict(self.config_init.trainer)
        self.model.source, self.asked.source = self.asked.source, None
        if self.asked.resumed is not None:
            self.model.init_from = None  # a resumed run has its weights, and its initial ones may be gone
        has_only_time = only_time(options)
        seconds = Timer(options["max_time"]).time_remaining() if options["max_time"] else None
        if has_only_time and self.model.schedule.constant_until(1000) is None:
            with self.asked.gathered():
                raise UserError(needs_steps(type(self.model.schedule).__name__))
        self._precision = choose_precision(options["precision"], options["accelerator"])
        settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False, skip_validation=True))
        horizon = TimeHorizon(seconds if has_only_time else None, self.model.schedule)
        record = run_info.Record(settings)
        self.run_setup = RunSetup(options, seconds, horizon, self._precision, self.args, self.asked.resumed, record)
        save_every = self.config.save_every if options["enable_checkpointing"] is not False else None
        stop_after = None if has_only_time else seconds
        saver = ExactResume(save_every, self.config.save_top_k, stop_after, self.asked.override, settings)
        own: list[Callback] = [Ranks(settings, self.asked.resumed), Measures(), horizon, saver, Baseline(), record]
        callbacks: list[Callback] = as_list(options["callbacks"])
        if options["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            own.append(Bar())
        kwargs["callbacks"] = [self.run_setup, *callbacks, *own]
        kwargs["precision"] = self._precision.value
        kwargs["enable_checkpointing"] = None  # ExactResume saves
        kwargs["plugins"] = [*as_list(options["plugins"]), DurableIO()]
        if SLURMEnvironment.detect():
            kwargs["plugins"].append(SLURMEnvironment(auto_requeue=False))  # ExactResume saves first, then requeues
        if options["logger"] is not False:
            kwargs["logger"] = loggers.of_run(
                options["default_root_dir"] or ".", as_list(options["logger"]), self.asked.resumed
            )
        kwargs["devices"], kwargs["num_nodes"] = distributed.sizes(options["devices"], options["num_nodes"])
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:  # no such strategy or accelerator
            raise UserError(f"trainer: {first_line(error)}") from error
        refuse_missing_compiler(self.model.wants_compile, trainer.strategy.root_device)
        multiply_fast(trainer.strategy.root_device, self._precision.value)
        if not options["fast_dev_run"] and self.datamodule.wanted_batch is not None:
            with self.asked.gathered():
                trainer.accumulate_grad_batches = distributed.accumulation(
                    self.datamodule.wanted_batch, self.datamodule.batch_size, trainer.world_size
                )
        return trainer

    def planned_facts(self) -> run_info.Facts:
        """Return what the run would be, after a few steps of it with a trainer of their own."""
        trainer, data, gpt2 = self.trainer, self.datamodule, self.model
        resumed = self.asked.resumed
        with self.asked.gathered():
            gpt2.take_vocabulary(data.vocab_size, data.document_start)
            gpt2.build()
            if gpt2.init_from is not None and gpt2.source is not None:
                gpt2.load_initial_weights(data.tokenizer)
        refuse([*self.asked.problems, *plan.problems_of_text(data, data.global_batch(trainer))])
        facts = self.run_setup.apply(trainer, data, gpt2)
        facts["start"]["begun"] = gpt2.start_notes
        adapt(gpt2.model, gpt2.lora, embedding=gpt2.new_vocabulary)  # memory is that of what will be trained
        done = checkpoint.step_of(resumed) if resumed else 0
        facts["run"] |= {"done": done, "max_time": self.run_setup.seconds}
        facts["memory"] = run_info.memory_facts(trainer, data, gpt2)
        facts["files"] = run_info.file_facts(facts["folder"], gpt2, self.config.save_top_k + KEEP)
        limit = self.config_init.trainer["limit_val_batches"]
        facts["trial"] = estimate.measure(self._trial_options(), data, gpt2, facts, limit)
        return facts

    def _trial_options(self) -> dict[str, Any]:
        """Of a trainer that trains like the run's, and leaves nothing behind."""
        options = {**dict(self.config_init.trainer), **estimate.OPTIONS, "precision": self._precision.value}
        return options | {"accumulate_grad_batches": self.trainer.accumulate_grad_batches}

    def find_rate(self) -> None:
        """Look for a learning rate."""
        refuse(
            [*self.asked.problems, *plan.problems_of_text(self.datamodule, self.datamodule.global_batch(self.trainer))]
        )
        tuning.rate(self._trial_options(), self.datamodule, self.model)


def main(args: list[str]) -> None:
    """Parse, build and train. Rank 0 reports errors; another rank's own error names its rank."""
    for talkative in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # our figures are reduced over the ranks already
    warnings.filterwarnings("ignore", ".*across ranks is zero.*")  # no validation text: the summary says so
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning 2.6 under torch 2.13
    words = first_words(args)
    if words.ckpt_path is not None and (words.verify_resume or words.find):
        raise UserError("--verify_resume and --find: train runs of their own from the start. Leave --ckpt_path out")
    if words.verify_resume:
        verify_resume.verify_resume([arg for arg in args if arg != "--verify_resume"])
        return
    if words.find == "batch_size":
        tuning.batch_size(without_find(args))
        return
    if words.find == "lr":
        TrainCLI([*without_find(args), "--plan"]).find_rate()
        return
    try:
        _train(args)
    except UserError as error:
        if not (rank := distributed.launched_rank()):
            raise
        print(f"rank {rank}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        if known := distributed.explained(error) or compile_failure(error):
            raise known from error
        raise


def _train(args: list[str]) -> None:
    cli = None
    try:
        cli = TrainCLI(args)
        if cli.asked.builds_text:
            print("\n".join(cli.build_text()))
            return
        if cli.asked.planned:
            found = cli.planned_facts()
            if cli.trainer.is_global_zero:
                plan.show(plan.whole(found), sys.stdout)
            return
        resumed = cli.asked.resumed
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=str(resumed) if resumed else None)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except SystemExit as stop:  # a signal before the first step, which Lightning answers with 0 or 1
        if cli is not None and cli.trainer.interrupted and stop.code in (None, 0, 1):
            if cli.trainer.received_sigterm:
                raise SystemExit(128 + signal.SIGTERM) from None
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
        raise
    except UserError as error:
        if "--plan" in args:
            raise UserError(str(error)) from error  # whatever is wrong, a plan ends with 2
        if isinstance(error, DivergedError):
            raise DivergedError(f"{error}; {_last_good(cli)}") from error
        raise


def _last_good(cli: TrainCLI | None) -> str:
    folder = cli.trainer.log_dir if cli else None
    newest = next(iter(checkpoint.checkpoints(Path(folder))), None) if folder else None
    return f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
