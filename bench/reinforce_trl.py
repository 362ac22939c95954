"""TRL's side of the REINFORCE bench, one task a process, in `.venv-bench`."""

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from child import Answer, Stopwatch, Task, reply
from pairs import gpt2_tokenizer

NEW = 64
ON_CPU: dict[str, Any] = {
    "disable_dropout": True, "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "report_to": [],
    "save_strategy": "no", "disable_tqdm": True,
}  # fmt: skip
"""What every run of TRL's trainer here has: fp32 on the CPU, no dropout, nothing reported or saved."""


def letters(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The reward of both sides: how often the letter e occurs."""
    return [float(completion.count("e")) for completion in completions]


class Timed(RLOOTrainer):  # type: ignore[misc] # TRL is not there to be seen by the type checker
    """TRL's trainer, which times its rollouts and, of these, the sampling."""

    def _generate(self, *given: Any, **named: Any) -> Any:
        with Stopwatch() as self.sampling:
            return super()._generate(*given, **named)

    def _generate_and_score_completions(self, *given: Any, **named: Any) -> Any:
        with Stopwatch() as self.rollout:
            return super()._generate_and_score_completions(*given, **named)


class Steps(TrainerCallback):  # type: ignore[misc]
    """Times each optimizer step."""

    def on_step_begin(self, *given: Any, **named: Any) -> None:
        self.watch = Stopwatch().__enter__()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.watch.__exit__(None, None, None)


def measure(task: Task) -> Answer:
    """One step; nothing is computed once before it that it would use again."""
    torch.set_num_threads(task.threads)
    work = Path(task.work)
    rows = json.loads((work / "prompts.json").read_text())
    prompts = len(rows) // 2
    tokenizer = gpt2_tokenizer(Path(task.data))
    tokenizer.pad_token = tokenizer.eos_token
    steps = Steps()
    trainer = Timed(
        model=str(work / "model"),
        reward_funcs=letters,
        args=RLOOConfig(
            output_dir=str(work / "trl"),
            per_device_train_batch_size=task.batch_size * prompts // 4,
            gradient_accumulation_steps=4,
            num_generations=task.batch_size,
            max_completion_length=NEW,
            max_steps=1,
            beta=0.05,
            learning_rate=1e-6,
            shuffle_dataset=False,
            logging_steps=1,
            **ON_CPU,
        ),
        train_dataset=Dataset.from_list([{"prompt": row["text"]} for row in rows[prompts:]]),
        processing_class=tokenizer,
        callbacks=[steps],
    )
    trainer.train()
    lengths = [entry["completions/mean_length"] for entry in trainer.state.log_history if "loss" in entry]
    sampling, rollout, step = trainer.sampling, trainer.rollout, steps.watch
    # The rollout may be made before on_step_begin; what it took is then not in the step.
    inside = rollout.seconds if step.seconds > rollout.seconds else 0.0
    parts = {
        "sampling": sampling.seconds,
        "scoring": rollout.seconds - sampling.seconds,
        "gradient": step.seconds - inside,
    }
    return Answer(
        seconds=sum(parts.values()), others=max(step.others, rollout.others), steps=[{**parts, "length": lengths[-1]}]
    )


if __name__ == "__main__":
    reply(measure)
