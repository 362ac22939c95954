"""Tiny models of each family, token trees drawn from a seed, and the place of the shared data.

While tests run, each call's arguments are checked against their annotations, shapes included, in the packages that
compute with arrays.
"""

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

ARRAYS = (
    "api", "checks", "evaluation", "losses", "merging", "methods", "models", "rewards", "runtime", "stats", "training",
    "trees",
)  # fmt: skip
install_import_hook(
    [f"treeward.{name}" for name in ARRAYS], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

CACHE = tempfile.TemporaryDirectory(prefix="treeward-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = CACHE.name
os.environ["TREEWARD_CACHE"] = CACHE.name
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import hypothesis  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from fixtures import BuildModel, BuildPolicy, Grow, PlainLogps  # noqa: E402

torch.set_num_threads(1)
SETTINGS: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("same-cases", derandomize=True, **SETTINGS)
hypothesis.settings.register_profile("new-cases", max_examples=1000, **SETTINGS)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same-cases"))

SLOW = (
    "cli", "fuzz", "planted", "runner", "test_docs.py", "test_examples.py", "training/test_training_resume.py",
    "training/test_two_processes.py", "data/test_inspect_real.py", "data/test_real_files.py",
    "data/test_render_real.py", "models/test_tokenizer_files.py", "methods/test_divergence_table.py", "report",
)  # fmt: skip
"""Whole runs, other processes, real data, long tables and drawn pages: what `make fast` leaves out."""

VOCABULARY = 64
POSITIONS = 256
SCALE = 0.3
"""Standard deviation of the random weights: large enough that a wrong attention mask changes the first digit."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": SCALE,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ATTENTION = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": POSITIONS}
GROUPED = {**SIZES, **ATTENTION, "num_key_value_heads": 2}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS,
            "initializer_range": SCALE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
    ),
    "llama": ("LlamaConfig", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "phi3": ("Phi3Config", GROUPED),
    "neox": ("GPTNeoXConfig", {**SIZES, **ATTENTION}),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "head_dim": 8, "sliding_window": 8}),
    "mamba": ("MambaConfig", {**SIZES, "state_size": 8}),
}  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """beartype draws which items of a container it checks, also inside strategies; no value depends on that."""
    config.addinivalue_line("filterwarnings", "ignore:Do not use the `random` module inside strategies")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `SLOW`, but not test_run.py: `make fast` has some whole runs."""
    tests = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(tests).as_posix()
        if place.startswith(SLOW) and not place.endswith("test_run.py"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny() -> BuildModel:
    """tiny(family, seed=0, attention="sdpa", scorer=False): a fresh random model in eval mode; the seed decides it."""

    def build(family: str, seed: int = 0, attention: str = "sdpa", scorer: bool = False, **changes: Any) -> Any:
        name, fields = CONFIGS[family]
        config = getattr(transformers, name)(**{**fields, **changes}, **({"num_labels": 1} if scorer else {}))
        auto = transformers.AutoModelForSequenceClassification if scorer else transformers.AutoModelForCausalLM
        named = {} if family == "mamba" else {"attn_implementation": attention}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return auto.from_config(config, dtype=torch.float32, **named).eval()

    return build


@pytest.fixture(scope="session")
def plain_logps() -> PlainLogps:
    """plain_logps(model, tree): the log-probability of each response token, one unpadded row a branch, no mask."""

    def compute(model: Any, tree: Any) -> torch.Tensor:
        token_logps = []
        for branch in tree.branches:
            row = torch.tensor([tree.prompt + branch])
            logps = model(input_ids=row).logits[0].double().log_softmax(-1)
            start = len(tree.prompt)
            token_logps += [logps[start + n - 1, token] for n, token in enumerate(branch)]
        return torch.stack(token_logps)

    return compute


@pytest.fixture(scope="session")
def grow() -> Grow:
    """grow(count, branches=2, seed=0, longest=12): that many random token trees, without special ids."""
    from treeward.trees.tokens import TokenTree

    def draw(count: int, branches: int = 2, seed: int = 0, longest: int = 12) -> list[Any]:
        chance = random.Random(seed)

        def ids() -> tuple[int, ...]:
            return tuple(chance.randrange(3, VOCABULARY) for _ in range(chance.randint(1, longest)))

        return [TokenTree(ids(), tuple(ids() for _ in range(branches)), f"{seed}/{n}") for n in range(count)]

    return draw


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A word-level tokenizer of the tiny models' 64 ids: w3, w4, ... and <pad> 0, <bos> 1, <eos> 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<bos>", "<eos>", *(f"w{n}" for n in range(3, VOCABULARY))]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


@pytest.fixture
def policy(tiny: BuildModel, tiny_tokenizer: Any) -> BuildPolicy:
    """policy(family="llama", **changes): a fresh tiny policy."""
    from treeward.models.policy import Policy

    def build(family: str = "llama", **changes: Any) -> Policy:
        return Policy(tiny(family, **changes), tiny_tokenizer)

    return build


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The shared data; tests that use it carry the mark `data`."""
    root = Path(os.environ.get("TREEWARD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no shared data at {root}; set TREEWARD_DATA to its folder")
    return root


@pytest.fixture(scope="session")
def real_tokenizer(data_root: Path) -> Callable[[str], Any]:
    """real_tokenizer(name): one of "gpt2", "smollm2-135m-instruct-rebuilt", "torchtune-tiny-2000"."""
    return lambda name: transformers.AutoTokenizer.from_pretrained(data_root / "tokenizers" / name)
