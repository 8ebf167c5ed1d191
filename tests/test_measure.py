"""``nclib measure``: every kind of file gives the numbers of ``nc_metrics``, or one line."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from nclib import checks, measure
from nclib.metrics import nc_metrics
from tests.conftest import called

K, D = 3, 4
LABELS = torch.arange(30) % K
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(K, D, generator=GENERATOR)
BIAS = torch.randn(K, generator=GENERATOR)
FEATURES = WEIGHT[LABELS] + 0.5 * torch.randn(30, D, generator=GENERATOR)
WHOLE = {"features": FEATURES, "labels": LABELS, "weight": WEIGHT, "bias": BIAS}
WANT = nc_metrics(FEATURES, LABELS, WEIGHT, BIAS)


def save(path, arrays):
    arrays = {name: torch.as_tensor(value) for name, value in arrays.items()}
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in arrays.items()})
    elif path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(arrays, path)
    else:
        torch.save(arrays, path)
    return path


@pytest.mark.parametrize("ending", [".npz", ".pt", ".pth", ".safetensors", ".NPZ"])
def test_every_kind_of_file_gives_the_same_numbers(tmp_path, ending):
    path = save(tmp_path / f"whole{ending.lower()}", WHOLE)
    path = path.rename(tmp_path / f"whole{ending}")
    found = measure.table([path]).loc[str(path)]
    assert (found["N"], found["d"]) == (30, D)
    for name, value in WANT.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


def test_other_names(tmp_path):
    renamed = dict(zip(("net.H", "Y", "fc.weight", "fc.bias"), WHOLE.values(), strict=True))
    path = save(tmp_path / "a.npz", renamed | {"epoch": 3})
    assert measure.table([path])["nc3"].item() == pytest.approx(WANT["nc3"])
    short = save(tmp_path / "c.npz", dict(zip("XYWB", WHOLE.values(), strict=True)))
    assert measure.table([short]).iloc[0].tolist() == measure.table([path]).iloc[0].tolist()
    path = save(tmp_path / "b.npz", {"embeddings": FEATURES, "targets": LABELS})
    assert measure.table([path])["nc1"].item() == pytest.approx(WANT["nc1"])
    assert "nc3" not in measure.table([path])


@pytest.mark.filterwarnings("ignore")
def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    names = [f"f{i}" for i in range(D)]
    wide = pd.DataFrame(FEATURES.numpy(), columns=names).assign(label=LABELS, file="a.png")
    wide.to_parquet(tmp_path / "wide.parquet")
    lists = pd.DataFrame({"embedding": list(FEATURES.numpy()), "label": LABELS, "size": 1})
    lists.to_parquet(tmp_path / "lists.parquet")
    found = measure.table([tmp_path / "wide.parquet", tmp_path / "lists.parquet"])
    assert found["nc1"].tolist() == pytest.approx([WANT["nc1"]] * 2)
    assert found["d"].tolist() == [D, D]


def test_the_command_prints_values_beside_those_of_other_networks(tmp_path):
    path = save(tmp_path / "a.npz", WHOLE)
    result = called("measure", path)
    assert result.exit_code == 0
    lines = {line.split()[0]: line.split()[1:] for line in result.output.splitlines()[1:]}
    assert lines["nc1"][0] == f"{WANT['nc1']:.4g}"
    assert "untrained" in result.output and "collapsed" in result.output
    second = save(tmp_path / "b.pt", WHOLE | {"features": 2 * FEATURES})
    rows = called("measure", path, second).output.splitlines()
    assert [row.split()[0] for row in rows[1:3]] == [str(path), str(second)]


def test_json_and_classes(tmp_path):
    path = save(tmp_path / "a.npz", WHOLE)
    found = json.loads(called("measure", path, "--json").output)[str(path)]
    assert found["nc2"] == pytest.approx(WANT["nc2"], rel=1e-12)
    tight = save(tmp_path / "c.npz", WHOLE | {"features": WEIGHT[LABELS] + 1e-6 * FEATURES})
    want = nc_metrics(WEIGHT[LABELS] + 1e-6 * FEATURES, LABELS, WEIGHT, BIAS)["nc1"]
    found = json.loads(called("measure", tight, "--json").output)[str(tight)]
    assert found["nc1"] == pytest.approx(want, rel=1e-12, abs=0)
    assert want < 1e-9
    flat = save(tmp_path / "b.npz", WHOLE | {"weight": torch.zeros(K, D)})
    with pytest.warns(RuntimeWarning, match="zero"):
        assert json.loads(called("measure", flat, "--json").output)[str(flat)]["nc2"] is None
    classes = json.loads(called("measure", path, "--json", "--by-class").output)[str(path)]
    assert list(classes) == ["0", "1", "2"]
    far = FEATURES.double() - torch.stack([FEATURES[LABELS.eq(k)].double().mean(0) for k in LABELS])
    share = [float(far[LABELS.eq(k)].square().sum(1).mean()) for k in range(K)]
    assert classes["1"]["nc1_ratio"] / classes["0"]["nc1_ratio"] == pytest.approx(
        share[1] / share[0], rel=1e-6
    )
    assert "count" in called("measure", path, "--by-class").output


def test_the_picture_shows_cosines_and_the_plane_of_the_means(tmp_path, monkeypatch):
    paths = [save(tmp_path / "a.npz", WHOLE), save(tmp_path / "b.npz", WHOLE | {"labels": LABELS})]
    assert called("measure", *paths, "--figure", tmp_path / "nc.png").exit_code == 0
    assert Image.open(tmp_path / "nc.png").size[1] > 500
    heat, plane = measure.figure(paths).axes[:2]
    means = torch.stack([FEATURES[LABELS.eq(k)].double().mean(0) for k in range(K)])
    means = means - FEATURES.double().mean(0)
    want = torch.cosine_similarity(means[:, None], means[None], dim=2)
    assert np.allclose(heat.images[0].get_array(), want, atol=1e-6)
    spots = torch.as_tensor(np.asarray(plane.collections[0].get_offsets()))
    drawn = torch.stack([spots[LABELS.eq(k)].mean(0) for k in range(K)])
    assert torch.allclose(torch.cdist(drawn, drawn), torch.cdist(means, means))  # K = 3: exact
    assert heat.images[0].get_clim() == (-1, 1)
    title = heat.get_title() + heat.get_title("left")  # as the style of the process says
    assert title == "class means (collapsed: -0.5)"
    monkeypatch.setattr(measure, "SAMPLES", 3)  # the first, one in the middle, the last
    fewer = measure.figure(paths[:1]).axes[1].collections[0]
    assert fewer.get_array().tolist() == LABELS[[0, 14, 29]].tolist()
    assert np.allclose(fewer.get_offsets(), spots[[0, 14, 29]])


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("a.csv", None, "must be one of .npz, .pt"),
        ("missing.npz", None, "cannot be read: .*No such file"),
        ("a.npz", {"labels": LABELS}, "has no features .*; it has labels"),
        ("a.npz", {"features": FEATURES}, "has no labels"),
        ("a.pt", WHOLE | {"x": FEATURES}, "several arrays could be the features"),
        ("a.npz", WHOLE | {"labels": LABELS[:4]}, "4 entries for 30 samples"),
        ("a.npz", WHOLE | {"weight": WEIGHT[:, :2]}, "weight must have 4 columns"),
        ("a.npz", WHOLE | {"labels": 0 * LABELS}, "class 1, 2 has no sample"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, name, arrays, message):
    path = tmp_path / name
    if arrays is not None:
        save(path, arrays)
    with pytest.raises(checks.InputError, match=message):
        measure.table([path])
    result = called("measure", path)
    assert result.exit_code == 2
    assert result.output.startswith("nclib: ") and result.output.count("\n") == 1


def test_classes_without_samples_are_skipped_if_asked_for(tmp_path):
    """And two classes lie on a line."""
    path = save(tmp_path / "a.npz", WHOLE | {"labels": 2 * (LABELS > 0)})
    options = ("--missing", "skip", "--figure", tmp_path / "NC.PNG")
    found = json.loads(called("measure", path, "--json", *options).output)[str(path)]
    assert found["nc1"] == pytest.approx(nc_metrics(FEATURES, LABELS > 0)["nc1"])
    heat, plane = measure.figure([path]).axes[:2]
    assert heat.images[0].get_array().shape == (2, 2)
    assert not plane.collections[0].get_offsets()[:, 1].any()


def test_a_picture_of_an_unknown_kind_is_refused_before_anything_is_computed(tmp_path):
    result = called("measure", tmp_path / "missing.npz", "--figure", tmp_path / "nc.doc")
    assert result.exit_code == 2 and "--figure must end in .png" in result.output


def test_nothing_in_a_file_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"features": Evil(), "labels": LABELS}, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", features=np.array([Evil()], dtype=object), labels=LABELS)
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04")
    torch.save(FEATURES, tmp_path / "bare.pt")
    for name in ("a.pt", "a.npz", "half.npz"):
        with pytest.raises(checks.InputError, match=f"{name} cannot be read"):
            measure.load(tmp_path / name)
    with pytest.raises(checks.InputError, match="must hold a dict of tensors, not Tensor"):
        measure.load(tmp_path / "bare.pt")
    assert not (tmp_path / "ran").exists()


def test_a_reader_that_is_not_installed_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(checks.InputError, match="pip install safetensors"):
        measure.load(tmp_path / "a.safetensors")
    for engine in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(checks.InputError, match="pip install pyarrow"):
        measure.load(tmp_path / "a.parquet")


def test_lists_of_tensors_and_infinite_values(tmp_path):
    labels = torch.arange(6) % 3
    same = torch.tensor([[0.0, 1.0], [2.0, 3.0], [2.0, 3.0]])[labels]
    same[:3] += 0.1
    same[3:] -= 0.1  # classes 1 and 2 have one mean: their cdnv is infinite
    torch.save({"features": list(same), "labels": labels.tolist()}, tmp_path / "x.pt")
    found = measure.table([tmp_path / "x.pt"])
    assert found["N"].item() == 6 and found["cdnv"].item() == float("inf")
    text = measure.as_json(found)
    assert json.loads(text, parse_constant=pytest.fail)[str(tmp_path / "x.pt")]["cdnv"] is None
