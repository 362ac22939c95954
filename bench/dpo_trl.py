"""TRL's side of the DPO bench, one task a process, in `.venv-bench`. Modes: default, precomputed, check.

TRL's defaults stand, dropout off included, but for what the bench fixes: batch, length, no gradient checkpointing,
precision, and rows in the order of the file.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from child import Answer, Stopwatch, Task, reply
from pairs import MAX_LENGTH, Pair, gpt2_tokenizer, load


class TimedTrainer(DPOTrainer):  # type: ignore[misc] # TRL is not there to be seen by the type checker
    """TRL's trainer; `before` is the time its constructor took to precompute the reference's log-probabilities."""

    before = 0.0

    def _precompute_ref_logps(self, *given: Any, **named: Any) -> Any:
        with Stopwatch() as watch:
            found = super()._precompute_ref_logps(*given, **named)
        self.before = watch.seconds
        return found


def measure(task: Task) -> Answer:
    """Train on the task's pairs; the time is that of `trainer.train()`, loading and tokenizing left out."""
    torch.set_num_threads(task.threads)
    work = Path(task.work)
    pairs = load(work, task.pairs)
    texts = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    trainer = TimedTrainer(
        model=str(work / "weights"),
        args=arguments(task),
        train_dataset=Dataset.from_list(texts),
        processing_class=gpt2_tokenizer(Path(task.data)),
    )
    require_same_ids(trainer, pairs, task.batch_size)
    with Stopwatch() as watch:
        trainer.train()
    steps = [
        {name: float(value) for name, value in entry.items()} for entry in trainer.state.log_history if "loss" in entry
    ]
    return Answer(seconds=watch.seconds, others=watch.others, before=trainer.before, steps=steps)


def arguments(task: Task) -> Any:
    """TRL's configuration of a task."""
    check = task.mode == "check"
    own: dict[str, Any] = {}
    if check:
        own = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "logging_steps": 1, "disable_dropout": True}
    return DPOConfig(
        output_dir=str(Path(task.work) / "trl"),
        per_device_train_batch_size=task.batch_size,
        num_train_epochs=1,
        max_length=MAX_LENGTH,
        beta=0.1,
        precompute_ref_log_probs=task.mode == "precomputed",
        gradient_checkpointing=False,
        bf16=task.precision == "bf16",
        use_cpu=True,
        train_sampling_strategy="sequential",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **own,
    )


def require_same_ids(trainer: DPOTrainer, pairs: list[Pair], batch_size: int) -> None:
    """Refuse to train unless TRL's batches hold the agreed ids and score the agreed tokens, row by row."""
    expected = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    for batch, members in zip(trainer.get_train_dataloader(), expected, strict=True):
        rows = [pair.rows[side] for side in (0, 1) for pair in members]
        replies = [pair.chosen_ids for pair in members] + [pair.rejected_ids for pair in members]
        columns = (batch["input_ids"], batch["attention_mask"].bool(), batch["completion_mask"].bool())
        for ids, real, scored, row, answer in zip(*columns, rows, replies, strict=True):
            if ids[real].tolist() != row or ids[scored].tolist() != answer:
                raise ValueError(f"TRL's ids differ from the bench's: {trainer.processing_class.decode(row)[:80]!r}")


if __name__ == "__main__":
    reply(measure)
