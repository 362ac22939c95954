"""What each figure is called, and what it means in one line, for the pages and the terminal."""

JUDGE = "judge:"

FIGURES: dict[str, tuple[str, str]] = {
    "nll": ("NLL", "mean negative log-probability of held-out text, in nats a token (policy), or of the held-out "
            "choice, in nats a pair (reward model); lower is better"),
    "nll_token": ("NLL a token", "mean negative log-probability of the held-out responses, in nats a token; lower is "
                  "better"),
    "nll_pair": ("NLL a pair", "mean negative log-probability that the model gives to the held-out choices, in nats a "
                 "pair; lower is better, and always saying one half gives 0.69"),
    "accuracy": ("pair accuracy", "share of held-out pairs in which the chosen response scores higher than the "
                 "rejected one; a tie counts one half"),
    "log_ratio_chosen": ("log-ratio, chosen", "log-probability of the chosen response, trained model minus start, in "
                         "nats"),
    "log_ratio_rejected": ("log-ratio, rejected", "log-probability of the rejected response, trained model minus "
                           "start, in nats"),
    "brier": ("Brier score", "mean squared error of the predicted probability that the chosen response wins; lower is "
              "better, and always saying one half gives 0.25"),
    "mae": ("rating error", "mean distance between the predicted score and the rating, in score bins; lower is better"),
    "crps": ("CRPS", "mean distance between the predicted distribution of scores and the rating (continuous ranked "
             "probability score), in score bins; lower is better"),
    "cross_entropy": ("rating cross-entropy", "mean negative log-probability of the rating under the predicted "
                      "distribution of scores, in nats; lower is better"),
    "score": ("score", "mean score of responses sampled from the model, as the scorer gives it"),
    "kl": ("KL to the start", "how far the model has moved from its start: KL divergence a response, in nats"),
    "kl_token": ("KL a token", "the same divergence a token of the response, in nats"),
    "entropy": ("next-token entropy", "how undecided the model is about each next token of its samples, in nats"),
    "start_nll": ("NLL under the start", "mean negative log-probability that the start model gives to the samples, in "
                  "nats a token; a rise means text that the start would not write"),
    "self_bleu": ("self-BLEU", "overlap (BLEU-4) of a sample with the other samples of its prompt: 0 nothing in "
                  "common, 1 all alike"),
    "repetition": ("repetition", "share of a sample's 4-token sequences that it has already used"),
    "length": ("length", "tokens of a sample, its end token included"),
    "ended": ("ended", "share of samples that end by themselves, before the length limit"),
    "token_entropy": ("pooled entropy", "entropy of the token frequencies of all samples together, in nats: how varied "
                      "the words are"),
    "distinct_1": ("distinct-1", "share of the samples' tokens that are different from each other"),
    "distinct_2": ("distinct-2", "share of the samples' token pairs that are different from each other"),
    "distinct_3": ("distinct-3", "share of the samples' token triples that are different from each other"),
    "perplexity": ("perplexity", "of the samples under the start model: how surprising the start finds them"),
    "ece": ("calibration error", "mean distance between the stated probability and the share that comes true, ten bins "
            "of equal size"),
}  # fmt: skip
"""Label and meaning by the name that receipts use."""


def label(name: str) -> str:
    """A figure's name in words; a judge's is its own."""
    return f"judge {name.removeprefix(JUDGE)}" if name.startswith(JUDGE) else FIGURES.get(name, (name, ""))[0]


def meaning(name: str) -> str:
    """What a figure means, in one line; empty for a name that is not known."""
    if name.startswith(JUDGE):
        return "mean score of the same samples by a judge that training never used"
    return FIGURES.get(name, ("", ""))[1]
