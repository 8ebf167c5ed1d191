"""Class statistics and the neural-collapse metrics NC1-NC4.

Conventions (result 1): ``μ_k`` class means, ``μ_G`` the mean over *samples*,

    Σ_W = (1/N) Σ_i (h_i - μ_{y_i})(h_i - μ_{y_i})ᵀ,   Σ_B = (1/K) Σ_k (μ_k - μ_G)(μ_k - μ_G)ᵀ,

so Σ_B weighs all classes alike, also when they are imbalanced.  NC1 lives far below the rounding
error of the features themselves; it is computed from residuals about a shift that is already close
to the class mean.  Three facts make it cheap: NC1 needs Σ_W only inside the span of the class means
(N·d·K operations instead of N·d²); where that does not pay, Σ_W is symmetric, and five eighths of
it are enough; and a sample nearer to its class mean than any decision boundary needs no logits.

With more classes than dimensions nothing of size K×K is built: distances of K×K Gram matrices
follow from d×d ones, and scores of samples are taken in tiles.
"""

import copy
import math
import warnings
from numbers import Integral

import torch

from nclib import checks
from nclib.metrics.geometry import etf_error, gram_distance
from nclib.metrics.precision import Storage, exact

_ROWS = 1024  # rows per block: large enough for a fast product, small enough to stay in cache
_EXACT_ROWS = 2048  # rows whose products are summed in the dtype of the features, before float64
_SMALL = 128  # up to this dimension products are float64: they cost little, and average little
_MANY = 256  # classes from which the spectrum of their means comes from a Gram matrix
_PANELS = 4  # column panels of a symmetric product; 4 panels need 10/16 of its entries
_TABLE = 2048  # classes up to which the scores of every class at every class mean are at hand
_TILE = 2**23  # scores held at a time
_PAIRED = 4096  # classes above which ``cdnv`` is the mean over the pairs of some of them
_MISSING = ("error", "skip")

# How far from collapse is that?  Values of networks as PyTorch initialises them (ReLU, K = 10) and
# at collapse.
REFERENCE = {
    name: {"untrained": value, "collapsed": 0.0}
    for name, value in {
        "nc1": 0.9,
        "nc1_ratio": 1.7,
        "cdnv": 0.9,
        "nc2_means": 0.7,
        "nc2": 0.4,
        "nc3": 1.4,
        "nc2_centered": 0.25,
        "nc3_centered": 1.4,
        "residual": 0.25,
        "residual_centered": 0.25,
        "ncc_disagreement": 0.9,
    }.items()
}


class ClassStatistics:
    """Counts, class means and within-class scatter in **one streaming pass**, mergeable.

    >>> statistics = ClassStatistics(num_classes=10, dim=512)
    >>> for features, labels in batches:  # doctest: +SKIP
    ...     statistics.update(features, labels)
    >>> statistics.metrics(weight, bias)  # doctest: +SKIP

    Args:
        num_classes: K, or the list of the K class names that labels use.
        dim: d.
        device: where the sums are; batches are moved there.
        precision: dtype in which the features were stored, if they were rounded before they came,
            as with ``"bfloat16"`` (see :func:`nc_metrics`).
        keep: bytes of features that may be kept, as copies.  As long as all fit, ``metrics`` gives
            what :func:`nc_metrics` gives, NC4 included, and is as fast.  Beyond, they are folded
            into sums and let go; NC4 then needs a second pass, see :meth:`agreement`.  0: sums
            only.

    Sums: each class is shifted by its mean in the first batch that holds it, before anything is
    squared: nothing cancels when the features have collapsed.  Sums are float64, products are in
    the widest dtype of the features seen (at least float32; float64 for d ≤ 128).  Memory:
    d² + 2·K·d float64 numbers, d² + K·d in the dtype of the features, and ``keep``.

    Statistics of parts are added by ``a + b`` or :meth:`merge`, over processes by
    :meth:`all_reduce`; :meth:`state_dict` and :meth:`load_state_dict` store the sums; ``.to``
    moves them.  ``complete`` says whether all features are kept.
    """

    @exact
    def __init__(self, num_classes, dim, *, device=None, precision=None, keep=2**29):
        self.names = None
        if not isinstance(num_classes, Integral):
            _, self.names = checks.named([], num_classes)
            num_classes = len(self.names)
        self.num_classes = checks.integer("num_classes", num_classes, 2)
        self.dim = checks.integer("dim", dim)
        self.keep = checks.integer("keep", keep, 0)
        self.precision = precision
        self._storage = Storage(0.0, 0.0) if precision is None else Storage.of(None, precision)
        K, d = self.num_classes, self.dim
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)
        self.counts = torch.zeros(K, dtype=torch.int64, device=device)
        self._kept = _Kept(d, self.counts.device)
        self._begun = torch.zeros(K, dtype=torch.bool, device=device)
        self._shift, self._offset, self._squares = zeros(K, d), zeros(K, d), zeros(K)
        self._near = None  # the shift in the dtype of the features
        self._scatter, self._recent, self._recent_rows = zeros(d, d), None, 0

    @exact
    def update(self, features, labels, *, ignore_index=None):
        """Add a batch: ``features (B, d)``, ``labels (B,)``; or tokens, ``(B, T, d)``, ``(B, T)``.

        Samples with the label ``ignore_index`` are left out.  Returns ``self``.  Raises
        :class:`~nclib.checks.InputError` for bad input, and keeps what it has.
        """
        labels = self._named(labels)
        x, y, storage = _batch(features, labels, self.num_classes, self.dim, ignore_index)
        if self.precision is None:
            self._storage = self._storage.coarser(storage)
        if not len(x):
            return self
        x, y = x.to(self.counts.device), y.to(self.counts.device)
        self.counts += torch.bincount(y, minlength=self.num_classes)
        if self._kept is not None and self._kept.bytes(x) <= self.keep:
            self._kept.append(x, y)
        else:
            self._let_go()
            self._add(x, y)
        return self

    def _named(self, labels):
        return labels if self.names is None else checks.named(labels, self.names)[0]

    @property
    def complete(self):
        """Whether all features so far are kept: ``metrics`` then gives NC4, too."""
        return self._kept is not None

    def _let_go(self):
        self._fold()
        self._kept = None

    def _fold(self):
        """Bring the sums up to date with the features kept."""
        if self._kept is not None:
            for x, y in self._kept.new():
                self._add(x, y)
        if self._recent_rows:
            self._scatter += self._recent
            self._recent.zero_()
            self._recent_rows = 0

    def _add(self, features, labels):
        """Add samples to the sums."""
        self._use_dtype(features.dtype)
        features = features.to(self._near.dtype)
        for x, y in zip(features.split(_ROWS), labels.split(_ROWS), strict=True):
            self._begin_classes(x, y)
            residual = x - self._near.index_select(0, y)
            self._offset.index_add_(0, y, residual.double())
            self._squares.index_add_(0, y, _norms(residual).double().square())
            _add_products(self._recent, residual.to(self._recent.dtype))
            self._recent_rows += len(x)
            if self._recent_rows >= _EXACT_ROWS:
                self._scatter += self._recent
                self._recent.zero_()
                self._recent_rows = 0

    def _use_dtype(self, dtype):
        """Products and shifts in ``dtype``, unless wider features came before."""
        if self._near is not None:
            dtype = torch.promote_types(dtype, self._near.dtype)
            if dtype == self._near.dtype:
                return
            self._scatter += self._recent
            self._recent_rows = 0
        self._near = self._shift.to(dtype)
        self._recent = torch.zeros_like(self._scatter, dtype=_product_dtype(self.dim, dtype))

    def _begin_classes(self, x, y):
        fresh = ~self._begun[y]
        if not fresh.any():
            return
        new, index, counts = y[fresh].unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(new), self.dim, dtype=torch.float64, device=x.device)
        sums.index_add_(0, index, x[fresh].double())
        # Rounded to the dtype of the features: subtracting it from them is then exact.
        self._near[new] = (sums / counts[:, None]).to(x.dtype)
        self._shift[new] = self._near[new].double()
        self._begun[new] = True

    @exact
    def merge(self, other):
        """Add the statistics of other samples (Chan's update).  Returns ``self``."""
        if (other.num_classes, other.dim) != (self.num_classes, self.dim):
            raise checks.InputError(
                f"cannot merge statistics of {other.num_classes} classes in dimension {other.dim} "
                f"into {self.num_classes} classes in dimension {self.dim}"
            )
        if self.names != other.names:
            raise checks.InputError(
                f"cannot merge statistics of the classes {other.names} into those of {self.names}"
            )
        self._storage = self._storage.coarser(other._storage)
        both = None
        if self.complete and other.complete:
            both = self._kept.rows * self._kept.row_bytes + other._kept.rows * other._kept.row_bytes
        if both is not None and both <= self.keep:
            for x, y in other._kept.blocks():
                self._kept.append(x.to(self.counts.device), y.to(self.counts.device))
            self.counts += other.counts.to(self.counts.device)
            return self
        self._let_go()
        other._fold()
        place = lambda value: value.to(self.counts.device)
        counts, there = self.counts + place(other.counts), place(other.means)
        total = self.counts[:, None] * self.means + place(other.counts)[:, None] * there
        means = total / counts.clamp(min=1)[:, None]
        within, squares = self._about(means)
        far_within, far_squares = other._about(means.to(other.counts.device))
        self._set(counts, means, within + place(far_within), squares + place(far_squares))
        return self

    def __add__(self, other):
        if not isinstance(other, ClassStatistics):
            return NotImplemented
        return copy.deepcopy(self).merge(other)

    def __radd__(self, other):
        return copy.deepcopy(self) if isinstance(other, Integral) and other == 0 else NotImplemented

    def _about(self, means):
        """Scatter ``(d, d)`` and its traces by class ``(K,)`` about other class means ``(K, d)``.

        Chan's update: the scatter about the own means, plus the one between those and the others.
        """
        counts = self.counts.double()
        gap = torch.where(self.counts[:, None] > 0, self.means - means, 0.0)
        rows = gap * counts.sqrt()[:, None]
        return self._centred() + rows.T @ rows, self._centred_squares() + rows.square().sum(1)

    def _set(self, counts, means, within, squares):
        """Become the sums of ``counts`` samples with these class means and scatter about them."""
        dtype = torch.float32 if self._near is None else self._near.dtype
        self.counts, self._begun = counts, counts > 0
        self._shift = means.to(dtype).double()
        self._near = None if self._near is None else self._shift.to(dtype)
        self._offset = (means - self._shift) * counts[:, None]
        rows = (means - self._shift) * counts.double().sqrt()[:, None]
        self._scatter, self._squares = within + rows.T @ rows, squares + rows.square().sum(1)
        self._recent_rows = 0

    @exact
    def all_reduce(self, group=None):
        """Add up the statistics of all processes of ``group`` (default: all); in place, everywhere.

        For ``torch.distributed``; every process must call it, with or without samples of its own.
        Sums only: features kept are let go, NC4 needs a second pass (:meth:`agreement`).
        """
        from torch import distributed

        self._let_go()
        total = lambda value: (distributed.all_reduce(value, group=group), value)[1]
        counts = total(self.counts.clone())
        means = total(self.counts[:, None] * self.means) / counts.clamp(min=1)[:, None]
        within, squares = self._about(means)
        self._set(counts, means, total(within), total(squares))
        storage = torch.tensor(self._storage, dtype=torch.float64, device=counts.device)
        distributed.all_reduce(storage, op=distributed.ReduceOp.MAX, group=group)
        self._storage = Storage(*storage.tolist())
        return self

    @exact
    def to(self, device):
        """Move everything to ``device``; returns ``self``, as modules do."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))
        if self._kept is not None:
            self._kept.to(device)
        return self

    @exact
    def state_dict(self):
        """The sums as a dict of tensors and plain values, for ``torch.save``; no features."""
        self._fold()
        dtype = None if self._near is None else str(self._near.dtype).removeprefix("torch.")
        tensors = {name: getattr(self, name).clone() for name in _STATE}
        shape = {"num_classes": self.num_classes, "dim": self.dim, "names": self.names}
        return tensors | shape | {"storage": tuple(self._storage), "dtype": dtype}

    @exact
    def load_state_dict(self, state):
        """Take the sums of :meth:`state_dict` over, on this device; returns ``self``.

        Raises :class:`~nclib.checks.InputError` if they are of other classes or dimensions.
        """
        for name in ("num_classes", "dim", "names"):
            if state.get(name, "nothing") != getattr(self, name):
                raise checks.InputError(
                    f"the stored statistics have {name}={state.get(name)!r}, "
                    f"these have {getattr(self, name)!r}"
                )
        device = self.counts.device
        for name in _STATE:
            setattr(self, name, state[name].to(device, copy=True))
        self._storage, self._kept = Storage(*state["storage"]), None
        self._near, self._recent, self._recent_rows = None, None, 0
        if state["dtype"] is not None:
            self._use_dtype(getattr(torch, state["dtype"]))
        return self

    def _centred(self):
        self._fold()
        scaled = self._offset / self.counts.clamp(min=1).double().sqrt().unsqueeze(1)
        return _symmetric(self._scatter) - scaled.T @ scaled

    def _centred_squares(self):
        self._fold()
        return self._squares - self._offset.square().sum(1) / self.counts.clamp(min=1)

    @property
    @exact
    def means(self):
        """Class means ``(K, d)``, float64; rows of classes not seen yet are zero."""
        self._fold()
        return self._shift + self._offset / self.counts.clamp(min=1).unsqueeze(1)

    @property
    @exact
    def variances(self):
        """``E ‖h - μ_k‖²`` of each class ``(K,)``, float64; 0 for classes not seen yet."""
        return self._centred_squares().clamp(min=0) / self.counts.clamp(min=1)

    @property
    @exact
    def global_mean(self):
        """Mean over samples ``(d,)``."""
        return self.counts.double() @ self.means / self.counts.sum()

    @property
    @exact
    def within_covariance(self):
        """Σ_W ``(d, d)``, float64."""
        return self._centred() / self.counts.sum()

    @property
    @exact
    def between_covariance(self):
        """Σ_B ``(d, d)``, uniform over classes, float64."""
        centred = self.means - self.global_mean
        return centred.T @ centred / self.num_classes

    def _present(self, missing):
        """Classes to measure ``(K',)``, int64; all of them must have samples unless skipped."""
        checks.choice("missing", missing, _MISSING)
        if missing == "error":
            _nonempty(self.counts)
        return _at_least_two(self.counts)

    @exact
    def metrics(self, weight=None, bias=None, *, agreement=None, missing="error"):
        """The metrics of :func:`nc_metrics`.

        ``ncc_disagreement`` (NC4) needs the samples: it is there if they were all kept
        (``complete``), or if ``agreement``, the finished second pass of :meth:`agreement`, is
        given.  ``missing`` as there.
        """
        present = self._present(missing)
        weight, bias = _classifier(weight, bias, self.num_classes, self.dim)
        if self.complete:
            found = _measure(self._kept, self.counts, present, weight, bias, self._storage)
        else:
            classes = self._classes(present, weight, bias)
            within, variances = self.within_covariance, self.variances[present]
            spectrum, basis = classes.between_basis(self._eps)
            moments = ((basis.T @ within) * basis.T).sum(1)
            trace = float(within.trace())
            found = classes.metrics(spectrum, moments, trace, variances, self._storage)
        if agreement is not None:
            found |= {"ncc_disagreement": agreement.metrics()["ncc_disagreement"]}
        return found

    @property
    def _eps(self):
        """Rounding of the numbers computed with, at most float32's."""
        return min(self._storage.eps, torch.finfo(torch.float32).eps)

    def _classes(self, present, weight, bias):
        weight, bias = _rows(weight, present), _rows(bias, present)
        return _Classes(self.means[present], self.counts[present], weight, bias)

    @exact
    def agreement(self, weight=None, bias=None, *, missing="error"):
        """A **second pass** over samples, these or unseen ones: :class:`Agreement`.

        >>> second = statistics.agreement(weight, bias)  # doctest: +SKIP
        >>> for features, labels in test_batches:  # doctest: +SKIP
        ...     second.update(features, labels)
        >>> second.metrics()["ncc_disagreement"]  # doctest: +SKIP
        """
        present = self._present(missing)
        weight, bias = _classifier(weight, bias, self.num_classes, self.dim)
        dtype = torch.float32 if self._near is None else self._near.dtype
        classes = self._classes(present, weight, bias)
        rules = _Rules(classes, classes.means.to(dtype), None, self.variances[present])
        return Agreement(rules, present, self.num_classes, self.names)

    @exact
    def by_class(self, agreement=None):
        """Metrics of each class, a data frame; see :func:`by_class`.

        ``nc1`` is there if all features were kept; the errors too, or from ``agreement``, the
        finished second pass.
        """
        present = _at_least_two(self.counts)
        if self.complete and agreement is None:
            return _table(self._kept, self.counts, present, None, None, self._storage, self.names)
        classes = self._classes(present, None, None)
        found = _spreads(classes, self.variances[present])
        if agreement is not None:
            found |= {name: value[present] for name, value in agreement.by_class().items()}
        return _frame(found, self.counts, present, self.names)


_STATE = ("counts", "_begun", "_shift", "_offset", "_squares", "_scatter")


class Agreement:
    """Nearest class mean against classifier and labels, batch by batch (NC4).

    Made by :meth:`ClassStatistics.agreement`: the class means are those of its samples, the
    features may be the same ones again or unseen ones.  After collapse a sample nearer to its class
    mean than any decision boundary is known to agree, and costs no scores.
    """

    def __init__(self, rules, present, num_classes, names):
        self._rules, self._present, self._names = rules, present, names
        self.num_classes, self.dim = num_classes, rules.shift.shape[1]
        self._place = torch.full((num_classes,), -1, device=present.device)
        self._place[present] = torch.arange(len(present), device=present.device)
        counts = lambda: torch.zeros(num_classes, dtype=torch.int64, device=present.device)
        self.samples, self.labelled, self.disagreements = 0, 0, 0
        self._counts, self._ncc_wrong, self._wrong = counts(), counts(), counts()

    @exact
    def update(self, features, labels=None, *, ignore_index=None):
        """Add a batch as in :meth:`ClassStatistics.update`; labels may be left out.

        Returns ``self``.
        """
        if labels is not None and self._names is not None:
            labels = checks.named(labels, self._names)[0]
        x, y, _ = _batch(features, labels, self.num_classes, self.dim, ignore_index)
        device, rules = self._present.device, self._rules
        x = x.to(device, rules.shift.dtype)
        y = None if y is None else y.to(device)
        self.samples += len(x)
        if y is None:
            for part in x.split(_ROWS):
                predicted, nearest = rules.choose(part)
                if predicted is not None:
                    self.disagreements += int((predicted != nearest).sum())
            return self
        self.labelled += len(x)
        self._counts += torch.bincount(y, minlength=self.num_classes)
        for part, labels in zip(x.split(_ROWS), y.split(_ROWS), strict=True):
            own = self._place[labels]
            unsure = torch.ones_like(own, dtype=torch.bool)
            known = (own >= 0).nonzero().flatten()
            residual = part[known] - rules.shift[own[known]]
            unsure[known] = _norms(residual) >= rules.reach[own[known]]
            if unsure.any():
                labels, own = labels[unsure], own[unsure]
                predicted, nearest = rules.choose(part[unsure])
                self._ncc_wrong += _tally(labels[nearest != own], self.num_classes)
                if predicted is not None:
                    self._wrong += _tally(labels[predicted != own], self.num_classes)
                    self.disagreements += int((predicted != nearest).sum())
        return self

    def merge(self, other):
        """Add the counts of another part of the samples; returns ``self``."""
        for name in ("samples", "labelled", "disagreements", "_counts", "_ncc_wrong", "_wrong"):
            value = getattr(other, name)
            value = value.to(self._counts.device) if isinstance(value, torch.Tensor) else value
            setattr(self, name, getattr(self, name) + value)
        return self

    def all_reduce(self, group=None):
        """Add up the counts of all processes of ``torch.distributed``; in place, everywhere."""
        from torch import distributed

        for name in ("samples", "labelled", "disagreements"):
            value = torch.tensor(getattr(self, name), device=self._counts.device)
            distributed.all_reduce(value, group=group)
            setattr(self, name, int(value))
        for value in (self._counts, self._ncc_wrong, self._wrong):
            distributed.all_reduce(value, group=group)
        return self

    def metrics(self):
        """``ncc_disagreement``, the share of samples whose nearest class mean is not the predicted
        class; of the labelled ones, ``ncc_error``, the share whose nearest class mean is not that
        of their class, and ``error``, the share not predicted as their class.

        The first and the last need a classifier.  Raises
        :class:`~nclib.checks.InputError` if there was no sample.
        """
        if not self.samples:
            raise checks.InputError("no sample came in the second pass: call update first")
        found = {}
        if self._rules.weight is not None:
            found["ncc_disagreement"] = self.disagreements / self.samples
        if self.labelled:
            found["ncc_error"] = int(self._ncc_wrong.sum()) / self.labelled
            if self._rules.weight is not None:
                found["error"] = int(self._wrong.sum()) / self.labelled
        return found

    def by_class(self):
        """``ncc_error`` and ``error`` of each class, tensors ``(K,)``; NaN without samples."""
        found = {"ncc_error": self._ncc_wrong / self._counts.double()}
        if self._rules.weight is not None:
            found["error"] = self._wrong / self._counts.double()
        return found


@exact
def nc_metrics(
    features, labels, weight=None, bias=None, *, num_classes=None, precision=None, missing="error"
):
    """Neural-collapse metrics of features held in memory, in every published convention.

    Args:
        features: ``(N, d)`` last-layer features, any float dtype (half precision is upcast).
        labels: ``(N,)`` class indices 0..K-1, one-hot rows, or names (see
            :func:`nclib.checks.labels`); every class must occur.
        weight: ``(K, d)`` classifier; ``None`` leaves out the metrics that need one.
        bias: ``(K,)``, or ``None`` for no bias.
        num_classes: K, or the K names in order, if it cannot be read off ``weight`` or the labels.
        precision: dtype in which the features were stored, if it is not theirs: ``"bfloat16"`` for
            bfloat16 features that were cast to float32 before.  NC1 inverts Σ_B, and directions in
            which the class means differ by the rounding of their storage only are left out.
        missing: ``"error"``, or ``"skip"`` to leave classes without samples out of everything,
            their rows of the classifier and K included.

    Returns a dict of floats:

    =====================  ======================================================================
    ``nc1``                ``tr(Σ_W Σ_B⁺)/K`` (variability collapse)
    ``nc1_ratio``          ``tr Σ_W / tr Σ_B``, no pseudo-inverse
    ``cdnv``               class-distance normalised variance, mean over pairs of classes of
                           ``(v_i + v_j) / (2 ‖μ_i - μ_j‖²)``, ``v_k = E ‖h - μ_k‖²`` (Galanti,
                           György & Hutter, ICLR 2022); above 4096 classes, over the pairs of 1024
                           of them, drawn at random, with all others
    ``nc2``                ``‖WWᵀ/‖WWᵀ‖ - Ê‖``, W as it is (2021 code, printed formula)
    ``nc2_centered``       the same for W minus its mean row (official multi-loss code)
    ``nc2_means``          the same for the class means minus the global mean
    ``nc3``                ``‖WMᵀ/‖WMᵀ‖ - Ê‖``, W as it is, M centred class means (self-duality)
    ``nc3_centered``       both centred
    ``residual``           ``‖W μ_G + b‖`` (called NC4 in the official code)
    ``residual_centered``  the same after removing its mean over classes
    ``ncc_disagreement``   share of samples whose nearest class mean is not the predicted class
    =====================  ======================================================================

    ``Ê = (I - 11ᵀ/K)/√(K-1)`` is the simplex ETF's Gram matrix, all norms are Frobenius norms.
    All are 0 at collapse; :data:`nclib.metrics.REFERENCE` has values of an untrained network.
    Where a matrix to be normalised is zero (W = 0, all class means equal) the metric is NaN and a
    ``RuntimeWarning`` says which.  Source: result 1, claims 1.L16 and 1.L18.

    Raises :class:`~nclib.checks.InputError` for NaN features, labels out of range, an empty class,
    fewer than two classes, or shapes that do not fit.
    """
    blocks, counts, present, storage, _ = _whole(
        features, labels, weight, num_classes, precision, missing
    )
    weight, bias = _classifier(weight, bias, len(counts), blocks.dim)
    return _measure(blocks, counts, present, weight, bias, storage)


@exact
def by_class(features, labels, weight=None, bias=None, *, num_classes=None, precision=None):
    """Metrics of each class, a data frame with one row a class (index ``class``: its name if the
    labels are names); arguments as in :func:`nc_metrics`, classes without samples are NaN.

    =================  ==========================================================================
    ``count``          samples
    ``nc1``            ``tr(Σ_k Σ_B⁺)/K``, Σ_k the covariance of class k; its mean over samples is
                       ``nc1``
    ``nc1_ratio``      ``tr Σ_k / tr Σ_B``; its mean over samples is ``nc1_ratio``
    ``cdnv``           mean over the other classes j of ``(v_k + v_j) / (2 ‖μ_k - μ_j‖²)``; its
                       mean over classes is ``cdnv``
    ``ncc_error``      share of its samples whose nearest class mean is another one
    ``error``          share of its samples predicted as another class (with a classifier)
    =================  ==========================================================================
    """
    blocks, counts, present, storage, names = _whole(
        features, labels, weight, num_classes, precision, "skip"
    )
    weight, bias = _classifier(weight, bias, len(counts), blocks.dim)
    return _table(blocks, counts, present, weight, bias, storage, names)


def _whole(features, labels, weight, num_classes, precision, missing):
    """Checked features in memory: blocks, counts, classes to measure, storage, class names."""
    checks.choice("missing", missing, _MISSING)
    storage = Storage.of(features, precision)
    features = checks.matrix("features", features).detach()
    if weight is not None and num_classes is None:
        num_classes = len(checks.tensor("weight", weight))
    labels, names = checks.named(labels, num_classes)
    K = num_classes if names is None else len(names)
    labels, K = checks.labels(labels, K if names is None or K > 1 else None, length=len(features))
    if K < 2:
        raise checks.InputError("neural collapse needs at least two classes, the labels hold one")
    counts = torch.bincount(labels, minlength=K).to(features.device)
    if missing == "error":
        _nonempty(counts)
    labels = labels.to(features.device)
    return _Whole(features, labels), counts, _at_least_two(counts), storage, names


class _Whole:
    """Features in memory, in blocks that stay in cache."""

    def __init__(self, features, labels):
        self.features, self.labels, self.dim = features, labels, features.shape[1]
        self.dtype = features.dtype

    def blocks(self):
        return zip(self.features.split(_ROWS), self.labels.split(_ROWS), strict=True)


class _Kept:
    """Copies of features and labels that came in batches, in blocks of ``_ROWS``."""

    def __init__(self, dim, device):
        self.dim, self.device, self.dtype = dim, device, None
        self.rows, self._folded, self._blocks = 0, 0, []

    @property
    def row_bytes(self):
        return 0 if self.dtype is None else self.dim * self.dtype.itemsize

    def bytes(self, x):
        """Bytes of the features if ``x`` came in addition."""
        dtype = x.dtype if self.dtype is None else torch.promote_types(x.dtype, self.dtype)
        return (self.rows + len(x)) * self.dim * dtype.itemsize

    def append(self, x, y):
        dtype = x.dtype if self.dtype is None else torch.promote_types(x.dtype, self.dtype)
        if dtype != self.dtype:
            self.dtype = dtype
            self._blocks = [(a.to(dtype), b) for a, b in self._blocks]
        while len(x):
            used = self.rows % _ROWS
            if not used:
                room = torch.empty(_ROWS, self.dim, dtype=dtype, device=self.device)
                self._blocks.append((room, torch.empty(_ROWS, dtype=torch.int64).to(self.device)))
            n = min(len(x), _ROWS - used)
            a, b = self._blocks[-1]
            a[used : used + n], b[used : used + n] = x[:n], y[:n]
            x, y, self.rows = x[n:], y[n:], self.rows + n

    def blocks(self, start=0):
        for i, (a, b) in enumerate(self._blocks):
            first, last = max(start - i * _ROWS, 0), min(self.rows - i * _ROWS, _ROWS)
            if first < last:
                yield a[first:last], b[first:last]

    def new(self):
        """Blocks that were not asked for before."""
        start, self._folded = self._folded, self.rows
        return self.blocks(start)

    def to(self, device):
        self.device = torch.empty(0, device=device).device
        self._blocks = [(a.to(device), b.to(device)) for a, b in self._blocks]


def _measure(source, counts, present, weight, bias, storage):
    """The metrics of samples in memory; ``present``: the classes measured."""
    place = _places(counts, present)
    blocks = lambda: ((x.to(source.dtype), place(y)) for x, y in source.blocks())
    counts = counts[present]
    d, K, N = source.dim, len(counts), int(counts.sum())
    means = _class_sums(blocks(), K, d) / counts.unsqueeze(1)
    classes = _Classes(means, counts, _rows(weight, present), _rows(bias, present))
    spectrum, basis = classes.between_basis(torch.finfo(source.dtype).eps)
    # Residuals about the mean rounded to the dtype of the features are exact; the rest of the mean
    # is taken out of the sums in the end.
    shift = means.to(source.dtype)
    rounding = means - shift.double()
    scaled = rounding * counts.double().sqrt().unsqueeze(1)
    inside = 2 * basis.shape[1] < d * (1 + 1 / _PANELS)  # cheaper than d×d products?
    exact_dtype = _product_dtype(d, source.dtype)
    directions = (basis if inside else basis[:, :0]).T.to(exact_dtype).contiguous()
    moments = means.new_zeros(len(directions))
    squares = means.new_zeros(K)
    scatter = None if inside else means.new_zeros(d, d)
    rules = None
    if weight is not None:
        whole = inside and len(spectrum) == min(K - 1, d)  # the span holds every class mean
        rules = _Rules(classes, shift.to(exact_dtype), directions if whole else None)
    room = torch.empty(_ROWS, d, dtype=source.dtype, device=means.device)  # used again
    for x, y in blocks():
        residual = torch.index_select(shift, 0, y, out=room[: len(x)])
        residual = torch.sub(x, residual, out=residual).to(exact_dtype)
        norms = _norms(residual)
        squares.index_add_(0, y, norms.double().square())
        if inside:
            projected = directions @ residual.T
            moments += torch.linalg.vector_norm(projected, dim=1).double().square()
        else:
            _add_products(scatter, residual)
        if rules is not None:
            rules.update(x, residual, projected.T if whole else residual, y, norms)
    if inside:
        moments -= (scaled @ basis).square().sum(0)
    else:
        within = _symmetric(scatter) - scaled.T @ scaled
        moments = ((basis.T @ within) * basis.T).sum(1)
    squares -= scaled.square().sum(1)
    variances = squares.clamp(min=0) / counts
    trace = float(squares.sum()) / N
    result = classes.metrics(spectrum, moments / N, trace, variances, storage)
    if rules is not None:
        result["ncc_disagreement"] = rules.disagreements / N
    return result


def _table(source, counts, present, weight, bias, storage, names):
    """The data frame of :func:`by_class` of samples in memory."""
    place, K = _places(counts, present), len(present)
    blocks = lambda: ((x.to(source.dtype), place(y)) for x, y in source.blocks())
    means = _class_sums(blocks(), K, source.dim) / counts[present].unsqueeze(1)
    classes = _Classes(means, counts[present], _rows(weight, present), _rows(bias, present))
    spectrum, basis = classes.between_basis(torch.finfo(source.dtype).eps)
    dtype = _product_dtype(source.dim, source.dtype)
    shift = means.to(source.dtype)
    squares, moments = means.new_zeros(K), means.new_zeros(K, len(spectrum))
    for x, y in blocks():
        residual = (x - shift[y]).to(dtype)
        squares.index_add_(0, y, residual.double().square().sum(1))
        moments.index_add_(0, y, (residual @ basis.to(dtype)).double().square())
    n, rounding = counts[present], means - shift.double()
    variances = (squares / n - rounding.square().sum(1)).clamp(min=0)
    moments = moments / n[:, None] - (rounding @ basis).square()
    kept = classes.above_rounding(spectrum, storage, float(squares.sum()) / int(n.sum()))
    nc1 = (moments / spectrum)[:, kept].sum(1) / K
    found = {"nc1": nc1 if kept.any() else nc1 + math.nan} | _spreads(classes, variances)
    second = Agreement(_Rules(classes, shift.to(dtype), None), present, len(counts), None)
    for x, y in source.blocks():
        second.update(x, y)
    found |= {name: value[present] for name, value in second.by_class().items()}
    return _frame(found, counts, present, names)


def _spreads(classes, variances):
    total = float(classes.centred.square().sum()) / len(classes.counts)
    ratio = variances / total if total > 0 else variances * math.nan
    return {"nc1_ratio": ratio, "cdnv": cdnv_by_class(classes.means, variances)}


def _frame(found, counts, present, names):
    import pandas as pd

    index = pd.Index(range(len(counts)) if names is None else names, name="class")
    rows = present.tolist()
    table = pd.DataFrame({"count": counts.tolist()}, index=index)
    for name, value in found.items():
        column = pd.Series(math.nan, index=index)
        column.iloc[rows] = value.tolist()
        table[name] = column
    return table


class _Classes:
    """What the class means and the classifier alone decide, from products of K×d matrices.

    ``centred`` are the means minus the global mean, ``rows`` the weights minus their mean row.
    """

    def __init__(self, means, counts, weight, bias):
        self.counts, self.means = counts, means
        self.centre = counts.double() @ means / counts.sum()
        self.centred = means - self.centre
        self.weight = weight = None if weight is None else weight.to(means.device)
        K, d = means.shape
        self.small = d + 1 >= K  # then K×K products are not larger than d×d ones
        if self.small or K <= _TABLE:
            self.gram = self.centred @ self.centred.T
        if weight is not None:
            row = weight.mean(0)
            rows = weight - row
            if self.small or K <= _TABLE:
                self.rows_gram, self.cross = rows @ rows.T, rows @ self.centred.T
                # The products of the weights as they are: adding that row back cancels nothing.
                along = rows @ row
                self.weight_gram = self.rows_gram + along[:, None] + along + row @ row
                self.weight_cross = self.cross + self.centred @ row
            self.row, self.rows = row, rows
            # Logits of the global mean.
            self.logits = weight @ self.centre + (0.0 if bias is None else bias.to(means.device))

    def between_basis(self, eps):
        """Nonzero spectrum of Σ_B: eigenvalues ``(r,)`` and eigenvectors ``(d, r)``.

        Directions that are only rounding noise of the computation (relative eigenvalue below
        ``max(K, d)·ε²``, and never below float64's ``max(K, d)·ε``) are cut.
        """
        centred, (K, d) = self.centred, self.centred.shape
        if _MANY <= K <= d:
            # The Gram matrix has the same spectrum and one known null direction, the counts.  It
            # squares the condition number, so it serves where that costs no digit that matters.
            values, vectors = torch.linalg.eigh(self.gram)
            if values[1] > 1e-6 * values[-1]:
                basis = centred.T @ (vectors[:, 1:] / values[1:].sqrt())
                return values[1:].flip(0) / K, basis.flip(1)
        # A QR factorisation first: the same accuracy, half the time, no K×d factors.
        if d > K:
            orthogonal, centred = torch.linalg.qr(centred.T)
            vectors, singular, _ = torch.linalg.svd(centred, full_matrices=False)
            vectors = (orthogonal @ vectors).T
        else:
            _, triangle = torch.linalg.qr(centred, mode="r")
            _, singular, vectors = torch.linalg.svd(triangle, full_matrices=False)
        spectrum = singular.square() / K
        cut = max(K, d) * max(eps**2, torch.finfo(torch.float64).eps)
        keep = spectrum > cut * spectrum[0]
        return spectrum[keep], vectors[keep].T

    def above_rounding(self, spectrum, storage, trace_within):
        """Which eigenvalues of Σ_B are more than the rounding of the features stored."""
        floor = storage.floor(self.means, int(self.counts.sum()), trace_within)
        return spectrum * len(self.counts) > floor**2

    def metrics(self, spectrum, moments, trace_within, variances, storage):
        """The metrics from the spectrum of Σ_B and Σ_W's ``moments`` along its eigenvectors."""
        K = len(self.counts)
        total = float(self.centred.square().sum()) / K
        kept = self.above_rounding(spectrum, storage, trace_within)
        if not kept.any():
            warnings.warn("all class means are equal: NC1 is undefined (NaN)", RuntimeWarning, 5)
        ratios = (moments / spectrum)[kept]
        result = {
            "nc1": float(ratios.sum()) / K if len(ratios) else math.nan,
            "nc1_ratio": trace_within / total if total > 0 else math.nan,
            "cdnv": self._cdnv(variances),
            "nc2_means": self._distance("gram", "the Gram matrix of class means"),
        }
        if self.weight is None:
            return result
        for suffix, gram, cross in (
            ("", "weight_gram", "weight_cross"),
            ("_centered", "rows_gram", "cross"),
        ):
            result["nc2" + suffix] = self._distance(gram, "the Gram matrix of W")
            result["nc3" + suffix] = self._distance(cross, "the product of W and M")
        result["residual"] = float(self.logits.norm())
        result["residual_centered"] = float((self.logits - self.logits.mean()).norm())
        return result

    def _distance(self, name, what):
        """Distance of one of the K×K products to the ETF's, from d×d products if K is large."""
        if self.small:
            distance = gram_distance(getattr(self, name))
        else:
            distance = etf_error(*self._factors(name))
        if math.isnan(distance):
            warnings.warn(f"{what} is zero: its metric is undefined (NaN)", RuntimeWarning, 6)
        return distance

    def _factors(self, name):
        left, right = {
            "gram": ("centred", "centred"),
            "weight_gram": ("weight", "weight"),
            "weight_cross": ("weight", "centred"),
            "rows_gram": ("rows", "rows"),
            "cross": ("rows", "centred"),
        }[name]
        return getattr(self, left), getattr(self, right)

    def _cdnv(self, variances):
        K = len(variances)
        if not float(self.centred.square().sum()) > 0:
            return math.nan
        classes = None
        if K > _PAIRED:
            classes = torch.randperm(K, generator=torch.Generator().manual_seed(0))[: _PAIRED // 4]
        gram = self.gram if K <= _PAIRED and hasattr(self, "gram") else None
        return float(cdnv_by_class(self.centred, variances, classes, gram=gram).mean())


class _Rules:
    """The class that the classifier and that the nearest class mean choose for a sample.

    Both are the largest of K affine scores of a sample.  ``reach`` is the distance from the shift
    of a class to the nearest boundary of either rule, positive where both choose that class: a
    sample within reach agrees and needs no scores.  ``span (r, d)``: an orthonormal basis of the
    span of the centred means, if the projections on it are at hand.

    Up to ``_TABLE`` classes the scores of every class at every shift are at hand, and those of a
    sample follow from its residual.  Beyond, they are computed about the global mean, in tiles, and
    ``reach`` only where a sample of the classes, with their ``variances``, says that it will help.
    """

    def __init__(self, classes, shift, span, variances=None):
        dtype, K = shift.dtype, len(shift)
        self.shift, self.disagreements = shift, 0
        self.weight = None if classes.weight is None else classes.weight.to(dtype)
        self.directions = (2 * classes.centred).to(dtype)
        squares = classes.centred.square().sum(1)
        self.centre = classes.centre.to(dtype)
        # The rounding of the centre is known: scores are those at the rounded one.
        gap = self.centre.double() - classes.centre
        self.nearest_there = (2 * classes.centred @ gap - squares).to(dtype)
        if self.weight is not None:
            self.logits_there = (classes.logits + classes.weight @ gap).to(dtype)
        self.tabled = K <= _TABLE
        if not self.tabled:
            self.reach = _far_reach(classes, shift, variances)
            return
        # From the means, whose scores are at hand, to the shift: a rounding error away.
        gap = (shift.double() - classes.means).to(dtype)
        nearest = 2 * classes.gram - classes.gram.diagonal()
        nearest = nearest + (gap @ self.directions.T).double()
        reach = _boundary(nearest, 4 * classes.gram)
        if self.weight is not None:
            logits = classes.weight_cross.T + classes.logits
            logits = logits + (gap @ self.weight.T).double()
            reach = torch.minimum(reach, _boundary(logits, classes.rows_gram))
            self.logits = logits.to(dtype)
        self.reach = (0.999 * reach).to(dtype)  # for the rounding of norms
        self.nearest = nearest.to(dtype)
        self.inside = self.directions if span is None else self.directions @ span.T

    def choose(self, x):
        """``(predicted, nearest)`` of features ``(B, d)``, int64; no classifier: ``(None, …)``."""
        x = x.to(self.centre.dtype) - self.centre
        size = max(32, _TILE // len(self.directions))

        def largest(there, rows):
            found = torch.empty(len(x), dtype=torch.int64, device=x.device)
            for part, out in zip(x.split(size), found.split(size), strict=True):
                out.copy_(torch.addmm(there, part, rows.T).argmax(1))
            return found

        nearest = largest(self.nearest_there, self.directions)
        return None if self.weight is None else largest(self.logits_there, self.weight), nearest

    def update(self, x, residual, inside, labels, norms):
        """Count disagreements: features ``(B, d)``, residuals about the shift, these in the span
        ``(B, r)`` (or as they are, without a span), classes, and norms of the residuals.
        """
        unsure = (norms >= self.reach[labels]).nonzero().flatten()
        if len(unsure) == 0:
            return
        if not self.tabled:
            predicted, nearest = self.choose(x[unsure])
            self.disagreements += int((predicted != nearest).sum())
            return
        if len(unsure) < len(labels):
            labels, residual, inside = labels[unsure], residual[unsure], inside[unsure]
        predicted = torch.addmm(self.logits[labels], residual, self.weight.T)
        nearest = torch.addmm(self.nearest[labels], inside, self.inside.T)
        self.disagreements += int((predicted.argmax(1) != nearest.argmax(1)).sum())


def _far_reach(classes, shift, variances):
    """``reach`` of many classes, tile by tile; -1 where it would not pay."""
    K, reach = len(shift), shift.new_full((len(shift),), -1.0)
    gradients = [(2 * classes.centred, -classes.centred.square().sum(1))]
    if classes.weight is not None:
        gradients.append((classes.weight, classes.logits))

    def of(rows):
        at = shift[rows].double() - classes.centre
        found = []
        for vectors, there in gradients:
            own = vectors[rows]
            squares = vectors.square().sum(1)
            gaps = squares[rows, None] + squares - 2 * own @ vectors.T
            gaps += 1e-12 * (squares[rows, None] + squares)
            scores = at @ vectors.T + there
            own_scores = scores.gather(1, rows[:, None])
            margins = (own_scores - scores) / gaps.clamp(min=1e-300).sqrt()
            margins.scatter_(1, rows[:, None], torch.inf)
            found.append(margins.amin(1))
        return torch.stack(found).amin(0)

    size = max(1, _TILE // 4 // K)
    if variances is not None:
        few = torch.randperm(K, generator=torch.Generator().manual_seed(0))[:size].to(shift.device)
        if (of(few) > variances[few].sqrt()).double().mean() < 0.5:
            return reach
    for rows in torch.arange(K, device=shift.device).split(size):
        reach[rows] = (0.999 * of(rows)).to(reach.dtype)
    return reach


def _boundary(scores, gram):
    """Distance from point k, whose affine scores are ``scores[k]``, to the nearest point where
    class k has not the largest score; at most 0 if it has not at point k itself.

    ``gram``: inner products of the K gradients of the scores, up to a common shift of them.
    """
    squares = gram.diagonal()
    gaps = squares[:, None] + squares - 2 * gram
    gaps += 1e-12 * (squares[:, None] + squares)  # rounding: never too small
    margins = (scores.diagonal()[:, None] - scores) / gaps.clamp(min=1e-300).sqrt()
    return margins.fill_diagonal_(torch.inf).amin(1)


def cdnv_by_class(means, variances, classes=None, *, gram=None):
    """Class-distance normalised variance of each class (or of ``classes``): the mean over the
    other classes j of ``(v_k + v_j) / (2 ‖μ_k - μ_j‖²)`` (Galanti et al. 2022), ``(K,)``.

    ``means (K, d)``, ``variances (K,)``: ``E ‖h - μ_k‖²``.  In tiles; infinite if two means
    coincide, unless both classes have no variance.  ``gram``: the means' Gram matrix, if at hand.
    """
    K = len(means)
    classes = torch.arange(K) if classes is None else classes
    found = []
    for rows in classes.to(means.device).split(max(32, _TILE // 8 // K)):
        squared = squared_distances(means, rows, gram=gram)
        spread = (variances[rows, None] + variances[None]) / 2
        ratio = torch.where(spread > 0, spread / squared, 0.0).scatter_(1, rows[:, None], 0.0)
        found.append(ratio.sum(1) / (K - 1))
    return torch.cat(found)


def squared_distances(rows, index, *, gram=None):
    """``‖a_i - a_j‖²`` for i in ``index`` and all j; exact differences where the two are close."""
    picked, squares = rows[index], rows.square().sum(1)
    products = picked @ rows.T if gram is None else gram[index]
    squared = squares[index, None] + squares - 2 * products
    i, j = (squared < 1e-8 * squares.max()).nonzero(as_tuple=True)
    squared[i, j] = (picked[i] - rows[j]).square().sum(1)
    return squared


def _batch(features, labels, K, d, ignore_index):
    """Checked features ``(N, d)``, labels ``(N,)`` or None, and how the features were stored."""
    storage = Storage.of(features)
    features = checks.tensor("features", features).detach()
    if features.ndim > 2 and labels is not None:
        labels = checks.tensor("labels", labels)
        if labels.shape == features.shape[:-1]:
            features, labels = features.flatten(0, -2), labels.flatten()
    if ignore_index is not None and labels is not None:
        labels = checks.tensor("labels", labels)
        kept = labels != checks.integer("ignore_index", ignore_index, -(2**63))
        if kept.shape != features.shape[:1]:
            raise checks.InputError(
                f"labels have shape {tuple(labels.shape)}, features {tuple(features.shape)}"
            )
        features, labels = features[kept.to(features.device)], labels[kept]
    features = checks.matrix("features", features, columns=d)
    if labels is None or not len(features) and ignore_index is not None:
        return features, labels, storage
    labels, _ = checks.labels(labels, K, length=len(features))
    return features, labels, storage


def _places(counts, present):
    """Maps class indices to places among ``present``."""
    if len(present) == len(counts):
        return lambda y: y
    place = torch.full_like(counts, -1)
    place[present] = torch.arange(len(present), device=counts.device)
    return lambda y: place[y]


def _rows(value, present):
    return value if value is None or len(value) == len(present) else value[present.to(value.device)]


def _tally(labels, K):
    return torch.bincount(labels, minlength=K)


def _norms(rows):
    return torch.linalg.vector_norm(rows, dim=1)


def _product_dtype(d, dtype):
    return torch.float64 if d <= _SMALL else dtype


def _add_products(total, rows):
    """Add the upper column panels of ``rowsᵀ rows`` to ``total (d, d)``; see :func:`_symmetric`."""
    d = len(total)
    step = -(-d // _PANELS)
    for i in range(0, d, step):
        part, left, right = total[i : i + step, i:], rows[:, i : i + step].T, rows[:, i:]
        if total.dtype == rows.dtype:
            part.addmm_(left, right)
        else:
            part += left @ right


def _symmetric(upper):
    """The symmetric matrix with this upper triangle."""
    return upper.triu() + upper.triu(1).T


def _nonempty(counts):
    return checks.class_counts(torch.repeat_interleave(counts.cpu()), len(counts))


def _at_least_two(counts):
    present = (counts > 0).nonzero().flatten()
    if len(present) < 2:
        raise checks.InputError(
            f"only {len(present)} of {len(counts)} classes has samples; neural collapse needs two"
        )
    return present


def _classifier(weight, bias, K, d):
    if weight is None:
        if bias is not None:
            raise checks.InputError("a bias was given without a weight")
        return None, None
    weight = checks.matrix("weight", weight, rows=K, columns=d, dtype=torch.float64).detach()
    if bias is not None:
        bias = checks.vector("bias", bias, K, dtype=torch.float64).detach()
    return weight, bias


def _class_sums(blocks, K, d):
    """Sum of the features of each class ``(K, d)``, in float64 throughout."""
    sums = wide = None
    for x, y in blocks:
        if sums is None:
            wide = torch.empty(_ROWS, d, dtype=torch.float64, device=x.device)
            sums = torch.zeros(K, d, dtype=torch.float64, device=x.device)
        sums.index_add_(0, y, wide[: len(x)].copy_(x))
    return sums
