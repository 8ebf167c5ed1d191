"""The tracker: right numbers, no trace in the training, a table that survives a kill."""

import functools
import random
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import nclib
from nclib import checks
from nclib.deep import collect
from nclib.metrics import ClassStatistics, nc_metrics

K = 3


def data(seed, count=60):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % K
    return torch.randn(count, 5, generator=generator) + y.unsqueeze(1), y


def make():
    torch.manual_seed(0)
    layers = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, K)
    return nn.Sequential(*layers)


def train(model, epochs, tracker=None, begin=0):
    """A loop of one's own; the random numbers of shuffling and dropout are torch's global ones."""
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(*data(0)), batch_size=16, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for epoch in range(begin, epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if tracker:
            tracker.step(epoch)
    return model


def loaders():
    return {
        "train": DataLoader(TensorDataset(*data(0)), batch_size=16, shuffle=True),
        "test": DataLoader(TensorDataset(*data(1)), batch_size=64),
    }


def by_hand(model, x, y):
    with collect.evaluation(model), torch.no_grad():
        return nc_metrics(model[:-1](x), y, model[-1].weight, model[-1].bias)


def test_the_table_holds_nc1_to_nc4_of_every_measured_epoch():
    model, seen = make(), {}
    tracker = nclib.Tracker(model, loaders(), every=2)
    step = tracker.step

    def noting(epoch):
        rows = step(epoch)
        assert (rows is None) == (epoch % 2 == 1)
        if rows is not None:
            assert rows["epoch"].tolist() == [epoch, epoch]
            seen[epoch] = [by_hand(model, *data(seed)) for seed in (0, 1)]

    tracker.step = noting
    train(model, 4, tracker)
    table = tracker.table
    assert table["epoch"].tolist() == [0, 0, 2, 2]
    assert table["data"].tolist() == ["train", "test"] * 2
    assert set(table["layer"]) == {"4"}
    want = pd.DataFrame([row for rows in seen.values() for row in rows])
    for name in ("nc1", "nc2", "nc3", "ncc_disagreement", "residual"):
        assert np.allclose(table[name], want[name], rtol=1e-5), name
    assert (table["nc1"].diff().abs().dropna() > 1e-3).all()  # the epochs differ


def test_tracking_leaves_no_trace_in_the_training():
    plain, tracked = train(make(), 3), make()
    train(tracked, 3, nclib.Tracker(tracked, loaders()))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, tracked.state_dict()[name]), name
    generator = torch.Generator().manual_seed(7)
    loader = DataLoader(TensorDataset(*data(0)), batch_size=16, shuffle=True, generator=generator)
    before = generator.get_state()
    nclib.Tracker(make(), loader).step(0)
    assert torch.equal(generator.get_state(), before)


class Noisy(Dataset):
    """Augmented by ``random`` and numpy."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return torch.full((5,), random.random() + np.random.rand()), i % K  # noqa: NPY002


def test_measuring_leaves_samplers_and_augmentation_as_they_were():
    generator = torch.Generator().manual_seed(7)
    rows = RandomSampler(Noisy(), generator=generator)
    together = BatchSampler(rows, 4, drop_last=False)
    weighted = WeightedRandomSampler([1] * 12, 12, generator=generator)
    for options in ({"sampler": rows}, {"batch_sampler": together}, {"sampler": weighted}):
        loader, drawn = DataLoader(Noisy(), **options), []
        for measuring in (False, True):
            generator.manual_seed(7)
            random.seed(7)
            np.random.seed(7)  # noqa: NPY002
            if measuring:
                nclib.Tracker(make(), loader, missing="skip").step(0)
            drawn.append((torch.cat([x for x, _ in loader]), torch.cat([y for _, y in loader])))
        assert all(map(torch.equal, *drawn)), options


def test_several_layers_in_one_pass_and_a_second_only_where_features_are_not_kept(monkeypatch):
    model, (x, y) = make(), data(0)
    loader = DataLoader(TensorDataset(x, y), batch_size=20)
    tracker = nclib.Tracker(model, loader, layers=["0:out", "4"])
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    kept = tracker.step(0)
    assert len(passes) == 3 + 1  # the head is looked for once, on the first batch
    with torch.no_grad():
        want = nc_metrics(model[0](x), y)["nc1"]
    assert kept["nc1"].tolist() == pytest.approx([want, by_hand(model, x, y)["nc1"]], rel=1e-5)
    assert kept["nc3"].isna().tolist() == [True, False]  # W is the classifier of the last layer
    sums = functools.partial(ClassStatistics, keep=0)
    monkeypatch.setattr(collect, "ClassStatistics", sums)
    streamed = tracker.step(0)
    assert len(passes) == 4 + 3 + 3
    pd.testing.assert_frame_equal(streamed[kept.columns], kept, rtol=1e-4)
    assert tracker.table["ncc_disagreement"].iloc[1] == by_hand(model, x, y)["ncc_disagreement"] > 0


def test_a_killed_run_goes_on_with_its_table(tmp_path):
    path = tmp_path / "tables" / "nc.csv"
    whole, model = nclib.Tracker(make(), loaders()), make()
    train(whole._taps.model, 2, whole)
    train(model, 2, nclib.Tracker(model, loaders(), csv=path))
    again = nclib.Tracker(model, loaders(), csv=path)
    pd.testing.assert_frame_equal(again.table, whole.table, rtol=1e-8)
    train(model, 4, again, begin=2)
    stored = pd.read_csv(path, dtype={"layer": str})
    assert stored["epoch"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    pd.testing.assert_frame_equal(stored, again.table, rtol=1e-8)
    # Back to an earlier checkpoint: its epochs are written anew, nothing twice, nothing stale.
    back = nclib.Tracker(make(), loaders(), csv=path)
    back.step(1)
    assert pd.read_csv(path)["epoch"].tolist() == [0, 0, 1, 1]
    assert pd.read_csv(path)["nc1"].iloc[2] != stored["nc1"].iloc[2]


def test_names_that_pandas_would_take_for_missing_come_back(tmp_path):
    named = {"NA": loaders()["test"], "null": loaders()["test"]}
    whole = nclib.Tracker(make(), named, csv=tmp_path / "nc.csv")
    whole.step(0)
    again = nclib.Tracker(make(), named, csv=tmp_path / "nc.csv")
    pd.testing.assert_frame_equal(again.table, whole.table, rtol=1e-8)
    assert again.table["data"].tolist() == ["NA", "null"]


def test_the_plot_draws_the_table():
    model = make()
    tracker = nclib.Tracker(model, loaders(), layers=["0:out", "4"])
    with pytest.raises(checks.InputError, match="nothing measured yet"):
        tracker.plot()
    train(model, 3, tracker)
    figure = tracker.plot()
    assert [ax.get_ylabel() for ax in figure.axes] == ["nc1", "nc2", "nc3", "ncc_disagreement"]
    drawn = {tuple(line.get_ydata()) for line in figure.axes[0].lines if len(line.get_ydata())}
    want = {tuple(part["nc1"]) for _, part in tracker.table.groupby(["data", "layer"])}
    assert drawn == want and len(want) == 4
    assert figure.axes[0].get_yscale() == "log"
    assert tracker.plot() is figure and len(figure.axes) == 4  # drawn anew, for live plots
    inner = nclib.Tracker(model, loaders(), layers=["0:out"])  # before no classifier
    inner.step(0)
    assert [ax.get_ylabel() for ax in inner.plot().axes][:2] == ["nc1", "nc2_means"]
    plt.close("all")


def test_a_head_with_one_logit_and_missing_classes():
    x, y = data(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    loader = [(x, y.clamp(max=1))]
    row = nclib.Tracker(model, loader).step(0).iloc[0]
    assert row.equals(nclib.Tracker(model, loader, num_classes=2).step(0).iloc[0])
    assert row["nc1"] == pytest.approx(nc_metrics(model[:2](x).detach(), loader[0][1])["nc1"])
    assert "nc2" not in row
    keep = y < 2
    for K_given, missing in ((None, 2), (4, "2, 3")):
        tracker = nclib.Tracker(make(), [(x[keep], y[keep])], layers=["0:out"], num_classes=K_given)
        with pytest.raises(checks.InputError, match=f"class {missing} has no sample"):
            tracker.step(0)
    assert nclib.Tracker(make(), [(x[keep], y[keep])], missing="skip").step(0)["nc1"].item() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loader": {}}, "empty dict"),
        ({"every": 0}, "every must be at least 1"),
        ({"layers": ["fc"]}, "no layer 'fc'; the model's layers are 0, 1"),
        ({"layers": []}, "layers is empty"),
        ({"maps": "mean"}, "maps must be one of"),
        ({"csv": "notes.csv"}, "no table of a tracker"),
        ({"csv": "words.csv"}, "no table of a tracker"),
        ({"csv": "empty.csv"}, "cannot be read as a table"),
    ],
)
def test_what_is_wrong_is_said_before_the_training(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "words.csv").write_text("epoch,data,layer\nlast,train,fc\n")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(checks.InputError, match=message):
        nclib.Tracker(**({"model": make(), "loader": loaders()} | change))
    with pytest.raises(checks.InputError, match="epoch must be"):
        nclib.Tracker(make(), loaders()).step(-1)


def test_importing_the_library_loads_no_heavy_package():
    code = (
        "import nclib, sys; nclib.Tracker; print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    module = Module()
    tracker = nclib.Tracker(module, loaders(), every=2)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[tracker.lightning()],
        enable_model_summary=False, default_root_dir=tmp_path, **quiet,
    )  # fmt: skip
    trainer.fit(module, loaders()["train"])
    assert tracker.table["epoch"].tolist() == [0, 0, 2, 2]
    want = by_hand(module.net, *data(0))["nc1"]  # the last epoch measured is the last one
    assert tracker.table["nc1"].iloc[2] == pytest.approx(want, rel=1e-5)
    assert all(m.training for m in module.modules())


@pytest.mark.filterwarnings("ignore")
def test_the_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4, num_labels=K,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config)
    pixels = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    rows = [{"pixel_values": x, "labels": i % K} for i, x in enumerate(pixels)]
    arguments = transformers.TrainingArguments(
        tmp_path, num_train_epochs=2, report_to=[], save_strategy="no", disable_tqdm=True,
        use_cpu=True, per_device_train_batch_size=10,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    tracker = nclib.Tracker(model, trainer.get_eval_dataloader())
    trainer.add_callback(tracker.transformers())
    trainer.train()
    assert tracker.table["epoch"].tolist() == [1, 2]
    assert set(tracker.table["layer"]) == {"classifier"}
    with collect.evaluation(model):
        hidden = model.vit(pixels).last_hidden_state[:, 0]
    want = nc_metrics(hidden, torch.arange(30) % K, model.classifier.weight)
    assert tracker.table["nc1"].iloc[1] == pytest.approx(want["nc1"], rel=1e-4)
    assert tracker.table["nc2"].iloc[1] == pytest.approx(want["nc2"], rel=1e-4)
