"""GPT2Module: a LightningModule around `model.gpt2.GPT2`, which is Hugging Face's `GPT2LMHeadModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt2kit import dtensor
from gpt2kit.checkpoint import checkpoint, initialize
from gpt2kit.checkpoint.checkpoint import LoadedCheckpoint
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.errors import refuse
from gpt2kit.model.backends import Attention, Choice, Compile, choose_attention
from gpt2kit.model.config import SHAPE_FIELDS, Activation, Auto, Shape, shape_problems
from gpt2kit.model.freezing import FrozenParameters, names_parts
from gpt2kit.model.lora import add_lora
from gpt2kit.optim.adamw import parameter_groups
from gpt2kit.optim.muon import Muon
from gpt2kit.optim.nonfinite import NonFiniteGuard, unfuse
from gpt2kit.optim.schedules import LRSchedule, Schedule, WarmupStableDecay
from gpt2kit.training.auto import InitialLoss, Sizes, measure_loss
from gpt2kit.training.loggers import MetricsRow, log_every
from gpt2kit.training.losses import StepLoss, Validation, ValidationSums

if TYPE_CHECKING:
    from gpt2kit.data.datamodule import TextDataModule
    from gpt2kit.model.gpt2 import GPT2


class GPT2Module(pl.LightningModule):
    """GPT-2 of any size, trained from scratch or from pretrained weights.

    Args:
        n_layer: Number of transformer blocks. auto: by the size of the training text (docs/training.md).
        n_head: Number of attention heads; divides n_embd.
        n_embd: Width of the residual stream.
        n_inner: Width of the feed-forward layer. Default: 4 x n_embd.
        activation_function: Activation of the feed-forward layer; gelu_new is GPT-2's.
        dropout: Dropout of embeddings, attention and residual branches. auto: 0.1 for text that is read four times or
            more, else 0.
        embd_pdrop: Dropout after the embeddings. Default: dropout.
        attn_pdrop: Dropout of attention weights. Default: dropout.
        resid_pdrop: Dropout of each residual branch. Default: dropout.
        initializer_range: Standard deviation of initial weights. Residual projections get it / sqrt(2 n_layer).
        layer_norm_epsilon: Added to the variance in layer norms.
        init_from: Initial weights: a run, checkpoint, Hugging Face folder, folder of a peft adapter or
            hf://OWNER/NAME, or a checkpoint of nanoGPT, whose vocabulary is data.tokenizer. They decide n_layer,
            n_head, n_embd, n_inner, activation_function and layer_norm_epsilon, and, unless set, data.block_size and
            data.tokenizer. A resumed run does not read it again.
        adapter_base: The model that the adapter of init_from belongs to. Default: the one on the hub that it names.
        replace_tokenizer: Adapt the weights of init_from to data.tokenizer. Each new token starts as the mean of the
            old tokens that spell it.
        freeze: Parts that are not trained, such as `embeddings` or `0-5`. Layers by number, `embeddings`, `layers`,
            `body` (all but the token embedding), or names such as `wpe`, `ln_f`, `h.0.attn`.
        freeze_steps: Optimizer steps for which freeze holds. Default: all.
        lora_r: Rank of LoRA: train small matrices next to the hidden ones. 0: no LoRA. It needs the package
            peft. With replace_tokenizer the token embedding is trained, too. The small matrices are merged into the
            weights when a checkpoint is opened.
        lora_alpha: LoRA's matrices are scaled by lora_alpha / lora_r. Default: 2 x lora_r.
        gradient_checkpointing: Save memory by recomputing activations in the backward pass. About a third slower.
        attention: Implementation of attention: sdpa (torch's kernels), plain (matrix products), auto (the faster one).
        compile: What is compiled: blocks (each transformer block), model (all in one), off, or auto (blocks, from the
            second step on, if the run is long enough to repay it).
        optimizer: Class of the optimizer: gpt2kit.optim.Muon, gpt2kit.optim.AdamW or most of torch.optim's. It gets two
            groups: hidden matrices, which decay, and the rest, which does not. torch.optim.Muon accepts only matrices,
            and LBFGS accepts no groups, so they do not work.
        schedule: Learning-rate schedule: a factor for each optimizer step.
        max_nonfinite_steps: Maximum number of steps with a NaN or Inf gradient in the whole run. Their updates are
            skipped; the next such step stops training (exit code 6). Default: the first one stops it.
        max_grad_scaler_skips: With 16-mixed, maximum number of consecutive steps that the loss scaler may skip because
            a gradient overflowed. One more stops training.
        document_start: Token that begins a document, if tokens must not see other documents. In training it comes from
            data.mask_documents.
        vocab_size: Number of tokens; the embedding has the next multiple of 64 rows. In training it comes from the
            tokenizer, and the network is built in `configure_model`; if it is given, the network is built at once.
        n_positions: Context in tokens. In training it comes from data.block_size.
    """

    model: GPT2
    frozen: FrozenParameters
    tokenizer: Tokenizer  # only after `load_from_checkpoint`

    def __init__(
        self,
        n_layer: int | Auto = "auto",
        n_head: int | Auto = "auto",
        n_embd: int | Auto = "auto",
        n_inner: int | None = None,
        activation_function: Activation = "gelu_new",
        dropout: float | Auto = "auto",
        embd_pdrop: float | None = None,
        attn_pdrop: float | None = None,
        resid_pdrop: float | None = None,
        initializer_range: float = 0.02,
        layer_norm_epsilon: float = 1e-5,
        init_from: str | None = None,
        adapter_base: str | None = None,
        replace_tokenizer: bool = False,
        freeze: Sequence[int | str] | int | str = (),
        freeze_steps: int | None = None,
        lora_r: int = 0,
        lora_alpha: float | None = None,
        gradient_checkpointing: bool = False,
        attention: Attention = "auto",
        compile: Compile = "auto",
        optimizer: Callable[[Iterable[Any]], Optimizer] = lambda params: Muon(params),
        schedule: Schedule = WarmupStableDecay(),
        max_nonfinite_steps: int = 0,
        max_grad_scaler_skips: int = 50,
        document_start: int | None = None,
        vocab_size: int | None = None,
        n_positions: int = 1024,
    ) -> None:
        super().__init__()
        values = (n_layer, n_head, n_embd, n_inner, activation_function, initializer_range, layer_norm_epsilon)
        drops = (dropout if drop is None else drop for drop in (embd_pdrop, attn_pdrop, resid_pdrop))
        # The architecture, which is stored in every checkpoint. RunSetup replaces `auto` with numbers.
        self.shape: Shape = dict(zip(SHAPE_FIELDS, (*values, *drops, vocab_size, n_positions), strict=True))
        refuse(shape_problems(self.shape))
        self.attention, self.optimizer, self.schedule = attention, optimizer, schedule
        self.sizes = Sizes()  # what `auto` means
        self.wants_compile, self._is_compiled = compile, False
        self.compiled: Compile = "off" if compile == "auto" else compile  # RunSetup decides what auto means
        self.document_start = document_start
        # The user's values of options that the tokenizer decides. They must agree with it.
        self.expected: dict[str, Any] = {} if vocab_size is None else {"vocab_size": vocab_size}
        self.init_from, self.adapter_base, self.replace_tokenizer = init_from, adapter_base, replace_tokenizer
        self.lora_r, self.lora_alpha = lora_r, lora_alpha
        self.source: LoadedCheckpoint | None = None  # the checkpoint of `init_from`, if it is open already
        # A description of the initial weights, which is stored in checkpoints, and notes on them. None: random weights.
        self.start: dict[str, Any] | None = None
        self.initial_loss: InitialLoss | None = None
        self.start_notes: list[str] = []
        self._freeze, self._freeze_steps = freeze, freeze_steps
        self.is_partly_frozen = bool(lora_r) or names_parts(freeze)
        self.recomputes = gradient_checkpointing
        self.is_built = False
        self.guard = NonFiniteGuard(max_nonfinite_steps, max_grad_scaler_skips)
        self.config_groups: list[dict[str, Any]] = []  # the optimizer's settings from the config, not from a checkpoint
        self.first_step = 0  # of the stage; the schedule begins with it
        self.estimated_steps = 0  # if only time limits the run; 0: unknown, or the last step is known
        self.has_mask = False  # whether the loss counts only a part of each document
        self.validation: Validation | None = None  # the last one
        if vocab_size is not None:
            self.build()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: torch.device | str | None = None, **options: Any
    ) -> GPT2Module:
        """Return a module in eval mode with the weights and the tokenizer of a checkpoint; no code in it is executed.

        Args:
            checkpoint_path: `last`, a run folder (its best checkpoint), a .ckpt file, or a Hugging Face folder.
            map_location: the device. Default: the CPU.
            **options: other parameters of the module, such as `optimizer`.
        """
        opened = checkpoint.open(checkpoint_path)
        module = cls(**opened.shape, document_start=opened.document_start, **options)
        module.model.load_state_dict(opened.state)
        module.model.use_attention(module.attention)
        module.tokenizer = opened.tokenizer
        return module.eval().to(map_location or "cpu")

    def prepare_data(self) -> None:
        """Check the user's values against the tokenizer, before the run's folder is created."""
        if (text := self.trainer.datamodule) is not None:  # type: ignore[attr-defined]
            self.check_vocabulary(text.vocab_size, text.document_start)

    def setup(self, stage: str) -> None:
        text = self.trainer.datamodule  # type: ignore[attr-defined]
        if text is not None:
            self.take_vocabulary(text.vocab_size, text.document_start)
            self.has_mask = any(each.reader.loss_on for each in text.texts.of("train"))
        self.step_loss, self.validation_sums = StepLoss(self.has_mask), ValidationSums()
        self._metrics = MetricsRow()  # of the step or validation in progress

    def check_vocabulary(self, vocab_size: int, document_start: int | None) -> None:
        """Raise if the user's values differ from those that the tokenizer decides."""
        decided = {"vocab_size": vocab_size, "document_start": document_start}
        refuse(
            [
                f"model.{name} {value}: the tokenizer decides it, and gives {decided[name]}. Omit it"
                for name, value in self.expected.items()
                if repr(value) != repr(decided[name])  # 0 is not False
            ]
        )

    def take_vocabulary(self, vocab_size: int, document_start: int | None) -> None:
        """Set the vocabulary size and the document start that the tokenizer decides."""
        self.check_vocabulary(vocab_size, document_start)
        self.shape["vocab_size"], self.document_start = vocab_size, document_start
        if self.is_built:
            self.model.document_start = document_start

    def take_sizes(self, sizes: Sizes) -> None:
        """Replace `auto` in the architecture with numbers, and set what it means for the optimizer."""
        for name in [name for name, value in self.shape.items() if value == "auto"]:
            self.shape[name] = sizes.dropout if name.endswith("_pdrop") else getattr(sizes, name)
        self.sizes = sizes

    def make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Return the optimizer of two parameter groups: hidden matrices, which decay, and the rest."""
        optimizer = self.optimizer(groups)
        options = replace(self.sizes, n_embd=self.shape["n_embd"]).optimizer_options(type(optimizer))
        for name in getattr(optimizer, "automatic", ()):
            group, key = (1, "lr") if name == "adamw_lr" else (0, name)
            optimizer.param_groups[group][key] = options[name]
        return optimizer

    def build(self) -> None:
        """Build the network with random weights, on the CPU and in float32 whatever the trainer's precision."""
        from gpt2kit.model.gpt2 import GPT2  # here, so that trainer.py --help need not import transformers

        if "auto" in self.shape.values():
            self.take_sizes(Sizes())
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.device("cpu"):
                self.model = GPT2(self.shape, self.document_start)
        finally:
            torch.set_default_dtype(default)
        self.frozen = FrozenParameters(self.model, self._freeze, self._freeze_steps)
        if self.recomputes:
            self.model.recompute_activations()
        self.is_built = True

    def build_with_weights(self, data: TextDataModule) -> None:
        """Build the network, with random weights or those of `init_from`, adapted to the context and the tokenizer.

        Learning rates that are `auto` follow from how well these weights predict the text. Does nothing if the network
        is built already.
        """
        if not self.is_built:
            torch.manual_seed(data.seed)
            self.build()
        if self.init_from is None or self.start is not None:
            return
        source = self.source or initialize.open_source(self.init_from, ForeignOptions(adapter_base=self.adapter_base))
        self.start, self.start_notes = initialize.load_initial_weights(
            self.model, source, data.tokenizer, self.init_from, self.replace_tokenizer
        )
        self.source = None  # frees its memory
        own = source.metadata.get("val_bpb")
        self.initial_loss = measure_loss(self.model, data.store("train"), data.block_size, own)
        if not self.lora_r:  # few weights change the others little, and need the full rates
            self.sizes = replace(self.sizes, rate_factor=self.initial_loss.rate_factor())

    def configure_model(self) -> None:
        """Build the network, load initial weights, add LoRA and shard, before Lightning loads a checkpoint."""
        if self.trainer.ckpt_path is not None:
            self.init_from = None  # a resumed run has weights, and the source of its first ones may be gone
        self.build_with_weights(self.trainer.datamodule)  # type: ignore[attr-defined]
        add_lora(self.model, self.lora_r, self.lora_alpha, train_embedding=self.replace_tokenizer)
        if self.device_mesh is not None:
            dtensor.shard_model(
                self.model, self.model.transformer.h, ("nll", "token_nll"), self.device_mesh["data_parallel"]
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.make_optimizer(parameter_groups(self.model))
        if isinstance(optimizer, Muon) and self.device.type == "cpu" and self.trainer.num_nodes == 1:
            optimizer.ranks = self.global_rank, self.trainer.world_size  # faster there; not measured elsewhere
        self.config_groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        if self.trainer.scaler is not None:  # fp16: gradients are clipped here, so they are unscaled here
            unfuse(optimizer)
        scheduler = LRSchedule(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate. Until the last step is known, it is that of the warmup, then 1."""
        step = max(step - self.first_step, 0)
        if self.trainer.max_steps > 0:
            return self.schedule(step, self.trainer.max_steps - self.first_step)
        return min((step + 1) / (self.schedule.warmup_steps(self.estimated_steps - self.first_step) + 1), 1.0)

    def on_fit_start(self) -> None:
        self.model.use_attention(self.attention)
        if self.wants_compile != "auto":
            self.model.compile_for_training(self.compiled)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Compilation takes longer than all that comes before it, so `auto` takes the first step without it. Which steps
        # are compiled depends on their numbers alone, so a resumed run computes the same.
        if self.wants_compile == "auto" and not self._is_compiled and self.trainer.global_step:
            self._is_compiled = True
            self.model.compile_for_training(self.compiled)

    def choose_attention(self, device: torch.device) -> Choice:
        """Return how attention is computed in training on a device, and why."""
        return choose_attention(self.attention, device, self.shape)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        nats, targets = self.model.nll(batch)
        positions = batch[:, 1:].numel()
        loss = self.step_loss.add(nats, targets, positions)
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            mean = self.step_loss.finish(self.trainer, positions, self._is_log_step())
            if mean is not None:
                self.add_metrics({"train_loss": mean})
        return loss

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as the trainer's options say and measure the norm; stop before an update with NaN or Inf."""
        self.frozen.drop_gradients(self.trainer.global_step)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.step_loss.correct_gradients(parameters)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if gradient_clip_val and gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        norm = dtensor.full_tensor(norm)
        self.guard.before_update(optimizer, norm, self.trainer.global_step + 1, self.trainer.scaler is not None)
        if self._is_log_step():
            self.guard.check()
            self.add_metrics({"grad_norm": norm})

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._metrics.write(self)

    def on_validation_start(self) -> None:
        self.guard.check()

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_sums.add(dataloader_idx, *self.model.nll(batch))

    def on_validation_epoch_end(self) -> None:
        texts = self.trainer.datamodule.valid_texts()  # type: ignore[attr-defined]
        validation = self.validation_sums.finish(self.trainer, texts)
        self.add_metrics(validation.metrics())
        self._metrics.write(self)
        if not self.trainer.sanity_checking:
            self.validation = validation

    def current_validation(self) -> Validation | None:
        """Return the validation of the current weights; None if they are not validated."""
        is_current = self.validation is not None and self.validation.step == self.trainer.global_step
        return self.validation if is_current else None

    def add_metrics(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Pass metrics to the callbacks at once, and to the loggers in the row of the step."""
        if not self.trainer.sanity_checking:
            self._metrics.add(metrics, self.trainer)

    def _is_log_step(self) -> bool:
        """Return whether the optimizer step in progress is logged."""
        return (self.trainer.global_step + 1) % log_every(self.trainer) == 0
