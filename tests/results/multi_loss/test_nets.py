import numpy as np
import pandas as pd
import pytest

from nclib import losses
from nclib.deep import data, train
from nclib.results.multi_loss import nets as loss_study

NAMED = {"ce": losses.get("ce"), "mse": losses.get("mse", tau=None, scale=15.0)}


def runs():
    table = {
        ("ce", 0): 90.0, ("ce", 1): 92.0, ("ls", 0): 91.0,
        ("ls", 1): 93.0, ("mse", 0): 80.0, ("mse", 1): 86.0,
    }  # fmt: skip
    return pd.DataFrame(
        {"loss": loss, "seed": seed, "width": 4, "epochs": 10, "test_accuracy": value}
        for (loss, seed), value in table.items()
    )


def test_equivalence_by_hand():
    one = loss_study.equivalence(runs()).iloc[0]
    values = [90, 92, 91, 93, 80, 86]
    assert one["variance"] == pytest.approx(np.var(values))
    assert one["largest_gap"] == pytest.approx(91 - 83)
    from scipy.stats import f_oneway

    want = f_oneway([90, 92], [91, 93], [80, 86]).statistic
    assert one["f_statistic"] == pytest.approx(want)


def test_gaps_by_hand():
    table = loss_study.gaps(runs()).set_index("loss")["gap"]
    assert table.to_dict() == pytest.approx({"ce": 0.0, "ls": 1.0, "mse": 8.0})


@pytest.fixture(scope="module")
def study():
    train_data, test_data = data.load("digits", train_per_class=20)
    recipe = train.Recipe(epochs=0, lr=0.1, batch_size=50, schedule="steps", weight_decay=5e-3)
    return loss_study.study(
        NAMED, train_data, test_data, recipe, architecture="mlp", widths=[4, 16],
        epochs=[2, 8], seeds=[0, 1], validation=0.1, curve_points=4,
    )  # fmt: skip


def test_a_study_has_one_row_per_net_and_curves_of_the_widest_longest(study):
    assert len(study.runs) == 2 * 2 * 2 * 2
    assert not study.runs[["nc1", "test_accuracy", "agreement"]].isna().any().any()
    assert (study.runs.query("loss == 'ce'")["agreement"] == 0).all()
    assert (study.runs.query("loss == 'mse'")["agreement"] > 0).all()
    assert set(study.curves["width"]) == {16}
    assert set(study.curves["epochs"]) == {8}
    assert study.curves.groupby(["loss", "seed"])["epoch"].max().eq(8).all()


def test_the_accuracy_kept_is_that_of_the_best_validation_epoch(study):
    row = study.runs.query("loss == 'ce' and width == 16 and epochs == 8 and seed == 0").iloc[0]
    curve = study.curves.query("loss == 'ce' and seed == 0")
    best = curve.loc[curve["validation_accuracy"].idxmax()]  # the first of the best
    assert row["test_accuracy"] == best["test_accuracy"]


def test_unknown_architectures_are_named():
    train_data, _ = data.load("digits", train_per_class=5)
    with pytest.raises(ValueError, match="architecture must be one of mlp, cnn"):
        loss_study.builder("transformer", 4, train_data)
