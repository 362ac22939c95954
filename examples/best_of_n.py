"""Best-of-n: how much better is the best of n samples of a policy, without any training?

    python examples/best_of_n.py POLICY REWARD_MODEL [SCORER]

For n = 1, 2, 4, 8 it prints the mean score of the response that the reward model prefers, by the reward model itself
and by another scorer (by default `gold`, the known score of the embedded world). If the first keeps rising and the
second does not, the selection exploits errors of the reward model.
"""

import sys

import numpy as np

import treeward as tw

POLICY, REWARD_MODEL, SCORER = (*sys.argv[1:], "gold")[:3]
SAMPLES = 8

policy = tw.Policy.load(POLICY)
prompts = tw.load("world", limit=400).test
rollout = tw.sample(policy, prompts, n=SAMPLES, max_new_tokens=40, seed=0)
proxy = np.array(tw.score(rollout, tw.RewardModel.load(REWARD_MODEL)).scores)  # (prompts, samples)
judge = np.array(tw.score(rollout, SCORER).scores)

print(f"{len(proxy)} prompts; mean +- standard error")
for n in (1, 2, 4, 8):
    best = proxy[:, :n].argmax(1)
    rows = np.arange(len(best))
    for name, scores in (("reward model", proxy[rows, best]), (SCORER, judge[rows, best])):
        error = scores.std(ddof=1) / len(scores) ** 0.5
        print(f"best of {n}, by {name}: {scores.mean():.3f} +- {error:.3f}")
