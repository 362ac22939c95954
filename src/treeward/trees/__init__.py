"""The one data type: a prompt is a tree, its responses are the branches.

`text.Tree` holds text, `tokens.TokenTree` ids, `forest.Forest` several token trees packed for one forward pass, and
`rollout.Rollout` what a policy sampled. `forward` has the modules that read a forest, and `verify` compares them with
plain calls.
"""
