"""Nearest class mean against classifier and labels (NC4)."""

import math

import torch

from nclib import checks
from nclib.metrics import _classes as shared
from nclib.metrics._rows import batch, block, norms, places
from nclib.metrics.precision import exact


class Agreement:
    """Nearest class mean against classifier and labels, batch by batch (NC4).

    Made by :meth:`ClassStatistics.agreement`: the class means are those of its samples, the
    features may be the same ones again or unseen ones.  After collapse a sample nearer to its class
    mean than any decision boundary is known to agree, and costs no scores.
    """

    def __init__(self, rules, present, num_classes, names):
        self._rules, self._present, self._names = rules, present, names
        self.num_classes, self.dim = num_classes, rules.shift.shape[1]
        self._place = places(present, num_classes)
        self.samples = self.disagreements = 0
        # Of each class: samples with a label, wrong ones of the class means, of the classifier.
        self._counts = torch.zeros(3, num_classes, dtype=torch.int64, device=present.device)

    @exact
    def update(self, features, labels=None, *, ignore_index=None):
        """Add a batch as in :meth:`ClassStatistics.update`; labels may be left out.

        Returns ``self``.
        """
        if labels is not None and self._names is not None:
            labels = checks.named(labels, self._names)[0]
        x, y, _ = batch(features, labels, self.num_classes, self.dim, ignore_index)
        x = x.to(self._present.device, self._rules.shift.dtype)
        self.samples += len(x)
        size = block(self.dim, x.device)
        if y is None:
            for part in x.split(size):
                self._compare(*self._rules.choose(part))
            return self
        y = y.to(self._present.device)
        self._tally(0, y)
        for part, labels in zip(x.split(size), y.split(size), strict=True):
            own = self._place[labels]
            known = own.clamp(min=0)
            lengths = norms(part - self._rules.shift.index_select(0, known))
            unsure = ((own < 0) | (lengths >= self._rules.reach[known])).nonzero().flatten()
            if len(unsure):
                labels, own = labels[unsure], own[unsure]
                predicted, nearest = self._rules.choose(part[unsure])
                self._tally(1, labels[nearest != own])
                self._compare(predicted, nearest)
                if predicted is not None:
                    self._tally(2, labels[predicted != own])
        return self

    def _tally(self, row, labels):
        self._counts[row] += torch.bincount(labels, minlength=self.num_classes)

    def _compare(self, predicted, nearest):
        if predicted is not None:
            self.disagreements += int((predicted != nearest).sum())

    def merge(self, other):
        """Add the counts of another part of the samples; returns ``self``."""
        if (other.num_classes, other.dim) != (self.num_classes, self.dim):
            raise checks.InputError("cannot merge second passes of different classes or dimensions")
        self.samples += other.samples
        self.disagreements += other.disagreements
        self._counts += other._counts.to(self._counts.device)
        return self

    def all_reduce(self, group=None):
        """Add up the counts of all processes of ``torch.distributed``; in place, everywhere."""
        from torch import distributed

        totals = torch.tensor([self.samples, self.disagreements], device=self._counts.device)
        for counts in (totals, self._counts):
            distributed.all_reduce(counts, group=group)
        self.samples, self.disagreements = totals.tolist()
        return self

    def metrics(self):
        """``ncc_disagreement``, the share of samples whose nearest class mean is not the predicted
        class; of the labelled ones, ``ncc_error``, the share whose nearest class mean is not that
        of their class, and ``error``, the share not predicted as their class.  The first two are
        NaN if all class means are equal.

        The first and the last need a classifier.  Raises
        :class:`~nclib.checks.InputError` if there was no sample.
        """
        if not self.samples:
            raise checks.InputError("no sample came in the second pass: call update first")
        found, (labelled, far, wrong) = {}, self._counts.sum(1).tolist()
        unknown = math.nan if self._rules.equal else 0.0  # all class means are equally near
        if self._rules.weight is not None:
            found["ncc_disagreement"] = self.disagreements / self.samples + unknown
        if labelled:
            found["ncc_error"] = far / labelled + unknown
            if self._rules.weight is not None:
                found["error"] = wrong / labelled
        return found

    def by_class(self):
        """``ncc_error`` and ``error`` of each class, tensors ``(K,)``; NaN without samples."""
        labelled, far, wrong = self._counts.double()
        found = {"ncc_error": far / labelled * (math.nan if self._rules.equal else 1.0)}
        return found if self._rules.weight is None else found | {"error": wrong / labelled}


class Rules:
    """The class that the classifier and that the nearest class mean choose for a sample.

    Both are the largest of K affine scores of a sample.  ``reach`` is the distance from the shift
    of a class to the nearest boundary of either rule, positive where both choose that class: a
    sample within reach agrees and needs no scores.  ``span (r, d)``: an orthonormal basis of the
    span of the centred means, if the projections on it are at hand.

    Up to ``TABLE`` classes the scores of every class at every shift are at hand, and those of a
    sample follow from its residual.  Beyond, they are computed about the global mean, in tiles, and
    ``reach`` only where a sample of the classes, with their ``variances``, says that it will help.
    """

    def __init__(self, classes, shift, span, variances=None):
        dtype, K = shift.dtype, len(shift)
        self.shift, self.disagreements, self.equal = shift, 0, classes.equal
        self.weight = None if classes.weight is None else classes.weight.to(dtype)
        self.directions = (2 * classes.centred).to(dtype)
        squares = classes.centred.square().sum(1)
        self.centre = classes.centre.to(dtype)
        # The rounding of the centre is known: scores are those at the rounded one.
        gap = self.centre.double() - classes.centre
        self.nearest_there = (2 * classes.centred @ gap - squares).to(dtype)
        if self.weight is not None:
            self.logits_there = (classes.logits + classes.weight @ gap).to(dtype)
        self.tabled = K <= shared.TABLE
        if not self.tabled:
            self.reach = _far_reach(classes, shift, variances)
            return
        # From the means, whose scores are at hand, to the shift: a rounding error away.
        gap = (shift.double() - classes.means).to(dtype)
        nearest = 2 * classes.gram - classes.gram.diagonal()
        nearest = nearest + (gap @ self.directions.T).double()
        own = torch.arange(K, device=shift.device)
        reach = _boundary(nearest, own, 4 * classes.gram, 4 * classes.gram.diagonal())
        if self.weight is not None:
            logits = classes.cross.T + classes.logits
            logits = logits + (gap @ self.weight.T).double()
            squares = classes.rows_gram.diagonal()
            reach = torch.minimum(reach, _boundary(logits, own, classes.rows_gram, squares))
            self.logits = logits.to(dtype)
        self.reach = (0.999 * reach).to(dtype)  # for the rounding of norms
        self.nearest = nearest.to(dtype)
        self.inside = self.directions if span is None else self.directions @ span.T

    def choose(self, x):
        """``(predicted, nearest)`` of features ``(B, d)``, int64; no classifier: ``(None, …)``."""
        x = x.to(self.centre.dtype) - self.centre
        size = max(32, shared.TILE // len(self.directions))

        def largest(there, rows):
            found = torch.empty(len(x), dtype=torch.int64, device=x.device)
            for part, out in zip(x.split(size), found.split(size), strict=True):
                out.copy_(torch.addmm(there, part, rows.T).argmax(1))
            return found

        nearest = largest(self.nearest_there, self.directions)
        return None if self.weight is None else largest(self.logits_there, self.weight), nearest

    def update(self, x, residual, inside, labels, lengths):
        """Count disagreements: features ``(B, d)``, residuals about the shift, these in the span
        ``(B, r)`` (or as they are, without a span), classes, and norms of the residuals.
        """
        unsure = (lengths >= self.reach[labels]).nonzero().flatten()
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
            gram, squares = vectors[rows] @ vectors.T, vectors.square().sum(1)
            found.append(_boundary(at @ vectors.T + there, rows, gram, squares))
        return torch.stack(found).amin(0)

    size = max(1, shared.TILE // 4 // K)
    if variances is not None:
        few = torch.randperm(K, generator=torch.Generator().manual_seed(0))[:size].to(shift.device)
        if (of(few) > variances[few].sqrt()).double().mean() < 0.5:
            return reach
    for rows in torch.arange(K, device=shift.device).split(size):
        reach[rows] = (0.999 * of(rows)).to(reach.dtype)
    return reach


def _boundary(scores, own, gram, squares):
    """Distance from points, whose affine scores are ``scores (R, K)``, to the nearest point where
    another class than their ``own (R,)`` has the largest score; at most 0 if one has already.

    ``gram (R, K)``: inner products of the gradients of the own and of all scores, up to a common
    shift of them; ``squares (K,)``: those of all with themselves.
    """
    gaps = squares[own, None] + squares - 2 * gram
    gaps += 1e-12 * (squares[own, None] + squares)  # rounding: never too small
    margins = (scores.gather(1, own[:, None]) - scores) / gaps.clamp(min=1e-300).sqrt()
    return margins.scatter(1, own[:, None], torch.inf).amin(1)
