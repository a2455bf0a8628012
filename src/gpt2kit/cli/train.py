"""`trainer.py`: a LightningCLI without sub-commands. It wires data, model and trainer, and turns the user's units
(epochs, steps, tokens) into optimizer steps once the data is known; nothing else."""

from __future__ import annotations

import logging
import math
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
from gpt2kit.checkpoint import checkpoint, initialize
from gpt2kit.cli.train_options import Asked, add_options, as_list, first_words, say_other_choices, without_find
from gpt2kit.data import parallel_build
from gpt2kit.data.datamodule import TextDataModule, data_problems
from gpt2kit.errors import DivergedError, UserError, first_line, refuse
from gpt2kit.model.backends import (
    Choice,
    allow_tf32,
    choose_compile,
    choose_precision,
    compile_failure,
    refuse_missing_compiler,
    typical_flops_per_second,
)
from gpt2kit.model.config import flops_per_token
from gpt2kit.model.finetuning import add_lora
from gpt2kit.runs import folder as run_folder
from gpt2kit.runs import lifecycle
from gpt2kit.training import distributed, estimate, loggers, plan, run_info, tuning, verify_resume
from gpt2kit.training.baseline import Baseline
from gpt2kit.training.checkpointing import KEEP, DurableIO, ExactResume
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.progress import Bar, Measures
from gpt2kit.training.time_limit import TimeHorizon
from gpt2kit.training.trainer import interval_steps, make_trainer, needs_steps, only_time, total_steps


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
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        parser.link_arguments("data.document_start", "model.document_start", apply_on="instantiate")

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
        config = dict(self.config_init.trainer)
        self.begun: list[str] = []
        if self.asked.source is not None:
            with self.asked.gathered():
                gpt2, source, tokenizer = self.model, self.asked.source, self.datamodule.tokenizer
                gpt2.start, self.begun = initialize.load_initial_weights(
                    gpt2.model, source, tokenizer, gpt2.init_from, gpt2.new_vocabulary
                )
            self.asked.source = None
        theirs: list[Callback] = as_list(config["callbacks"])
        seconds = self._max_time = Timer(config["max_time"]).time_remaining() if config["max_time"] else None
        alone = only_time(config)
        self._horizon = TimeHorizon(seconds if alone else None, self.model.schedule)
        if alone and self.model.schedule.flat(1000) is None:
            with self.asked.gathered():
                raise UserError(needs_steps(type(self.model.schedule).__name__))
        self._precision = choose_precision(config["precision"], config["accelerator"])
        kwargs["precision"] = self._precision.value
        every = self.config.save_every if config["enable_checkpointing"] is not False else None
        kwargs["enable_checkpointing"] = None  # ours are the checkpoints
        settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False, skip_validation=True))
        saver = ExactResume(every, self.config.save_top_k, None if alone else seconds, self.asked.override, settings)
        ranks = Ranks()
        ranks.settings, ranks.resumed = settings, self.asked.resumed
        self._record = run_info.Record(settings)
        ours: list[Callback] = [ranks, Measures(), self._horizon, saver, Baseline(), self._record]
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in theirs):
            ours.append(Bar())
        kwargs["callbacks"] = theirs + ours
        kwargs["plugins"] = [*as_list(config["plugins"]), DurableIO()]
        if SLURMEnvironment.detect():
            kwargs["plugins"].append(SLURMEnvironment(auto_requeue=False))  # ours saves between steps, and requeues
        if config["logger"] is not False:
            kwargs["logger"] = loggers.of_run(
                config["default_root_dir"] or ".", as_list(config["logger"]), self.asked.resumed
            )
        kwargs["devices"], kwargs["num_nodes"] = distributed.sizes(config["devices"], config["num_nodes"])
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:  # a strategy or an accelerator that there is not
            raise UserError(f"trainer: {first_line(error)}") from error
        refuse_missing_compiler(self.model.wants_compile, trainer.strategy.root_device)
        allow_tf32(trainer.strategy.root_device, self._precision.value)
        if not config["fast_dev_run"]:
            self._limit(trainer, config)
        return trainer

    def _limit(self, trainer: pl.Trainer, config: dict[str, Any]) -> None:
        """Say the limits and the validation interval in optimizer steps, which is all that Lightning sees."""
        data = self.datamodule
        if data.wanted_batch is not None:
            with self.asked.gathered():
                trainer.accumulate_grad_batches = distributed.accumulation(
                    data.wanted_batch, data.batch_size, trainer.world_size
                )
        if self.asked.planned:
            refuse(self.asked.problems + plan.problems_of_text(data, data.global_batch(trainer)))
        distributed.build_once_per_node(trainer, lambda: data.setup("fit"))
        order = data.order(data.global_batch(trainer))
        tokens = order.global_batch * data.block_size
        steps = -1
        if not only_time(config):
            steps = total_steps(
                config["max_epochs"], config["max_steps"], config["max_tokens"], order.steps_per_epoch, tokens
            )
        every = interval_steps(config["val_check_interval"], order.steps_per_epoch)
        trainer.fit_loop.epoch_loop.max_steps = steps
        trainer.val_check_interval = every * trainer.accumulate_grad_batches
        device, seconds = trainer.strategy.root_device, self._max_time
        each = flops_per_token(self.model.shape, self.model.model) * tokens / trainer.world_size
        flops = each * steps if steps > 0 else math.inf
        compiling = choose_compile(self.model.wants_compile, device, str(trainer.precision), flops, seconds)
        if steps < 0 and seconds:
            self._horizon.guess(
                max(round(seconds * typical_flops_per_second(device, str(trainer.precision)) / each), 1)
            )
        self.model.compiled = compiling.value
        folder = trainer.log_dir  # asks all ranks
        self._record.facts = found = self._facts(trainer, every, folder, compiling)
        if trainer.is_global_zero and not self.asked.planned:
            if self.asked.resumed and (run := lifecycle.run_of(self.asked.resumed)):
                say_other_choices(run_folder.starts(run), found["start"])
            plan.show(plan.opening(found), sys.stderr)

    def _facts(self, trainer: pl.Trainer, every: int, folder: str | None, compiling: Choice) -> run_info.Facts:
        attention = self.model.choose_attention(trainer.strategy.root_device)
        chosen = {"precision": self._precision, "attention": attention, "compile": compiling}
        return {
            "text": run_info.text_facts(self.datamodule),
            "model": run_info.model_facts(self.model),
            "run": run_info.run_facts(trainer, self.datamodule, self.model, every),
            "start": run_info.start_facts(trainer, chosen, self.args, self.asked.resumed) | {"begun": self.begun},
            "folder": folder,
        }

    def planned_facts(self) -> run_info.Facts:
        """What the run would be, after some steps of it on a trainer of their own."""
        trainer, data, gpt2 = self.trainer, self.datamodule, self.model
        found = self._record.facts
        add_lora(gpt2.model, gpt2.lora, train_embedding=gpt2.new_vocabulary)  # memory is that of what will be trained
        done = checkpoint.step_of(self.asked.resumed) if self.asked.resumed else 0
        found["run"] |= {"done": done, "max_time": self._max_time}
        found["memory"] = run_info.memory_facts(trainer, data, gpt2)
        found["files"] = run_info.file_facts(found["folder"], gpt2, self.config.save_top_k + KEEP)
        limit = self.config_init.trainer["limit_val_batches"]
        found["trial"] = estimate.measure(self._trial_options(), data, gpt2, found, limit)
        return found

    def _trial_options(self) -> dict[str, Any]:
        """Of a trainer that trains like the run's, and leaves nothing behind."""
        options = {**dict(self.config_init.trainer), **estimate.OPTIONS, "precision": self._precision.value}
        return options | {"accumulate_grad_batches": self.trainer.accumulate_grad_batches}

    def find_rate(self) -> None:
        """Look for a learning rate."""
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
