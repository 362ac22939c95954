"""The one data type: a prompt is a tree, its responses the branches.

`text.Tree` holds text, `tokens.TokenTree` ids, `forest.Forest` several token trees packed for one forward pass, and
`forward` is that pass.
"""
