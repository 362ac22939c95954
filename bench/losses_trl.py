"""TRL's side of `losses.py`: its trainers' loss methods, called on stubs that return given log-probabilities.

`losses_trl.py REQUEST ANSWER`, run in `.venv-bench`. One call per pair, so that each pair has its own value.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

DEFAULTS: dict[str, Any] = {
    "beta": 0.1, "loss_type": ["sigmoid"], "loss_weights": None, "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5, "label_smoothing": 0.0, "desirable_weight": 1.0, "undesirable_weight": 1.0,
    "simpo_gamma": 1.0,
}  # fmt: skip


class Accelerator:
    """One process."""

    device = torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather

    def unwrap_model(self, model: Any) -> Any:
        return model


class Model:
    """Gives the log-probabilities that belong to the ids: their first column is 0 for text, 1 for mismatched text."""

    training = True
    is_gradient_checkpointing = False

    def __init__(self, text: Tensor, mismatched: Tensor) -> None:
        self.known = text, mismatched

    def __call__(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        rows = self.known[int(input_ids[0, 0])]
        return SimpleNamespace(
            log_probs=rows, entropy=rows.detach(), mean_logits=rows.detach(), is_top1=torch.zeros_like(rows).bool()
        )


def padded(rows: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Values and mask of a batch: one prompt position before them in the mask, zeros behind."""
    width = max(map(len, rows))
    values = torch.tensor([row + [0.0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[0] + [1] * len(row) + [0] * (width - len(row)) for row in rows])
    return values, mask


def one_pair(settings: dict[str, Any], data: Any, n: int) -> list[float]:
    """The loss of pair n, and its slope in the policy's log-probability of the first token of either side."""
    taken = {name: padded([side[n] for side in sides]) for name, sides in data.items()}
    own, mask = taken["policy"]
    own.requires_grad_(True)
    lengths = mask.sum(1)
    if settings.get("trainer") in ("orpo", "cpo"):
        loss = _referenceless(settings, *(own.sum(1) / lengths))
    else:
        loss = _with_reference(settings, taken, own, mask)
    loss.backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    return [loss.item(), *own.grad[:, 0].tolist()]


def _referenceless(settings: dict[str, Any], chosen: Tensor, rejected: Tensor) -> Tensor:
    trainer = _stub(settings)
    if settings["trainer"] == "orpo":
        odds: Tensor = ORPOTrainer.odds_ratio_loss(trainer, chosen[None], rejected[None])[0]
        return -chosen - odds.mean()
    trainer.loss_type, trainer.alpha = "simpo", 0.0
    losses: Tensor = CPOTrainer.cpo_loss(trainer, chosen[None], rejected[None])[0]
    return losses.mean()


def _with_reference(settings: dict[str, Any], taken: Any, own: Tensor, mask: Tensor) -> Tensor:
    trainer = _stub(settings)
    trainer.model = Model(own, taken["policy_kl"][0])
    trainer.ref_model = Model(taken["reference"][0], taken["reference_kl"][0])
    ids = torch.zeros_like(mask)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    if settings.get("trainer") != "kto":
        loss: Tensor = DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)
        return loss
    trainer.loss_type = "kto"
    trainer._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(trainer, model, batch)
    other = taken["policy_kl"][1]
    inputs |= {"KL_input_ids": torch.ones_like(other), "KL_attention_mask": torch.ones_like(other),
               "KL_completion_mask": other, "label": torch.tensor([True, False])}  # fmt: skip
    found: Tensor = KTOTrainer._compute_loss(trainer, trainer.model, inputs, False)
    return found


def _stub(settings: dict[str, Any]) -> Any:
    """What the loss methods read of a trainer."""
    known = {**DEFAULTS, **settings}
    types = known["loss_type"]
    return SimpleNamespace(
        **known, loss_types=types, accelerator=Accelerator(), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=False, use_weighting=False, calculate_KL=True, _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, _tp_size=1, args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    ) if known["loss_weights"] else _stub({**known, "loss_weights": [1.0] * len(types)})  # fmt: skip


def main() -> None:
    """Answer every case."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    pairs = len(asked["data"]["policy"][0])
    answer = {
        name: [one_pair(settings, asked["data"], n) for n in range(pairs)] for name, settings in asked["cases"].items()
    }
    Path(sys.argv[2]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
