"""The peer of the sampling bench: `transformers.generate`, plain sampling, one task a process."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from child import Answer, Stopwatch, Task, reply

NEW = 64


BATCH = 128
"""Rows of a call where samples end early."""


def measure(task: Task) -> Answer:
    """Sample all prompts in one call; prompts have one length, so nothing is padded."""
    torch.set_num_threads(task.threads)
    work = Path(task.work)
    model = AutoModelForCausalLM.from_pretrained(work / "model").eval()
    ids = torch.tensor(json.loads((work / "prompts.json").read_text()))
    plain = {
        "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": task.batch_size,
        "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    if task.mode == "uneven":
        ends = json.loads((work / "ends.json").read_text())
        return uneven(model, ids, plain | {"eos_token_id": ends}, task.batch_size)
    model.generation_config.eos_token_id = None
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.precision == "bf16")
    torch.manual_seed(0)
    with torch.no_grad(), bf16:
        model.generate(ids[:2], attention_mask=torch.ones_like(ids[:2]), **plain | {"max_new_tokens": 4})
        with Stopwatch() as watch:
            rows = model.generate(ids, attention_mask=torch.ones_like(ids), **plain)
    assert rows.shape == (len(ids) * task.batch_size, ids.shape[1] + NEW), "a sample ended early"
    with torch.no_grad():
        found = [logp(model, part, ids.shape[1]) for part in rows.split(16)]
    steps = [{"logp": value} for value in torch.cat(found).tolist()]
    return Answer(seconds=watch.seconds, others=watch.others, steps=steps)


def uneven(model: Any, ids: torch.Tensor, plain: dict[str, Any], samples: int) -> Answer:
    """Samples that end at one of many end tokens, `BATCH` rows a call; the length of each, its end token included."""
    torch.manual_seed(0)
    ends = torch.tensor(plain["eos_token_id"])
    lengths: list[dict[str, float]] = []
    with torch.no_grad(), Stopwatch() as watch:
        for part in torch.split(ids, BATCH // samples):
            rows = model.generate(part, attention_mask=torch.ones_like(part), **plain)[:, ids.shape[1] :]
            ended = torch.isin(rows, ends)
            firsts = torch.where(ended.any(1), ended.long().argmax(1) + 1, rows.shape[1])
            lengths += [{"length": float(length)} for length in firsts.tolist()]
    return Answer(seconds=watch.seconds, others=watch.others, steps=lengths)


def logp(model: torch.nn.Module, rows: torch.Tensor, start: int) -> torch.Tensor:
    """The sum of each row's log-probabilities after its prompt."""
    logps = model(rows).logits[:, start - 1 : -1].float().log_softmax(2)
    sums: torch.Tensor = logps.gather(2, rows[:, start:, None]).squeeze(2).sum(1)
    return sums


if __name__ == "__main__":
    reply(measure)
