"""A scorer of your own that sees the data row, from the command line:

    treeward pairs --model.path MODEL --data.source examples/problems.jsonl --data.keep '[answer]' \
        --scorer examples/custom_scorer.py:correct

A scorer is a function of prompt, response and row that returns one number; higher is better. `row` has the other
columns of the prompt's data row, here the answer. `correct_batch` scores all samples in one call instead.
"""


def correct(prompt, response, row):
    """1 if the answer is in the response, minus 0.01 for each word of the response."""
    return float(row["answer"] in response.split()) - 0.01 * len(response.split())


def correct_batch(samples):
    """The same scores, in one call for all samples: for a remote judge, a compiler, a test runner."""
    return [correct(sample.prompt, sample.response, sample.row) for sample in samples]
