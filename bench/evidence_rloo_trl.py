"""TRL's side of evidence_rloo.py, in `.venv-bench`: RLOOTrainer on a file of problems, one seed a process."""

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from trl import RLOOConfig, RLOOTrainer

from reinforce_trl import ON_CPU


def is_right(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """1 where the response is the answer, else 0."""
    return [float(given.strip() == wanted) for given, wanted in zip(completions, answer, strict=True)]


def main() -> None:
    """Train and save the last weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "problems", "out"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("steps", "prompts", "samples", "tokens", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("lr", "beta", "warmup"):
        parser.add_argument(f"--{name}", type=float, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(asked.out)
    trainer = RLOOTrainer(
        model=asked.model,
        reward_funcs=is_right,
        args=RLOOConfig(
            output_dir=str(out / "trl"),
            per_device_train_batch_size=asked.prompts * asked.samples,
            num_generations=asked.samples,
            max_completion_length=asked.tokens,
            max_steps=asked.steps,
            beta=asked.beta,
            learning_rate=asked.lr,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=round(asked.warmup * asked.steps),
            seed=asked.seed,
            data_seed=asked.seed,
            logging_steps=50,
            **ON_CPU,
        ),
        train_dataset=load_dataset("json", data_files=asked.problems, split="train"),
    )
    trainer.train()
    trainer.save_model(str(out / "model"))


if __name__ == "__main__":
    main()
