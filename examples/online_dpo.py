"""Online DPO with a reward that checks the answer: sample, score, pick pairs, take a step; at the end score and KL.

    python examples/online_dpo.py                              # the small embedded model, examples/problems.jsonl
    python examples/online_dpo.py MODEL PROBLEMS.jsonl OUT     # a model directory or hub id, your rows, a new directory

Each row of PROBLEMS.jsonl has a `prompt` and an `answer`.
"""

import sys

from torch.nn.functional import softplus

import treeward as tw

MODEL, PROBLEMS, OUT = (*sys.argv[1:], *("world", "examples/problems.jsonl", None)[len(sys.argv) - 1 :])


def loss(pairs, beta=0.1):
    """DPO: any function of the pairs that returns one number a pair."""
    return softplus(-beta * (pairs.chosen_logratios - pairs.rejected_logratios))


def reward(prompt, response, row):
    """1 if the answer is in the response, else 0."""
    return float(row["answer"] in response.split())


policy = tw.Policy.load(MODEL)
prompts = tw.load(PROBLEMS, keep=["answer"])  # .train, .validation, .test: trees without responses
reference = policy.frozen_copy()
loop = tw.Loop(policy, tw.PairObjective(loss, reference), lr=1e-4)
for number, batch in enumerate(tw.Batches(prompts.train, size=16, seed=0)):
    rollout = tw.score(tw.sample(policy, batch, n=8, max_new_tokens=32, seed=0, step=number), reward)
    pairs = tw.best_worst(rollout)  # prompts whose samples all have one score give no pair
    if pairs:
        step = loop.step(pairs)
        print(f"step {step.index}: {len(pairs)} pairs, loss {step.metrics['loss']:.4f}")
print(tw.evaluate(policy, prompts.test, scorer=reward, reference=reference))  # score and KL with intervals
if OUT:
    policy.save(OUT)
