"""The embedded sums: additions of numbers up to 99, whose answers can be checked, without network.

A prompt is a problem, `17+38=`; its answer is `55`, and every problem stands once. The tokenizer has one token a
character. `exact-match` compares a response with the column `answer` (`--data.keep '[answer]'`).
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from treeward.errors import UserError

HIGHEST = 99
"""Largest number of a problem."""
WRONG = 0.3
"""Share of wrong answers in the texts."""
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def vocabulary() -> list[str]:
    """Every token, special ones first."""
    return [*SPECIAL, *"0123456789+="]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; `<bos>` opens every text, `<eos>` ends a response."""
    ids = {token: number for number, token in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])])
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=32,
    )  # fmt: skip


def model_config() -> "transformers.LlamaConfig":
    """A four-layer Llama of about 0.8 million parameters."""
    return transformers.LlamaConfig(
        vocab_size=len(vocabulary()), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def problems(seed: int, count: int = 10_000) -> list[dict[str, Any]]:
    """Distinct problems as `prompt`, with `answer`. Of the same seed, fewer problems are the first ones of more.

    Raises:
        UserError: there are not so many problems.
    """
    every = [_problem(a, b) for a in range(HIGHEST + 1) for b in range(HIGHEST + 1)]
    if count > len(every):
        raise UserError(f"data.source arithmetic:{count}: there are {len(every)} problems")
    random.Random(f"problems {seed}").shuffle(every)
    return every[:count]


def texts(seed: int, count: int = 20_000) -> list[dict[str, Any]]:
    """Problems drawn anew for each row as `prompt` and `completion`, for supervised fine-tuning; a share of `WRONG` of
    the answers is off by 1 to 9, as in texts of doubtful origin.
    """
    draw = random.Random(f"texts {seed}")
    every = problems(seed)
    rows = []
    for _ in range(count):
        problem = draw.choice(every)
        off = draw.choice((-1, 1)) * draw.randint(1, 9) if draw.random() < WRONG else 0
        rows.append({"prompt": problem["prompt"], "completion": str(abs(int(problem["answer"]) + off))})
    return rows


def _problem(a: int, b: int) -> dict[str, Any]:
    return {"prompt": f"{a}+{b}=", "answer": str(a + b)}


KINDS: Mapping[str, Callable[..., list[dict[str, Any]]]] = {"arithmetic": problems, "arithmetic-texts": texts}
"""The names of the sums in `data.source`."""
