"""The peer of the score bench: a `transformers` text-classification pipeline over whole texts, one task a process."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from child import Answer, Stopwatch, Task, reply
from pairs import load


def measure(task: Task) -> Answer:
    """Score the task's texts, both sides of each pair, at the task's batch size."""
    torch.set_num_threads(task.threads)
    where = str(Path(task.work) / "model")
    tokenizer = AutoTokenizer.from_pretrained(where, padding_side="right")
    model = AutoModelForSequenceClassification.from_pretrained(where)
    judge = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    end = tokenizer.eos_token
    texts = [
        pair.prompt + side + end for pair in load(Path(task.work), task.pairs) for side in (pair.chosen, pair.rejected)
    ]
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.precision == "bf16")
    with Stopwatch() as watch, bf16:
        found = judge(texts, batch_size=task.batch_size, function_to_apply="none", add_special_tokens=False)
    return Answer(seconds=watch.seconds, others=watch.others, steps=[{"score": row["score"]} for row in found])


if __name__ == "__main__":
    reply(measure)
