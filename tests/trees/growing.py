"""Hypothesis strategies for random token trees, and the definition of which token sees which."""

import random

from hypothesis import strategies as st

from treeward.trees.tokens import TokenTree


def sequences(longest: int) -> st.SearchStrategy[tuple[int, ...]]:
    """1 to `longest` ids: hypothesis searches over lengths, and a seed gives the ids."""
    return st.builds(_ids, st.integers(1, longest), st.integers(0, 999))


def _ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(64), k=length))


def token_trees(longest: int = 60, branches: int = 8) -> st.SearchStrategy[TokenTree]:
    """A tree of 1 to `branches` branches; every part has 1 to `longest` tokens."""
    leaves = st.lists(sequences(longest), min_size=1, max_size=branches).map(tuple)
    return st.builds(TokenTree, sequences(longest), leaves)


def groves(longest: int = 60, branches: int = 8, trees: int = 4) -> st.SearchStrategy[list[TokenTree]]:
    """Several trees."""
    return st.lists(token_trees(longest, branches), min_size=1, max_size=trees)


RICH = [
    TokenTree(_ids(9, 1), (_ids(7, 2), _ids(1, 3), _ids(30, 4), _ids(12, 5))),
    TokenTree(_ids(1, 6), (_ids(5, 7), _ids(5, 8))),
    TokenTree(_ids(25, 9), (_ids(2, 10),)),
]
"""Three trees in one slice with seven branches, so that any leak between trees or branches shows."""


def tokens_of(trees: list[TokenTree]) -> list[tuple[int, int | None, int]]:
    """(tree, branch or None in the prompt, distance from the root) of each token, in packed order."""
    tokens: list[tuple[int, int | None, int]] = []
    for number, tree in enumerate(trees):
        tokens += [(number, None, depth) for depth in range(len(tree.prompt))]
        for leaf, branch in enumerate(tree.branches):
            tokens += [(number, leaf, len(tree.prompt) + n) for n in range(len(branch))]
    return tokens


def may_see(row: tuple[int, int | None, int], column: tuple[int, int | None, int]) -> bool:
    """Whether the column's token is the row's token or one of its ancestors."""
    tree, branch, depth = row
    its_tree, its_branch, its_depth = column
    return tree == its_tree and its_branch in (None, branch) and its_depth <= depth
