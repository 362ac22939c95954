"""A preference loss of your own, from the command line:

    treeward dpo world-dpo --loss examples/custom_loss.py:focal

A loss is any function of the pairs that returns one number a pair. It may declare properties, all optional. This one
declares `at_start`, its value where policy and reference model are equal; the run checks it before the first step.
"""

import math

from torch.nn.functional import logsigmoid


def focal(pairs, beta=0.1, gamma=2.0):
    """The sigmoid loss times (1 - sigma(beta D))^gamma, which gives less weight to pairs that are already right."""
    difference = beta * (pairs.chosen_logratios - pairs.rejected_logratios)
    return -((-difference).sigmoid() ** gamma) * logsigmoid(difference)


focal.at_start = lambda start=None: 0.5**2 * math.log(2)
