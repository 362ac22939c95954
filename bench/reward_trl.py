"""TRL's side of the reward bench, one task a process, in `.venv-bench`.

TRL's defaults stand but for what the bench fixes: batch, length, no gradient checkpointing, precision, and rows in the
order of the file.
"""

from pathlib import Path

import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from child import Answer, Stopwatch, Task, reply
from pairs import MAX_LENGTH, gpt2_tokenizer, load


def measure(task: Task) -> Answer:
    """Train on the task's pairs; the time is that of `trainer.train()`, loading and tokenizing left out."""
    torch.set_num_threads(task.threads)
    work = Path(task.work)
    pairs = load(work, task.pairs)
    texts = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    trainer = RewardTrainer(
        model=str(work / "weights"),
        args=RewardConfig(
            output_dir=str(work / "trl"),
            per_device_train_batch_size=task.batch_size,
            num_train_epochs=1,
            max_length=MAX_LENGTH,
            learning_rate=1e-5,
            gradient_checkpointing=False,
            bf16=task.precision == "bf16",
            use_cpu=True,
            train_sampling_strategy="sequential",
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(texts),
        processing_class=gpt2_tokenizer(Path(task.data)),
    )
    with Stopwatch() as watch:
        trainer.train()
    steps = [{"accuracy": float(entry["accuracy"])} for entry in trainer.state.log_history if "accuracy" in entry]
    return Answer(seconds=watch.seconds, others=watch.others, steps=steps)


if __name__ == "__main__":
    reply(measure)
