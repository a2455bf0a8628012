"""`reader.loss_on` in training, validation and test.py: losses and updates agree with plain PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from helpers import Outcome, final_weights, logged_rows, same_weights, train_run
from torch import Tensor
from torch.nn import functional as F

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import parser, test, train
from gpt2kit.data.order import block_order
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tokenization import tokenizer

pytestmark = pytest.mark.usefixtures("own_runs")

STEPS, BLOCK = 6, 16
# Some titles are longer than a block, so some blocks have no target.
RECORDS = {
    split: [{"title": f"{n} " * (n * 7 % 30), "body": "the lazy dog " * (n % 3 + 1) + f"日本 {n}"} for n in numbers]
    for split, numbers in {"train": range(60), "valid": range(60, 75)}.items()
}


@pytest.fixture(scope="module")
def masked(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a run on these records. The updates of SGD are the gradients."""
    folder = tmp_path_factory.mktemp("records")
    for split, records in RECORDS.items():
        (folder / f"{split}.json").write_text(json.dumps(records))
    return [
        *options,
        *(
            f"--data.{split}_files={folder / name}.json"
            for split, name in zip(["train", "valid", "test"], [*RECORDS, "valid"], strict=True)
        ),
        *("--data.reader.document=file", "--data.reader.template={title}: {body}", "--data.reader.loss_on=body"),
        *(
            "--model.dropout=0",
            "--model.optimizer=torch.optim.SGD",
            "--model.optimizer.lr=0.5",
            "--model.optimizer.momentum=0",
        ),
        *("--model.schedule.warmup=0", "--model.schedule.min_lr_ratio=1", "--trainer.gradient_clip_val=0.6"),
        *(f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=1"),
    ]


def ids_and_targets(split: str, folder: Path) -> tuple[Tensor, Tensor]:
    """Return the ids of a split's text, and the same with -100 for what the loss does not count."""
    encoder = tokenizer.load(folder)
    eos = tokenizer.eos_id(encoder)
    ids, targets = [eos], [-100]
    for record in RECORDS[split]:
        context, body = (encoder.encode(text).ids for text in (f"{record['title']}: ", record["body"]))
        ids += [*context, *body, eos]
        targets += [-100] * len(context) + [*body, eos]
    return torch.tensor(ids), torch.tensor(targets)


def mean_nats(model: GPT2, ids: Tensor, targets: Tensor, firsts: Sequence[int]) -> Tensor:
    """Return the mean over all targets in the blocks that begin at these tokens."""
    logits, labels = [], []
    for first in firsts:
        labels.append(targets[first + 1 : first + BLOCK + 1])
        logits.append(model(ids[None, first : first + len(labels[-1])]).logits[0, :, :320])
    total = F.cross_entropy(torch.cat(logits), torch.cat(labels), ignore_index=-100, reduction="sum")
    return total / max((torch.cat(labels) != -100).sum(), 1)


@pytest.fixture(scope="module")
def runs(masked: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs with 4 sequences per step, in 4 forward passes, and with 1."""
    work = tmp_path_factory.mktemp("runs")
    return {
        count: train_run(work, masked, "--data.batch_size=1", f"--trainer.accumulate_grad_batches={count}")
        for count in (4, 1)
    }


@pytest.mark.parametrize("global_batch", [4, 1])
def test_training_and_validation_agree_with_plain_pytorch(
    global_batch: int, runs: dict[int, Path], corpus: Path
) -> None:
    run = runs[global_batch]
    rows = logged_rows(run)
    (ids, targets), valid = (ids_and_targets(split, corpus / "tokenizer") for split in RECORDS)
    torch.manual_seed(1)
    model = GPT2(checkpoint.open(run).shape)
    order = block_order(len(ids), BLOCK, BLOCK, global_batch, seed=1, shuffle=True)
    losses, norms, valid_losses = [], [], []
    for step in range(STEPS):
        model.zero_grad()
        loss = mean_nats(model, ids, targets, order.step(step).tolist())
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.6).item())
        torch.optim.SGD(model.parameters(), lr=0.5).step()
        if step % 3 == 2:
            valid_losses.append(mean_nats(model, *valid, range(0, len(valid[0]) - 1, BLOCK)).item())
    assert (0.0 in losses) == (global_batch == 1), "a step without targets changes nothing"
    for name, values in {"train_loss": losses, "grad_norm": norms, "val_loss": valid_losses}.items():
        assert [row[name] for row in rows if name in row] == pytest.approx(values, rel=1e-5, abs=1e-9), name
    size = sum(len(record["body"].encode()) + 1 for record in RECORDS["valid"])
    nats = valid_losses[-1] * int((valid[1] != -100).sum())
    assert rows[-1]["val_bpb"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    trained = final_weights(run)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[f"model.{name}"], value, rtol=1e-4, atol=1e-6)


def test_the_test_and_a_resumed_run_count_the_same(
    masked: list[str], runs: dict[int, Path], call: Callable[..., Outcome], inside: Path
) -> None:
    whole, half = runs[1], train_run(inside, masked, "--data.batch_size=1", "--trainer.max_steps=3")
    code, _, err = call(train.main, f"--ckpt_path={half}", "--data.reader.loss_on=title", "--trainer.max_steps=6")
    assert code == 4 and "text was" in err
    train_run(inside, [f"--ckpt_path={half}", f"--trainer.max_steps={STEPS}"])
    assert same_weights(final_weights(whole), final_weights(half))
    code, out, err = call(lambda argv: parser.run(test.test, argv), "--ckpt_path", whole, half, "--json_output", "-")
    assert code == 0, err
    report, last = json.loads(out), logged_rows(whole)[-1]
    assert any("only the text of body is counted" in note for note in report["notes"])
    bodies = [record["body"] for record in RECORDS["valid"]]
    text = report["text"]
    counts = [text["documents"], text["bytes"], text["characters"], text["words"]]
    words = sum(3 * body.count("lazy") + 3 for body in bodies)  # two characters and a number
    assert counts == [15, sum(len(body.encode()) for body in bodies), sum(map(len, bodies)), words]
    for row in report["results"]:
        assert row["loss"] == pytest.approx(last["val_loss"], rel=1e-6)
        assert row["bits_per_byte"] == pytest.approx(last["val_bpb"], rel=1e-6)
    assert paths.step_of(paths.checkpoints(half)[0]) == STEPS
