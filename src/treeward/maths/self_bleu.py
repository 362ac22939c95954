"""Self-BLEU-4 among the samples of one prompt: how alike they are, by sacrebleu.

Each sample is scored against the others of its prompt as references, and the scores are averaged. Tokens are ids, so no
tokeniser comes between; n-grams up to 4, smoothing "exp" (an n-gram order without a match counts half of what the one
before would), orders longer than the response left out. 0 to 1; higher is less diverse.
"""

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU


def self_bleu(samples: Sequence[Sequence[int]]) -> float:
    """The mean over samples of BLEU-4 against the others; 1 for identical ones.

    Raises:
        ValueError: there are fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"self-BLEU is given {len(samples)} samples of a prompt; it needs two, so set samples to 2")
    bleu = BLEU(tokenize="none", smooth_method="exp", effective_order=True)
    lines = [" ".join(map(str, ids)) for ids in samples]
    scores = [bleu.sentence_score(line, lines[:i] + lines[i + 1 :]).score for i, line in enumerate(lines)]
    return sum(scores) / len(scores) / 100
