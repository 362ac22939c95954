"""Your own optimizer, schedule and logging around a step: supervised fine-tuning with SGD and a CSV file.

python examples/own_optimizer.py [LOG.csv]
"""

import csv
import sys

import torch

import treeward as tw

policy = tw.Policy.load("world")
texts = tw.load("world-texts", limit=400)

optimizer = torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
batches = tw.Batches(texts.train, size=16, epochs=1, seed=0)
loop = tw.Loop(policy, tw.TokenNLL(), optimizer=optimizer, scheduler=scheduler, max_grad_norm=1.0)

with open(sys.argv[1] if len(sys.argv) > 1 else "log.csv", "w", newline="") as file:
    log = csv.writer(file)
    log.writerow(["step", "loss", "grad_norm", "lr"])
    for batch in batches:
        step = loop.step(batch)
        numbers = step.numbers()  # reads the metrics, which waits for the device; skip it on steps that you do not log
        log.writerow([step.index, numbers["loss"], numbers["grad_norm"], numbers["lr"]])
        if step.index % 5 == 0:
            print(f"step {step.index} of {len(batches)}: loss {numbers['loss']:.3f}")
