"""The store of log-probabilities: keyed by content, checksummed, bounded, shared by processes, one set a model."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from treeward.errors import UserError
from treeward.models import loading
from treeward.models.loading import LoRA
from treeward.models.logp_store import LogpStore, default_path, key
from treeward.models.policy import Policy
from treeward.models.reference import EMAReference, ReferenceModel
from treeward.trees.tokens import TokenTree

Build = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path) -> LogpStore:
    return LogpStore(tmp_path / "a.sqlite")


def counted(reference: ReferenceModel) -> list[int]:
    """A list that grows by the number of branches of each later forward pass."""
    calls: list[int] = []
    reference.packed.register_forward_hook(lambda module, given, out: calls.append(given[0].branches))
    return calls


def test_what_was_written_is_read_bit_for_bit(store: LogpStore) -> None:
    values = {key("m", (1, 2), (n,)): torch.randn(n + 1) for n in range(1200)}
    store.write(values)
    logps = LogpStore(store.path).read([*values, key("m", (1, 2), (5000,))])
    assert logps.keys() == values.keys()
    assert all(torch.equal(logps[name], values[name]) for name in values)
    assert store.size == sum(4 * len(v) for v in values.values())


def test_keys_differ_by_prompt_branch_and_model() -> None:
    keys = [key("m", (1,), (2, 3)), key("m", (1, 2), (3,)), key("n", (1,), (2, 3)), key("m", (12,), (3,))]
    assert len(set(keys)) == 4


def test_a_damaged_entry_counts_as_missing(store: LogpStore) -> None:
    name = key("m", (1,), (2,))
    store.write({name: torch.tensor([-1.0, -2.0])})
    with sqlite3.connect(store.path) as base:
        base.execute("UPDATE entries SET logps = ?", (torch.zeros(2).numpy().tobytes(),))
    assert store.read([name]) == {}


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = LogpStore(tmp_path / "a.sqlite", limit=12)
    names = [key("m", (1,), (n,)) for n in range(3)]
    store.write({names[0]: torch.ones(1)})
    store.write({names[1]: torch.ones(1)})
    store.read([names[0]])
    store.write({names[2]: torch.ones(2)})
    assert set(store.read(names)) == {names[0], names[2]}
    assert store.size == 12


def test_a_store_over_its_limit_keeps_the_newest_entries(tmp_path: Path) -> None:
    store = LogpStore(tmp_path / "a.sqlite", limit=40)
    names = [key("m", (1,), (n,)) for n in range(8)]
    store.write({name: torch.ones(1) for name in names[:4]})
    store.write({name: torch.ones(2) for name in names[4:]})
    assert store.size <= 40
    assert set(names[4:]) <= set(store.read(names))
    assert len(store.read(names)) == 6


@pytest.mark.slow
def test_two_processes_write_at_once(store: LogpStore) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from treeward.models.logp_store import LogpStore, key\n"
        "store = LogpStore(Path(sys.argv[1]))\n"
        "for n in range(40): store.write({key(sys.argv[2], (n,), (1,)): torch.full((3,), float(n))})\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", script, str(store.path), name]) for name in "ab"]
    assert [process.wait(120) for process in started] == [0, 0]
    logps = store.read([key(name, (n,), (1,)) for name in "ab" for n in range(40)])
    assert len(logps) == 80
    assert logps[key("b", (7,), (1,))].tolist() == [7.0] * 3


def test_a_file_that_is_no_store_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("not a database, " * 100)
    with pytest.raises(UserError, match=r"cannot be used .*reference.store to off"):
        LogpStore(tmp_path / "x")


def test_the_default_place_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREEWARD_CACHE", "/somewhere")
    assert default_path() == Path("/somewhere/reference-logps.sqlite")


def test_a_reference_computes_each_branch_once(store: LogpStore, policy: Build, grow: Build) -> None:
    trees = grow(6, branches=2)
    plain = ReferenceModel.of(policy()).branch_logps(trees, 1024)
    first = ReferenceModel.of(policy(), store)
    calls = counted(first)
    logps = first.branch_logps(trees, 1024)
    assert all(torch.equal(logps[tree], plain[tree]) for tree in trees)
    assert sum(calls) == 12
    again = ReferenceModel.of(policy(), store)
    calls = counted(again)
    logps = again.branch_logps([*trees, TokenTree(trees[0].prompt, (trees[0].branches[0], (9, 2)))], 1024)
    assert sum(calls) == 8 + 1, "eight audited, and the one branch that is new"
    assert all(torch.equal(logps[tree], plain[tree]) for tree in trees)


def test_other_weights_precision_or_configuration_have_other_entries(policy: Build) -> None:
    same, moved, cast, shaped = policy(), policy(), policy(), policy()
    with torch.no_grad():
        next(moved.packed.parameters())[0, 0] += 1e-3
    cast.packed.precision = "bf16"
    shaped.packed.model.config.rms_norm_eps = 1e-3
    identities = [ReferenceModel.of(changed).identity for changed in (same, moved, cast, shaped)]
    assert len(set(identities)) == 4
    assert ReferenceModel.of(policy()).identity == identities[0]


def test_another_layout_or_attention_has_other_entries(policy: Build) -> None:
    as_tree, as_rows, eager = policy(), policy(), policy()
    as_tree.packed.backend, as_rows.packed.backend, eager.packed.backend = "tree", "rows", "tree"
    eager.packed.model.set_attn_implementation("eager")
    assert len({ReferenceModel.of(changed).identity for changed in (as_tree, as_rows, eager)}) == 3


def test_adapters_on_two_bases_have_two_references(policy: Build) -> None:
    """Two adapters on one base share their reference, whatever their random weights are."""
    references = []
    for seed in (0, 0, 1):
        ours = policy(seed=seed)
        references.append(
            ReferenceModel.of(Policy(loading.add_lora(ours.packed.model, LoRA(), "CAUSAL_LM"), ours.tokenizer))
        )
    assert [reference.hash for reference in references] == [None] * 3
    assert references[0].identity == references[1].identity != references[2].identity


def test_a_value_of_other_weights_is_refused_by_name(store: LogpStore, policy: Build, grow: Build) -> None:
    """F22: eight entries are computed again at every reading."""
    trees = grow(3, branches=2)
    reference = ReferenceModel.of(policy(), store)
    reference.branch_logps(trees, 1024)
    name = key(reference.identity, trees[1].prompt, trees[1].branches[0])
    store.write({name: store.read([name])[name] + 0.01})
    with pytest.raises(UserError, match=r"the store .* for branch 0 of .* the reference model gives .* name another"):
        reference.branch_logps(trees, 1024)


@pytest.mark.parametrize(
    ("precision", "off", "passed"),
    [("fp32", 5e-5, True), ("fp32", 3e-4, False), ("bf16", 0.0, True), ("bf16", 0.3, False)],
)
def test_an_audit_allows_for_rounding_alone(
    precision: Any, off: float, passed: bool, store: LogpStore, policy: Build, grow: Build
) -> None:
    ours, trees = policy(), grow(3, branches=2)
    ours.packed.precision = precision
    reference = ReferenceModel.of(ours, store)
    reference.branch_logps(trees, 1024)
    name = key(reference.identity, trees[1].prompt, trees[1].branches[0])
    moved = store.read([name])[name]
    moved[0] += off
    store.write({name: moved})
    audit = reference.audit(trees, 1024)
    assert audit is not None
    assert (audit.entries, audit.passed) == (6, passed)


def test_every_entry_is_audited_sooner_or_later(store: LogpStore, policy: Build, grow: Build) -> None:
    """A third of 24 entries is drawn each time, so 60 times miss one entry with probability 1e-10."""
    trees = grow(12, branches=2)
    reference = ReferenceModel.of(policy(), store)
    reference.branch_logps(trees, 1024)
    name = key(reference.identity, trees[7].prompt, trees[7].branches[1])
    store.write({name: store.read([name])[name] + 0.01})
    audits = [reference.audit(trees, 1024) for _ in range(60)]
    assert not all(audit is not None and audit.passed for audit in audits)


def test_a_value_of_another_length_is_token_logps_anew(store: LogpStore, policy: Build, grow: Build) -> None:
    trees = grow(20, branches=1)
    reference = ReferenceModel.of(policy(), store)
    before = reference.branch_logps(trees, 1024)
    names = [key(reference.identity, tree.prompt, tree.branches[0]) for tree in trees]
    store.write({name: torch.zeros(40) for name in names})
    after = reference.branch_logps(trees, 1024)
    assert all(torch.equal(before[tree], after[tree]) for tree in trees)
    assert [len(store.read([name])[name]) for name in names] == [len(tree.branches[0]) for tree in trees]


def test_a_moving_reference_is_the_closed_form_of_its_policy(policy: Build) -> None:
    """EMA of a constant policy: start + (1 - (1 - rate)^n) (policy - start), oracle W1."""
    model: Policy = policy()
    reference = EMAReference(model, 0.1)
    start = [p.clone() for p in reference.packed.parameters()]
    with torch.no_grad():
        for parameter in model.packed.parameters():
            parameter.add_(1.0)
    for _ in range(5):
        reference.update()
    moved = 1 - 0.9**5
    for before, now in zip(start, reference.packed.parameters(), strict=True):
        torch.testing.assert_close(now, before + moved, rtol=0, atol=1e-6)
    assert reference.hash is None
