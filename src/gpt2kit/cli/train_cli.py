"""The LightningCLI of trainer.py: builds the model, the data module and the trainer from the options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import class_from_function
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import Logger
from torch.optim import Optimizer

from gpt2kit import files
from gpt2kit.checkpoint import checkpoint, initialize, saved_text
from gpt2kit.cli import train_help
from gpt2kit.cli.help import Parser
from gpt2kit.cli.parser import add_options
from gpt2kit.cli.run_options import RunOptions
from gpt2kit.cli.train_options import TrainOptions, as_list
from gpt2kit.commands import command_name
from gpt2kit.data import order, parallel_build
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.problems import data_problems, file_problems
from gpt2kit.data.stages import Stage
from gpt2kit.errors import UserError, first_line, refuse
from gpt2kit.model.backends import allow_tf32, choose_precision, refuse_missing_compiler
from gpt2kit.model.lora import add_lora
from gpt2kit.text.splits import longest_of_range
from gpt2kit.training import distributed, end_report, estimate, loggers, run_summary, tuning
from gpt2kit.training.checkpointing import KEEP_NEWEST, DurableIO, ExactResume
from gpt2kit.training.durations import parse_duration
from gpt2kit.training.module import GPT2Module
from gpt2kit.training.progress import Baseline, ProgressBar, ThroughputMetrics
from gpt2kit.training.run_info import RunInfo
from gpt2kit.training.run_setup import RunSetup, TimeLimit, has_only_time, refuse_open_end
from gpt2kit.training.trainer import make_trainer

# Once for all parsers, since jsonargparse inspects every frame of the stack for it.
_TRAINER = class_from_function(make_trainer)


class AtomicConfig(SaveConfigCallback):
    """Writes the run's config.yaml atomically: a resumed run reads it, and any run may be killed."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write nothing yet: if the resume is refused because the text differs, the run keeps its config."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = trainer.log_dir  # a collective call
        if folder is None or not trainer.is_global_zero:
            return
        config = self.config.clone()
        setup = next(callback for callback in trainer.callbacks if isinstance(callback, RunSetup))  # type: ignore[attr-defined]
        for name, value in setup.chosen.items():
            config[name] = value
        files.write_text(Path(folder) / self.config_filename, self.parser.dump(config, skip_none=False))


class TrainParser(Parser, LightningArgumentParser):
    """The parser of trainer.py."""

    def instantiate_classes(self, cfg: Namespace, instantiate_groups: bool = True) -> Namespace:
        """Build the classes that options name. An exception of a constructor is an error of the user's config."""
        failures: list[str] = []

        def build(kind: type, /, *values: Any, **options: Any) -> Any:
            try:
                return kind(*values, **options)
            except UserError as error:
                failures.append(str(error))
                raise
            except Exception as error:
                failures.append(f"{_option_of(kind)}: {first_line(error)}. Check its options, or omit it")
                raise UserError(failures[-1]) from error

        try:
            built: Namespace = self.instantiate(cfg, instantiate_groups, instantiators=[(build, object, True)])
        except (TypeError, ValueError):  # jsonargparse has replaced the error by one of its own
            refuse(list(dict.fromkeys(failures)))
            raise
        return built


def _option_of(kind: type) -> str:
    """Return the option that names a class, and the class."""
    options = {Callback: "trainer.callbacks", Logger: "trainer.logger", Optimizer: "model.optimizer"}
    return " ".join([*(option for base, option in options.items() if issubclass(kind, base)), kind.__name__])


class TrainCLI(LightningCLI):
    """LightningCLI with gpt2kit's options, callbacks, loggers and limits."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            GPT2Module,
            TextDataModule,
            trainer_class=_TRAINER,
            trainer_defaults={
                "enable_model_summary": False,
                "gradient_clip_val": 1.0,
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
            },
            save_config_callback=AtomicConfig,
            parser_class=TrainParser,
            parser_kwargs={
                "exit_on_error": False,
                "allow_abbrev": False,
                "description": "Train a GPT-2 on your own text.",
                "prog": command_name("train"),
            },
            args=args,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        train_help.print_if_requested(parser, args)
        self.options = TrainOptions(parser, args)
        self._resumed_step = 0  # the step of the resumed checkpoint
        self.config = self.options.config
        self.args = list(args)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=1, help="Random seed of weights, order and dropout.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_options(parser, RunOptions)
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("data.block_size", "model.n_positions")
        # RunSetup sets these when the tokenizer is known; the links keep them out of the config and --help.
        parser.link_arguments("data.tokenizer", "model.vocab_size", compute_fn=lambda _: None)
        parser.link_arguments("data.mask_documents", "model.document_start", compute_fn=lambda _: None)
        train_help.set_texts(parser)
        for action in parser._actions:
            if action.dest in ("data.tokenizer", "data.train_files", "data.valid_files", "data.test_files"):
                action._enable_path = False  # type: ignore[attr-defined]  # jsonargparse would read it as a config

    def before_instantiate_classes(self) -> None:
        problems = self.options.value_problems()
        if self.options.is_plan:
            data = self.config.data.as_dict()
            text = file_problems(data)
            if problems and not text and not data_problems(data):  # else the text is read later
                text = self._datamodule().text_problems(self.config.data.batch_size)
            problems += text
        self.options.refuse(problems)

    def _datamodule(self) -> TextDataModule:
        data: TextDataModule = self.parser.instantiate_classes(Namespace(data=self.config.data)).data  # type: ignore[no-untyped-call]
        return data

    def build_text(self) -> list[str]:
        """Tokenize the text for --part or --merge; return a line for each split."""
        part, merge = self.config.part, self.config.merge
        if merge is not None and part is not None:
            raise UserError(f"--merge {merge}: not with --part. Leave out one of the two")
        if self.config.data.streaming:
            raise UserError(
                "data.streaming true: --part and --merge build a store on a local disk. Add --data.streaming false "
                "--data.cache_dir FOLDER, then copy the store to the URL (docs/distributed.md)"
            )
        data = self._datamodule()
        if part is not None:
            return parallel_build.build_each(data.corpora(), *parallel_build.parse_part(part), data.cache_dir)
        return parallel_build.merge_each(data.corpora(), merge, data.cache_dir)

    def instantiate_classes(self) -> None:
        if self.options.builds_text:
            return
        try:
            super().instantiate_classes()
        except UserError as error:
            message = str(error)
            if others := [problem for problem in self.options.problems if problem not in message]:
                raise UserError("; ".join([*others, message])) from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        options = dict(self.config_init.trainer)
        self.model.source, self.options.source = self.options.source, None
        self.model.expected = {name.partition(".")[2]: value for name, value in self.options.linked_values.items()}
        if self.options.resumed is not None:
            self._keep_rules(self.options.resumed)
        self._check_vocabulary()
        seconds = parse_duration(options["max_time"]) if options["max_time"] is not None else None
        only_time = has_only_time(options)
        if only_time:
            with self.options.collect():
                refuse_open_end(self.model.schedule)
        self._precision = choose_precision(options["precision"], options["accelerator"])
        plugins = [*as_list(options["plugins"]), DurableIO()]
        if SLURMEnvironment.detect():
            plugins.append(SLURMEnvironment(auto_requeue=False))  # ExactResume saves first, then requeues
        kwargs |= {
            "precision": self._precision.value,
            "callbacks": self._callbacks(options, seconds, only_time),
            "enable_checkpointing": None,  # ExactResume saves
            "plugins": plugins,
        }
        kwargs["devices"], kwargs["num_nodes"] = distributed.launch_sizes(options["devices"], options["num_nodes"])
        if options["logger"] is not False:
            root, others = options["default_root_dir"] or ".", as_list(options["logger"])
            resumed, step = None if self.options.begins_stage else self.options.resumed, self._resumed_step
            kwargs["logger"] = loggers.make_loggers(root, others, resumed, step, self.options.run_name)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except Exception as error:  # such as an unknown strategy, or an accelerator whose package is not installed
            raise UserError(f"trainer: {first_line(error)}") from error
        device, data = trainer.strategy.root_device, self.datamodule
        with self.options.collect():
            estimate.refuse_too_large(trainer, self.model)
        refuse_missing_compiler(self.model.wants_compile, device)
        allow_tf32(device, self._precision.value)
        if data.requested_global_batch_size is not None and not options["fast_dev_run"]:
            with self.options.collect():
                trainer.accumulate_grad_batches = distributed.accumulation_steps(
                    data.requested_global_batch_size, data.batch_size, trainer.world_size
                )
        return trainer

    def _keep_rules(self, resumed: Path) -> None:
        """Split the text and order its blocks as the resumed run does: an earlier version may have had other rules."""
        self.model.init_from = None  # the run has weights, and the source of its first ones may be gone
        metadata, data = checkpoint.read(resumed, verify=False)[checkpoint.KEY], self.datamodule
        for text in saved_text.training_texts(resumed, metadata):
            if text.split is not None:
                name = text.name or self.options.only_text
                data.texts.longest_held_out_whole[name] = longest_of_range(text.split)
        version = metadata["data"].get("order_version", 1)
        data.order_version = version if version in order.VERSIONS else order.ORDER_VERSION
        data.stages, self._resumed_step = saved_text.stages(resumed, metadata), metadata["step"]
        if self.options.begins_stage:
            data.stages = [stage.rename("", self.options.only_text) for stage in data.stages]
            data.stages.append(Stage(self._resumed_step, metadata["tokens_seen"]))

    def _check_vocabulary(self) -> None:
        """Refuse a tokenizer that does not fit the initial weights, before the run has a folder."""
        source, init_from, spec = self.model.source, self.model.init_from, self.config.data.tokenizer
        if source is None or init_from is None or self.model.replace_tokenizer:
            return
        with self.options.collect():
            if not isinstance(spec, str) and spec.vocab is None:
                raise UserError(
                    f"data.tokenizer: would train a vocabulary that differs from that of model.init_from {init_from}. "
                    "Omit it, or adapt the model to it with --model.replace_tokenizer true"
                )
            mapping = initialize.map_source_vocabulary(source, self.datamodule.tokenizer, init_from, False)
            if mapping.adds_end and self.model.lora_r:
                raise UserError(
                    "model.lora_r: data.tokenizer adds an end-of-text token, which LoRA alone does not train. Add "
                    "--model.replace_tokenizer true"
                )

    def _callbacks(self, options: dict[str, Any], seconds: int | None, only_time: bool) -> list[Callback]:
        """Return the user's callbacks and gpt2kit's. RunSetup comes first: it sets the last step."""
        settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False, skip_validation=True))
        resumed = self.options.resumed
        begins_stage = self.options.begins_stage
        limit = TimeLimit(seconds if only_time else None, self.model.schedule, begins_stage)
        self.run_setup = RunSetup(options, seconds, limit, self._precision, self.args, resumed, settings)
        save_every = self.config.save_every if options["enable_checkpointing"] is not False else None
        stop_after = None if only_time else seconds
        keeps = self.config.save_top_k, stop_after, self.config.best_text
        stage = begins_stage, self.options.only_text
        saver = ExactResume(save_every, *keeps, self.options.override_optimizer, settings, *stage)
        own: list[Callback] = [ThroughputMetrics(), limit, saver, Baseline(begins_stage)]
        others: list[Callback] = as_list(options["callbacks"])
        has_bar = any(isinstance(callback, pl.callbacks.ProgressBar) for callback in others)
        if options["enable_progress_bar"] is not False and not has_bar:
            own.append(ProgressBar())
        return [self.run_setup, *others, *own]

    def measure_plan(self) -> RunInfo:
        """Return the plan of the run, after measuring a few steps with a separate trainer."""
        trainer, data, gpt2, resumed = self.trainer, self.datamodule, self.model, self.options.resumed
        problems = data.text_problems(data.global_batch(trainer))
        with self.options.collect():
            if not problems:
                self.run_setup.choose(trainer, data, gpt2)
            gpt2.take_vocabulary(data.vocab_size, data.document_start)
            gpt2.build_with_weights(data)
        refuse([*self.options.problems, *problems])
        info = self.run_setup.apply(trainer, data, gpt2)
        info["start"]["begun"] = gpt2.start_notes
        # So that the memory of LoRA is counted.
        add_lora(gpt2.model, gpt2.lora_r, gpt2.lora_alpha, train_embedding=gpt2.replace_tokenizer)
        done = max(self._resumed_step - data.first_step, 0) if resumed else 0
        info["run"] |= {"done": done, "max_time": self.run_setup.seconds}
        info["memory"] = estimate.estimate_memory(trainer, data, gpt2)
        kept = self.config.save_top_k + KEEP_NEWEST + (gpt2.schedule.constant_until(1000) is not None)
        info["files"] = estimate.describe_files(info["folder"], gpt2, kept)
        limit = self.config_init.trainer["limit_val_batches"]
        info["speed"] = estimate.measure_speed(self._dry_run_options(), data, gpt2, info, limit)
        return info

    def report_end(self) -> None:
        """Print how the run ended, and what comes next."""
        folder = self.run_folder
        if folder is not None and self.trainer.is_global_zero:
            has_sample = not isinstance(self.trainer.strategy, distributed.FSDP)
            run_summary.print_lines(end_report.end_lines(folder, self.datamodule, has_sample), sys.stderr)

    def report_stop(self) -> None:
        """Print how to resume the run, if it was stopped."""
        folder = self.run_folder
        if folder is not None and self.trainer.is_global_zero:
            run_summary.print_lines(end_report.stop_lines(folder), sys.stderr)

    @property
    def run_folder(self) -> Path | None:
        """The run's folder; None if the run has not begun, or writes nothing."""
        info = self.run_setup.info
        return Path(info["folder"]) if info and info["folder"] else None

    def _dry_run_options(self) -> dict[str, Any]:
        """Return the options of a trainer that trains like the run's and writes nothing."""
        options = {**dict(self.config_init.trainer), **estimate.DRY_RUN_OPTIONS, "precision": self._precision.value}
        return options | {"accumulate_grad_batches": self.trainer.accumulate_grad_batches}

    def find_learning_rate(self) -> None:
        """Print the loss at rising learning rates."""
        data = self.datamodule
        refuse([*self.options.problems, *data.text_problems(data.global_batch(self.trainer))])
        self.run_setup.choose(self.trainer, data, self.model)
        tuning.find_learning_rate(self._dry_run_options(), data, self.model)
