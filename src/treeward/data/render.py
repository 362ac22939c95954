"""Text to ids, in one place, for training, sampling and scoring.

A string prompt is tokenised as it stands; messages go through the chat template with its generation prompt. A response
is its text alone, then the end token (the template's, else EOS) unless it is unfinished or cut. BOS stands at most
once, in first place; a prompt without tokens becomes BOS, else EOS. Prompts are cut on the left, responses on the
right.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any

from jinja2 import TemplateError

from treeward.errors import UserError
from treeward.trees.text import Message, Prompt, Response, Tree
from treeward.trees.tokens import Tokenizer, TokenTree, decode

PROBE = "treeward"


@dataclass
class Account:
    """What rendering and filtering did to the rows: every loss is counted here and reported.

    `used` counts the trees, and `made` says what they are. `columns` counts the rows in which a column beside the texts
    changes what training does; `layout` says how the columns were read, and `unread` names those that nothing reads.
    `response_lengths` counts responses by their tokens before any cut. `leaked` counts texts that stand in training
    and held out before they are paired, and their rows on both sides; `leaks` are three of them.
    """

    rows: int = 0
    used: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    responses: int = 0
    ended: int = 0
    made: str = "trees"
    layout: str = ""
    unread: list[str] = field(default_factory=list)
    response_lengths: Counter[int] = field(default_factory=Counter)
    leaked: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)

    def response_length(self, share: float) -> int:
        """The least number of tokens that this share of the responses does not exceed; 0 without responses."""
        reached, total = 0, self.response_lengths.total()
        for length, n in sorted(self.response_lengths.items()):
            reached += n
            if reached >= share * total:
                return length
        return 0

    def __str__(self) -> str:
        dropped = ", ".join(f"{n} {why}" for why, n in sorted(self.dropped.items())) or "none"
        cut = ", ".join(f"{n} {what}" for what, n in sorted(self.cut.items())) or "none"
        read = "".join(f"; {name} read in {n} rows" for name, n in sorted(self.columns.items()))
        unread = f"; columns not read: {', '.join(self.unread)}" if self.unread else ""
        return f"{self.rows} rows made {self.used} {self.made}; dropped: {dropped}; cut: {cut}{read}{unread}"


def token_tree(
    tree: Tree,
    tokenizer: Tokenizer,
    max_prompt: int | None = None,
    max_response: int | None = None,
    account: Account | None = None,
) -> TokenTree:
    """The ids of a tree. Losses are counted in `account`: prompts and responses cut, ends scored.

    Raises:
        UserError: the tokenizer has neither BOS nor EOS to stand for an empty prompt or to end a response, or has no
            chat template for a prompt of messages; or a response's sampled ids are not those of its text.
    """
    account = account if account is not None else Account()
    own = bool(tree.vocabulary) and tree.vocabulary == _vocabulary_of(tokenizer)
    prompt = list(tree.prompt_ids) if own and tree.prompt_ids else prompt_ids(tree.prompt, tokenizer)
    if max_prompt is not None and len(prompt) > max_prompt:
        account.cut["prompt"] += 1
        opens = len(prompt) > 1 and prompt[0] == opening_id(tokenizer) and max_prompt > 1
        prompt = [prompt[0], *prompt[-(max_prompt - 1) :]] if opens else prompt[-max_prompt:]
    end = end_id(tokenizer, isinstance(tree.prompt, tuple))
    branches = []
    for number, response in enumerate(tree.responses):
        ids = response_ids(response, tokenizer, end, own)
        account.response_lengths[len(ids)] += 1
        whole = max_response is None or len(ids) <= max_response
        ids = ids[:max_response]
        account.responses += response.finished
        account.ended += response.finished and (not whole or ids[-1] == end)
        if not whole:
            account.cut[f"response {number}"] += 1
        branches.append(tuple(ids))
    ratings = tuple(response.ratings for response in tree.responses)
    judged = ratings if all(ratings) else ()
    return TokenTree(tuple(prompt), tuple(branches), tree.group, judged, tree.subset, tree.weight, tree.margin,
                     tree.attributes)  # fmt: skip


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """The ids that generation starts from; never empty."""
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt, add_special_tokens=False).input_ids) if prompt else []
        if adds_bos(tokenizer) and ids[:1] != [opening_id(tokenizer)]:
            ids = [opening_id(tokenizer), *ids]
    else:
        ids = _templated(tokenizer, prompt, add_generation_prompt=True)
    return ids or [start_id(tokenizer)]


def response_ids(response: Response, tokenizer: Tokenizer, end: int, own: bool = False) -> list[int]:
    """The ids of a response with its end token, whole.

    `own`: the response's sampled ids, where it has any, are this tokenizer's, and stand as they were sampled.

    Raises:
        UserError: the sampled ids are not those of the text.
    """
    if own and response.ids:
        ids = list(response.ids)
        if (said := decode(ids, tokenizer)) != response.text:
            raise UserError(
                f"a response reads {response.text[:60]!r}, but its sampled ids {said[:60]!r}: where a text was edited, "
                "take its ids away (chosen_ids, rejected_ids, responses_ids)"
            )
    else:
        ids = list(tokenizer(response.text, add_special_tokens=False).input_ids)
        if response.finished:
            ids.append(end)
    return ids


def opening_id(tokenizer: Tokenizer) -> int | None:
    """BOS, or an encoder's CLS; None where the tokenizer has neither."""
    return _first(tokenizer.bos_token_id, tokenizer.cls_token_id)


def closing_id(tokenizer: Tokenizer) -> int | None:
    """EOS, or an encoder's SEP; None where the tokenizer has neither."""
    return _first(tokenizer.eos_token_id, tokenizer.sep_token_id)


def start_id(tokenizer: Tokenizer) -> int:
    """What stands for an empty prompt: BOS (an encoder's CLS), else EOS."""
    found = _first(opening_id(tokenizer), closing_id(tokenizer))
    if found is None:
        raise UserError("the tokenizer has neither BOS nor EOS to open an empty prompt; set tokenizer.bos_token")
    return found


def end_id(tokenizer: Tokenizer, chat: bool) -> int:
    """What ends a response: in chats the token that the template puts after an assistant's turn, else EOS (SEP)."""
    found = _first(_template_end(tokenizer) if chat else None, closing_id(tokenizer))
    if found is None:
        raise UserError("the tokenizer has no EOS to end a response; set tokenizer.eos_token")
    return found


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether this tokenizer opens plain text with BOS (or CLS) by itself."""
    opening = opening_id(tokenizer)
    return opening is not None and tokenizer(PROBE).input_ids[:1] == [opening]


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the vocabulary: tokens with their ids, sorted."""
    return sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


@lru_cache(maxsize=4)
def _vocabulary_of(tokenizer: Tokenizer) -> str:
    return vocabulary_hash(tokenizer)


def template_faults(tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """(error, remark) of the chat template: the dialogue must begin with prompt + response + end token.

    A difference in the prompt part is an error; one in the response part a remark; a tail after it is neither.
    """
    if not tokenizer.chat_template:
        return None, None
    question: list[Message] = [{"role": "user", "content": "Is it so?"}]
    prompt = _templated(tokenizer, question, add_generation_prompt=True)
    whole = _templated(tokenizer, [*question, {"role": "assistant", "content": PROBE}], add_generation_prompt=False)
    if whole[: len(prompt)] != prompt:
        return f"the generation prompt {tokenizer.decode(prompt)!r} does not begin {tokenizer.decode(whole)!r}", None
    answer = list(tokenizer(PROBE, add_special_tokens=False).input_ids)
    expected = [*answer, end_id(tokenizer, chat=True)]
    got = whole[len(prompt) : len(prompt) + len(expected)]
    return None, None if got == expected else f"{tokenizer.decode(got)!r} instead of {tokenizer.decode(expected)!r}"


def _template_end(tokenizer: Tokenizer) -> int | None:
    return _template_end_of(tokenizer, tokenizer.chat_template) if tokenizer.chat_template else None


@lru_cache(maxsize=16)
def _template_end_of(tokenizer: Tokenizer, _template: str) -> int | None:
    spoken: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    whole = _templated(tokenizer, spoken, add_generation_prompt=False)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for start in range(len(whole) - 1, -1, -1):
        if PROBE in tokenizer.decode(whole[start:]):
            tail = whole[start:]
            return next((token for token in tail if token in special), None)
    return None


def templated(tokenizer: Tokenizer, spoken: Any, add_generation_prompt: bool) -> str:
    """The text that the chat template makes of messages.

    Raises:
        UserError: the template is damaged, or refuses these messages.
    """
    try:
        return str(
            tokenizer.apply_chat_template(list(spoken), tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as problem:
        # A template is a small program: beside Jinja's own errors it may fail as any expression does.
        said = " ".join(str(problem).split())[:160] or type(problem).__name__
        raise UserError(
            f"the chat template cannot render the messages that begin {str(spoken[0]['content'])[:60]!r} ({said})"
        ) from None


def _templated(tokenizer: Tokenizer, spoken: Any, add_generation_prompt: bool) -> list[int]:
    if not tokenizer.chat_template:
        raise UserError("the prompt is messages, but the tokenizer has no chat template; give plain text prompts")
    text = templated(tokenizer, spoken, add_generation_prompt)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _first(*ids: int | None) -> int | None:
    return next((int(token) for token in ids if token is not None), None)
