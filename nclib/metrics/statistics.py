"""Class statistics in one streaming pass, and the metrics that follow from them."""

import copy
from functools import partial
from numbers import Integral

import torch

from nclib import checks
from nclib.metrics import _rows
from nclib.metrics._classes import Classes
from nclib.metrics._rows import Rows
from nclib.metrics.agreement import Agreement, Rules
from nclib.metrics.collapse import frame, measure, table
from nclib.metrics.geometry import between, sample_mean
from nclib.metrics.precision import Storage, exact

_STATE = ("counts", "_begun", "_shift", "_offset", "_squares", "_scatter")


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
    squared: nothing cancels when the features have collapsed.  Sums and products are float64; where
    class means differ along directions so short that they have no digits of them (possible for
    float64 features only), ``nc1`` is NaN.  Memory: d² + 2·K·d float64 numbers, and ``keep``.

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
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.counts = torch.zeros(K, dtype=torch.int64, device=device)
        self._kept = Rows(d, self.counts.device)
        self._begun, self._dtype = torch.zeros(K, dtype=torch.bool, device=device), torch.float32
        self._shift, self._offset, self._squares = zeros(K, d), zeros(K, d), zeros(K)
        self._scatter = zeros(d, d)

    @exact
    def update(self, features, labels, *, ignore_index=None):
        """Add a batch: ``features (B, d)``, ``labels (B,)``; or tokens, ``(B, T, d)``, ``(B, T)``.

        Samples with the label ``ignore_index`` are left out.  Returns ``self``.  Raises
        :class:`~nclib.checks.InputError` for bad input, and keeps what it has.
        """
        labels = self._named(labels)
        x, y, storage = _rows.batch(features, labels, self.num_classes, self.dim, ignore_index)
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

    def _add(self, features, labels):
        """Add samples to the sums."""
        self._dtype = torch.promote_types(self._dtype, features.dtype)
        for x, y in Rows.of(features, labels).blocks():
            x = x.double()
            self._begin_classes(x, y)
            residual = x - self._shift.index_select(0, y)
            self._offset.index_add_(0, y, residual)
            self._squares.index_add_(0, y, residual.square().sum(1))
            _rows.add_products(self._scatter, residual)

    def _begin_classes(self, x, y):
        fresh = ~self._begun[y]
        if not fresh.any():
            return
        new, index, counts = y[fresh].unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(new), self.dim, dtype=torch.float64, device=x.device)
        self._shift[new] = sums.index_add_(0, index, x[fresh]) / counts[:, None]
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
        other = copy.deepcopy(self) if other is self else other
        self._storage = self._storage.coarser(other._storage)
        kept = self.complete and other.complete
        if kept and self._kept.bytes() + other._kept.bytes() <= self.keep:
            for x, y in other._kept.blocks():
                self._kept.append(x.to(self.counts.device), y.to(self.counts.device))
            self.counts += other.counts.to(self.counts.device)
            return self
        self._let_go()
        other._fold()
        self._dtype = torch.promote_types(self._dtype, other._dtype)
        here, there = self.counts.device, other.counts.device
        far, counts = other.counts.to(here), self.counts + other.counts.to(here)
        total = self.counts[:, None] * self.means + far[:, None] * other.means.to(here)
        means = total / counts.clamp(min=1)[:, None]
        parts = zip(self._about(means), other._about(means.to(there)), strict=True)
        self._set(counts, means, *(own + others.to(here) for own, others in parts))
        return self

    @exact
    def __add__(self, other):
        if not isinstance(other, ClassStatistics):
            return NotImplemented
        return copy.deepcopy(self).merge(other)

    @exact
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
        self.counts, self._begun = counts, counts > 0
        self._shift, self._offset = means, torch.zeros_like(means)
        self._scatter, self._squares = within, squares

    @exact
    def all_reduce(self, group=None):
        """Add up the statistics of all processes of ``group`` (default: all); in place, everywhere.

        For ``torch.distributed``; every process must call it, with or without samples of its own.
        Sums only: features kept are let go, NC4 needs a second pass (:meth:`agreement`).
        """
        from torch import distributed

        self._let_go()

        def total(value):
            distributed.all_reduce(value, group=group)
            return value

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
        dtype = str(self._dtype).removeprefix("torch.")
        tensors = {name: getattr(self, name).clone() for name in _STATE}
        shape = {"num_classes": self.num_classes, "dim": self.dim, "names": self.names}
        return tensors | shape | {"storage": tuple(self._storage), "dtype": dtype}

    @exact
    def load_state_dict(self, state):
        """Take the sums of :meth:`state_dict` over, on this device; returns ``self``.

        Raises :class:`~nclib.checks.InputError` if they are none, or of other classes.
        """
        if lacking := [n for n in (*_STATE, "storage", "dtype") if n not in state]:
            raise checks.InputError(f"the stored statistics lack {lacking}: not of state_dict()")
        for name in ("num_classes", "dim", "names"):
            if state.get(name, "nothing") != getattr(self, name):
                raise checks.InputError(
                    f"the stored statistics have {name}={state.get(name)!r}, "
                    f"these have {getattr(self, name)!r}"
                )
        device = self.counts.device
        for name in _STATE:
            setattr(self, name, state[name].to(device, copy=True))
        if self.precision is None:
            self._storage = Storage(*state["storage"])
        self._kept, self._dtype = None, getattr(torch, state["dtype"])
        return self

    def _centred(self):
        self._fold()
        scaled = self._offset / self.counts.clamp(min=1).double().sqrt().unsqueeze(1)
        return _rows.symmetric(self._scatter) - scaled.T @ scaled

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
        return sample_mean(self.means, self.counts)

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

    @exact
    def metrics(self, weight=None, bias=None, *, agreement=None, missing="error"):
        """The metrics of :func:`nc_metrics`.

        ``ncc_disagreement`` (NC4) needs the samples: it is there if they were all kept
        (``complete``), or if ``agreement``, the finished second pass of :meth:`agreement`, is
        given.  ``missing`` as there.
        """
        present = _rows.measured(self.counts, missing)
        weight, bias = _rows.classifier(weight, bias, self.num_classes, self.dim)
        if self.complete:
            found = measure(self._kept, self.counts, present, weight, bias, self._storage)
        else:
            classes = self._classes(present, weight, bias)
            within, variances = self.within_covariance, self.variances[present]
            spectrum, basis = between(classes.centred, cut=self._storage.cut(classes.means))
            moments = ((basis.T @ within) * basis.T).sum(1)
            trace = float(within.trace())
            known = spectrum, basis, moments, trace, variances, self._storage
            found = classes.metrics(*known, sums=True)
        if agreement is not None:
            second = agreement.metrics()
            if "ncc_disagreement" not in second:
                raise checks.InputError(
                    "the second pass had no classifier to compare with: agreement(weight, bias)"
                )
            found |= {"ncc_disagreement": second["ncc_disagreement"]}
        return found

    def _classes(self, present, weight, bias):
        weight, bias = (_rows.pick(value, present) for value in (weight, bias))
        return Classes(self.means[present], self.counts[present], weight, bias)

    @exact
    def agreement(self, weight=None, bias=None, *, missing="error"):
        """A **second pass** over samples, these or unseen ones: :class:`Agreement`.

        >>> second = statistics.agreement(weight, bias)  # doctest: +SKIP
        >>> for features, labels in test_batches:  # doctest: +SKIP
        ...     second.update(features, labels)
        >>> second.metrics()["ncc_disagreement"]  # doctest: +SKIP

        With ``missing="skip"`` the classes left out are not predicted either.
        """
        present = _rows.measured(self.counts, missing)
        weight, bias = _rows.classifier(weight, bias, self.num_classes, self.dim)
        classes = self._classes(present, weight, bias)  # first: it may fold in wider features
        dtype = _rows.product_dtype(classes.means, self._dtype)
        rules = Rules(classes, classes.means.to(dtype), None, self.variances[present])
        return Agreement(rules, present, self.num_classes, self.names)

    @exact
    def by_class(self, agreement=None):
        """Metrics of each class, a data frame; see :func:`by_class`.

        ``nc1`` is there if all features were kept; the errors too, or from ``agreement``, the
        finished second pass.
        """
        present = _rows.measured(self.counts, "skip")
        if self.complete and agreement is None:
            return table(self._kept, self.counts, present, None, None, self._storage, self.names)
        classes = self._classes(present, None, None)
        found = classes.by_class(self.variances[present])
        if agreement is not None:
            found |= {name: value[present] for name, value in agreement.by_class().items()}
        return frame(found, self.counts, present, self.names)
