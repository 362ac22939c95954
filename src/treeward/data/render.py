"""Text to ids, in one place, for training, sampling and scoring.

A string prompt is tokenized as it is; messages go through the chat template with its generation prompt. A response is
its text alone, then the end token (the template's, else EOS) unless it is unfinished or cut. BOS appears at most once,
in first place; a prompt without tokens becomes BOS, else EOS. Prompts are cut on the left, responses on the right.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import islice

from jinja2 import TemplateError

from treeward.data.account import Account
from treeward.errors import UserError
from treeward.trees.text import Message, Prompt, Response, Tree
from treeward.trees.tokens import Tokenizer, TokenTree, decode

PROBE = "treeward"
CHUNK = 512
"""Trees whose texts are tokenized in one call. Memory holds one chunk's ids."""

Ids = Sequence[int]


def token_trees(
    trees: Iterable[Tree],
    tokenizer: Tokenizer,
    max_prompt: int | None = None,
    max_response: int | None = None,
    account: Account | None = None,
) -> Iterator[TokenTree]:
    """The ids of trees, in order. Losses are counted in `account`: prompts and responses cut, ends scored.

    The texts of `CHUNK` trees are tokenized in one call: each call has a cost of its own, and a fast tokenizer can
    spread a list of texts over the cores.

    Raises:
        UserError: the tokenizer has neither BOS nor EOS to stand for an empty prompt or to end a response, or has no
            chat template for a prompt of messages; or a response's sampled ids are not those of its text.
    """
    account = account if account is not None else Account()
    bos = bos_of_plain_text(tokenizer)
    remaining = iter(trees)
    while chunk := list(islice(remaining, CHUNK)):
        prompt_texts = [
            None if _has_prompt_ids(tree, tokenizer) else prompt_text(tree.prompt, tokenizer) for tree in chunk
        ]
        responses = [response.text for tree in chunk for response in tree.responses]
        ids_of = tokenize([*(text for text in prompt_texts if text), *responses], tokenizer)
        for tree, text in zip(chunk, prompt_texts, strict=True):
            if text is None:
                prompt = list(tree.prompt_ids)
            else:
                opening = bos if isinstance(tree.prompt, str) else None
                prompt = _opened(ids_of[text] if text else [], opening, tokenizer)
            prompt = _cut_prompt(prompt, max_prompt, tokenizer, account)
            branches = _branches(tree, ids_of, tokenizer, max_response, account)
            ratings = tuple(response.ratings for response in tree.responses)
            yield TokenTree(
                tuple(prompt),
                branches,
                tree.group,
                ratings if all(ratings) else (),
                tree.subset,
                tree.weight,
                tree.margin,
                tree.attributes,
                tree.row,
            )


def token_tree(
    tree: Tree,
    tokenizer: Tokenizer,
    max_prompt: int | None = None,
    max_response: int | None = None,
    account: Account | None = None,
) -> TokenTree:
    """`token_trees` of one tree.

    Raises:
        UserError: as `token_trees`.
    """
    (tokens,) = token_trees([tree], tokenizer, max_prompt, max_response, account)
    return tokens


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """The ids that generation starts from; never empty."""
    text = prompt_text(prompt, tokenizer)
    opening = bos_of_plain_text(tokenizer) if isinstance(prompt, str) else None
    return _opened(tokenize([text], tokenizer)[text] if text else [], opening, tokenizer)


def prompt_text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    """The text that is tokenized: the string itself, or the chat template's rendering with its generation prompt."""
    return prompt if isinstance(prompt, str) else templated(tokenizer, prompt, add_generation_prompt=True)


def tokenize(texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The ids of each text, without special tokens, in one call."""
    distinct = list(dict.fromkeys(texts))
    rows = tokenizer(distinct, add_special_tokens=False).input_ids if distinct else []
    return dict(zip(distinct, rows, strict=True))


def _has_prompt_ids(tree: Tree, tokenizer: Tokenizer) -> bool:
    """Whether the tree was sampled with this vocabulary and brings the ids of its prompt."""
    return bool(tree.prompt_ids) and _same_vocabulary(tree, tokenizer)


def _same_vocabulary(tree: Tree, tokenizer: Tokenizer) -> bool:
    return bool(tree.vocabulary) and tree.vocabulary == _vocabulary_of(tokenizer)


def _opened(ids: Ids, bos: int | None, tokenizer: Tokenizer) -> list[int]:
    """Prompt ids that begin with `bos`, where one is given; an empty prompt becomes the start token."""
    prompt = list(ids)
    if bos is not None and prompt[:1] != [bos]:
        prompt = [bos, *prompt]
    return prompt or [start_id(tokenizer)]


def _cut_prompt(prompt: list[int], limit: int | None, tokenizer: Tokenizer, account: Account) -> list[int]:
    """The last `limit` ids; an opening BOS stays."""
    if limit is None or len(prompt) <= limit:
        return prompt
    account.cut["prompt"] += 1
    if limit > 1 and prompt[0] == opening_id(tokenizer):
        return [prompt[0], *prompt[-(limit - 1) :]]
    return prompt[-limit:]


def _branches(
    tree: Tree, ids_of: Mapping[str, Ids], tokenizer: Tokenizer, limit: int | None, account: Account
) -> tuple[tuple[int, ...], ...]:
    """The ids of each response with its end token, cut to `limit`."""
    end = end_id(tokenizer, isinstance(tree.prompt, tuple))
    same_vocabulary = _same_vocabulary(tree, tokenizer)
    branches = []
    for number, response in enumerate(tree.responses):
        if same_vocabulary and response.ids:
            whole = _sampled_ids(response, tokenizer)
        else:
            whole = [*ids_of[response.text], *([end] if response.finished else [])]
        ids = whole[:limit]
        account.response_lengths[len(whole)] += 1
        account.responses += response.finished
        is_cut = len(ids) < len(whole)
        account.ended += response.finished and (is_cut or ids[-1] == end)
        if is_cut:
            account.cut[f"response {number}"] += 1
        branches.append(tuple(ids))
    return tuple(branches)


def _sampled_ids(response: Response, tokenizer: Tokenizer) -> list[int]:
    ids = list(response.ids)
    text = decode(ids, tokenizer)
    if text != response.text:
        raise UserError(
            f"a response reads {response.text[:60]!r}, but its sampled ids {text[:60]!r}: where a text was edited, "
            "remove its ids (chosen_ids, rejected_ids, responses_ids)"
        )
    return ids


def opening_id(tokenizer: Tokenizer) -> int | None:
    """BOS, or an encoder's CLS; None where the tokenizer has neither."""
    return _first(tokenizer.bos_token_id, tokenizer.cls_token_id)


def closing_id(tokenizer: Tokenizer) -> int | None:
    """EOS, or an encoder's SEP; None where the tokenizer has neither."""
    return _first(tokenizer.eos_token_id, tokenizer.sep_token_id)


def start_id(tokenizer: Tokenizer) -> int:
    """The token of an empty prompt: BOS (an encoder's CLS), else EOS."""
    token = _first(opening_id(tokenizer), closing_id(tokenizer))
    if token is None:
        raise UserError("the tokenizer has neither BOS nor EOS to open an empty prompt; set tokenizer.bos_token")
    return token


def end_id(tokenizer: Tokenizer, chat: bool) -> int:
    """The token that ends a response: in chats what the template puts after an assistant turn, else EOS (SEP)."""
    token = _first(_template_end(tokenizer) if chat else None, closing_id(tokenizer))
    if token is None:
        raise UserError("the tokenizer has no EOS to end a response; set tokenizer.eos_token")
    return token


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether this tokenizer itself opens plain text with BOS (or CLS)."""
    return bos_of_plain_text(tokenizer) is not None


def bos_of_plain_text(tokenizer: Tokenizer) -> int | None:
    """The BOS (or CLS) with which this tokenizer itself opens plain text; None where it adds nothing."""
    opening = opening_id(tokenizer)
    return opening if opening is not None and tokenizer(PROBE).input_ids[:1] == [opening] else None


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the vocabulary: tokens with their ids, sorted."""
    return sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


@lru_cache(maxsize=4)
def _vocabulary_of(tokenizer: Tokenizer) -> str:
    return vocabulary_hash(tokenizer)


def template_faults(tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """(error, remark) of the chat template: the dialogue must begin with prompt + response + end token.

    A difference in the prompt part is an error, one in the response part a remark. A tail after it is ignored.
    """
    if not tokenizer.chat_template:
        return None, None
    question: list[Message] = [{"role": "user", "content": "Is it so?"}]
    prompt = _templated_ids(tokenizer, question, add_generation_prompt=True)
    answered = [*question, {"role": "assistant", "content": PROBE}]
    whole = _templated_ids(tokenizer, answered, add_generation_prompt=False)
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
    dialogue: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    whole = _templated_ids(tokenizer, dialogue, add_generation_prompt=False)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for start in range(len(whole) - 1, -1, -1):
        if PROBE in tokenizer.decode(whole[start:]):
            return next((token for token in whole[start:] if token in special), None)
    return None


def templated(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """The text that the chat template makes of messages.

    Raises:
        UserError: there is no template, it is damaged, or it refuses these messages.
    """
    if not tokenizer.chat_template:
        raise UserError("the prompt is messages, but the tokenizer has no chat template; give plain text prompts")
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as problem:
        # A template is a small program: beside Jinja's own errors it may fail as any expression does.
        reason = " ".join(str(problem).split())[:160] or type(problem).__name__
        raise UserError(
            f"the chat template cannot render the messages that begin {str(messages[0]['content'])[:60]!r} ({reason})"
        ) from None


def _templated_ids(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
    text = templated(tokenizer, messages, add_generation_prompt)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _first(*ids: int | None) -> int | None:
    return next((int(token) for token in ids if token is not None), None)
