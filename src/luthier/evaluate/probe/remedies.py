"""What to do against forgetting, the cheapest first, as far as it applies to the run."""

from luthier.recipe import METHOD_DEFAULTS, Recipe
from luthier.records.evaluation import Remedy
from luthier.run import Run


def remedies(run: Run, recipe: Recipe) -> list[Remedy]:
    """Remedies for a run that forgot, in order of cost.

    First what needs no training, then what trains less, then what trains as long or needs data.
    """
    train = recipe.train
    rate = train.learning_rate
    assert rate is not None  # the recipe filled in the method's
    whole = recipe.method.name == "full"
    listed = []
    if not whole and not recipe.method.use_dora:
        listed.append(
            Remedy(
                what="scale the adapter down",
                why="between base and tuned weights the task often stays learned while general skill returns "
                "(WiSE-FT, Wortsman et al. 2022); nothing is trained",
                how=f"luthier evaluate {run.root} --adapter-scale 0.5",
            )
        )
    earlier = _earlier_step(run, recipe)
    if earlier is not None:
        step, kept = earlier
        place = f"its checkpoint is kept: {run.checkpoint_path(step)}" if kept else "train again"
        listed.append(
            Remedy(
                what=f"stop at step {step}",
                why=f"the probe was still within the limit at that step; {place}",
                how=f"--set train.stop_on_forgetting={recipe.evaluate.max_accuracy_drop:g}",
            )
        )
    usual = METHOD_DEFAULTS[recipe.method.name]["learning_rate"]
    lower = usual if rate > 2 * usual else rate / 3
    listed.append(
        Remedy(
            what="lower the learning rate",
            why="large steps leave the region of the pretrained weights; this costs one more run",
            how=f"--set train.learning_rate={lower:.2g}",
        )
    )
    if train.num_train_epochs > 1 and train.max_steps < 0:
        fewer = max(1, round(train.num_train_epochs / 3))
        listed.append(
            Remedy(
                what="train fewer epochs",
                why="later epochs memorise rows rather than learn the task; the run gets shorter",
                how=f"--set train.num_train_epochs={fewer}",
            )
        )
    if recipe.data.replay is None:
        listed.append(
            Remedy(
                what="replay general examples",
                why="a tenth of general instructions among the rows preserves general skill (Scialom et "
                "al. 2022); this needs such a file and a tenth more time",
                how="--set 'data.replay={source: general.jsonl, share: 0.1}'",
            )
        )
    if whole:
        listed.append(
            Remedy(
                what="LoRA instead of full fine-tuning",
                why="it learns less and forgets less (Biderman et al. 2024), and the adapter can be "
                "scaled; its settings have to be tuned again",
                how=f"--set method.name=lora --set train.learning_rate="
                f"{METHOD_DEFAULTS['lora']['learning_rate']:g}",
            )
        )
    return listed


def _earlier_step(run: Run, recipe: Recipe) -> tuple[int, bool] | None:
    """The last evaluation at which the probe had not fallen past the limit, where a later one had;
    and whether its checkpoint is there. None where the curve does not show that."""
    curve = probe_curve(run)
    if len(curve) < 2:
        return None
    start = curve[0][1]
    within = [s for s, value in curve[1:] if start - value <= recipe.evaluate.max_accuracy_drop]
    if not within or len(within) == len(curve) - 1:
        return None
    step = max(within)
    return step, step in run.checkpoints()


def probe_curve(run: Run) -> list[tuple[int, float]]:
    """(step, accuracy) of the training-time probe, the first of the untouched base."""
    return [
        (line.step, line.eval_probe_accuracy)
        for line in run.metrics()
        if line.eval_probe_accuracy is not None
    ]
