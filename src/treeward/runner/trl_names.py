"""The options of TRL and of transformers' Trainer, and our options that do the same.

An unknown option is looked up here. docs/from-trl.md has the same table, which `python -m treeward.runner.trl_names`
prints.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """TRL's names of an option, our option or options ("KEY" or "KEY VALUE"), and a remark for the docs.

    Where we have no such option, the remark says what happens instead.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    remark: str = ""


NAMES = (
    Name(("model_name_or_path",), ("model.path",), "a directory, a run directory or a hub id"),
    Name(("dataset_name", "dataset_path"), ("data.source",), "a file, a directory or a hub id"),
    Name(
        ("dataset_train_split",),
        ("data.split",),
        "reads one split and splits its rows again; by default all splits of the data are used as they are",
    ),
    Name(
        ("dataset_test_split", "eval_dataset"),
        ("data.test", "data.validation"),
        "shares of the prompts that are held out; a `split` column in the data takes precedence",
    ),
    Name(("dataset_text_field",), ("data.columns {text: NAME}",)),
    Name(("output_dir",), ("out",), "must not exist"),
    Name(("run_name",), ("name",)),
    Name(("beta",), ("loss.beta",), "the same; for ORPO `--loss.weight`"),
    Name(
        ("loss_type",),
        ("loss.kind",),
        "equal to 1e-5 where both have the loss; names and differences in [preference losses](preference-losses.md)",
    ),
    Name(("loss_weights",), ("loss.kind sum", "loss.terms")),
    Name(("f_divergence_type",), ("divergence.kind",)),
    Name(("f_alpha_divergence_coef",), ("divergence.alpha",), "the paper's alpha, which is 1 minus TRL's"),
    Name(
        ("label_smoothing",),
        ("loss.flip",),
        "conservative DPO; TRL uses it in some losses and ignores it in others",
    ),
    Name(("simpo_gamma",), ("loss.gamma",), "with `--loss.kind simpo`"),
    Name(("desirable_weight",), ("loss.desirable",), "with `--loss.kind kto`"),
    Name(("undesirable_weight",), ("loss.undesirable",), "with `--loss.kind kto`"),
    Name(
        ("max_length",),
        ("data.max_prompt", "data.max_response"),
        "two limits, so that a long prompt never removes the response; prompts are cut on the left, responses on the "
        "right without an added end token, and every cut is counted",
    ),
    Name(("max_prompt_length",), ("data.max_prompt",)),
    Name(
        ("max_completion_length", "max_new_tokens"),
        ("evaluation.max_new_tokens", "max_new_tokens"),
        "limits samples; `--data.max-response` limits given responses",
    ),
    Name(
        ("num_generations",),
        ("samples", "evaluation.samples"),
        "samples per prompt, in `reinforce`, `pairs` and evaluation",
    ),
    Name(("num_iterations",), ("steps_per_rollout",), "with a clipped `--estimator.kind`"),
    Name(("temperature",), ("evaluation.temperature", "temperature")),
    Name(
        ("per_device_train_batch_size", "gradient_accumulation_steps"),
        ("batch_size",),
        "pairs per optimizer step; `--token-budget` sets how many tokens are computed at once and changes no result",
    ),
    Name(
        ("learning_rate",),
        ("lr",),
        "the rate of the first step is above 0; a rate far outside the method's usual range needs `--skip-check F42`",
    ),
    Name(("num_train_epochs",), ("epochs",)),
    Name(("max_steps",), ("steps",)),
    Name(("warmup_ratio", "warmup_steps"), ("warmup",), "a share of the steps"),
    Name(("lr_scheduler_type",), ("schedule",)),
    Name(
        ("precompute_ref_log_probs",),
        ("reference.store",),
        "always on: computed once before the first step, and stored for other runs under a hash of weights and ids",
    ),
    Name(
        ("ref_model", "ref_model_name_or_path"),
        ("reference.path",),
        "by default the policy as loaded; new LoRA adapters are switched off for it, trained ones are copied",
    ),
    Name(("sync_ref_model",), ("reference.kind ema",), "updated after each step; saved in checkpoints"),
    Name(("ref_model_mixup_alpha",), ("reference.rate",)),
    Name(
        ("disable_dropout",),
        ("model.dropout",),
        "off unless set, such as `--model.dropout 0.1`; without it the model trains in eval mode, which switches off "
        "router jitter and LayerDrop too",
    ),
    Name(
        ("bf16",), ("model.precision bf16",), "matrix products in bf16, weights in fp32; `auto` depends on the hardware"
    ),
    Name(("dtype", "torch_dtype"), ("model.precision",), "weights that train are fp32"),
    Name(("padding_free", "packing"), (), "always on, with shared prompts, and verified before the first step"),
    Name(("center_rewards_coefficient",), ("loss.centre",)),
    Name(("eval_steps", "eval_strategy"), ("evaluate_every",), "in steps; by default once an epoch"),
    Name(("load_best_model_at_end",), (), "always on: the weights with the best validation metric are saved"),
    Name(
        ("metric_for_best_model",),
        ("evaluation.metric",),
        "each metric has its direction; an unknown name is an error",
    ),
    Name(("save_steps",), ("save_every",), "only the last checkpoint stays"),
    Name(
        ("resume_from_checkpoint",),
        ("resume",),
        "or `treeward resume RUN`; bit for bit on the CPU at equal threads and versions",
    ),
    Name(("logging_steps", "report_to"), (), "every step is a line of the run's metrics.jsonl"),
    Name(
        ("use_peft", "peft_config"),
        ("model.lora {r: 16, alpha: 32}",),
        "`model/` has the merged weights, `adapter/` the adapter in PEFT's layout; a reward head always trains",
    ),
    Name(("lora_r",), ("model.lora.r",)),
    Name(("lora_alpha",), ("model.lora.alpha",)),
    Name(("lora_target_modules",), ("model.lora.targets",)),
)


def suggestion(name: str, keys: Collection[str] | None = None) -> str | None:
    """The hint for an option that TRL has by this name; None where TRL has none.

    `keys` are the dotted keys of the command: our options that it does not have are left out of the hint.
    """
    plain = name.rsplit(".", 1)[-1].replace("-", "_")
    row = next((row for row in NAMES if plain in row.theirs), None)
    if row is None:
        return None
    if not row.ours:
        return f"TRL's {plain} has no option here: {row.remark}"
    ours = [option for option in row.ours if keys is None or option.split()[0] in keys]
    return f"TRL's {plain} is {' and '.join(map(_flag, ours))} here" if ours else None


def table() -> str:
    """The table of docs/from-trl.md, in Markdown."""
    lines = ["| TRL | Treeward | remark |", "|---|---|---|"]
    for row in NAMES:
        theirs = ", ".join(f"`{name}`" for name in row.theirs)
        ours = ", ".join(f"`{_flag(option)}`" for option in row.ours) or "–"
        lines.append(f"| {theirs} | {ours} | {row.remark} |")
    return "\n".join(lines)


def _flag(option: str) -> str:
    """An option as it is typed: "lr" is --lr, and a value with spaces is quoted."""
    key, _, value = option.partition(" ")
    quoted = f"'{value}'" if " " in value else value
    return f"--{key.replace('_', '-')} {quoted}".rstrip()


if __name__ == "__main__":
    print(table())
