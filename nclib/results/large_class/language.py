"""A small word-level language model: next-word prediction is classification with K >> d.

The text is the language reference that ships inside every Python installation
(``pydoc_data.topics``, about 80 000 words), so nothing is downloaded; it differs slightly between
Python versions.  Classes are words: their counts are very unequal, and the same context may be
followed by different words, so collapse cannot be complete (Wu & Papyan, arXiv 2405.17767).
"""

import re
from collections import Counter

import torch
from torch import nn

from nclib import checks
from nclib.deep import collect, train
from nclib.deep.data import Data
from nclib.deep.nets import Classifier, seeded
from nclib.metrics import generalized_nc
from nclib.results.large_class import nets as large_class


def words():
    """The corpus: lower-case words and punctuation marks, in order."""
    from pydoc_data import topics

    text = "\n".join(topics.topics[key] for key in sorted(topics.topics))
    return re.findall(r"[a-z]+|[.,;:()]", text.lower())


def next_words(tokens, *, vocabulary, context=4, test_share=0.1):
    """``(train, test, names)``: contexts of word ids ``(N, context)`` and the word that follows.

    Classes 0..K-1 are the ``vocabulary`` most frequent words of the training part, most frequent
    first; all others share the id K, which occurs in contexts but is never a target.  The last
    ``test_share`` of the text is the test part.
    """
    K = checks.integer("vocabulary", vocabulary, 2)
    context = checks.integer("context", context)
    checks.real("test_share", test_share, above=0, below=1)
    if len(tokens) <= context + 1:
        raise checks.InputError(f"a text of {len(tokens)} words is too short for context={context}")
    cut = round((1 - test_share) * (len(tokens) - context))
    names = [word for word, _ in Counter(tokens[: cut + context]).most_common(K)]
    if len(names) < K:
        raise checks.InputError(
            f"the training text has {len(names)} different words, vocabulary={K} were asked for"
        )
    index = {word: i for i, word in enumerate(names)}
    windows = torch.tensor([index.get(word, K) for word in tokens]).unfold(0, context + 1, 1)
    parts = []
    for part in (windows[:cut], windows[cut + context :]):  # no word is in both
        part = part[part[:, -1] < K]
        parts.append(Data("Python reference", part[:, :-1].clone(), part[:, -1].clone(), K))
    return *parts, names


def language_net(vocabulary, *, context, embedding, hidden, dim, cosine=False):
    """Embedding, one hidden layer, ``dim`` features, and a linear or cosine head without bias."""
    backbone = nn.Sequential(
        nn.Embedding(vocabulary + 1, embedding),
        nn.Flatten(),
        nn.Linear(context * embedding, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, dim),
    )
    if cosine:
        head = large_class.CosineHead(dim, vocabulary)
    else:
        head = nn.Linear(dim, vocabulary, bias=False)
    return Classifier(backbone, head)


def study(data, test, settings, *, dim, embedding=32, hidden=256, temperature=None, seed=0,
          measure_at=(), checkpoint=None):  # fmt: skip
    """Train the model and measure collapse: ``epoch``, test loss and accuracy, GNC metrics.

    ``temperature=None``: a plain linear head; a number: normalised softmax.  Metrics are taken on
    the training contexts; ``gnc2_random`` is the margin of a random classifier of the same size.
    """
    K, context = data.num_classes, data.inputs.shape[1]
    shape = {"context": context, "embedding": embedding, "hidden": hidden, "dim": dim}
    cosine = temperature is not None
    net = seeded(seed, language_net, K, **shape, cosine=cosine).to(data.inputs.device)
    loss = large_class.NormalizedSoftmax(temperature if cosine else 1.0)

    def measure(net, epoch):
        features = collect.features(net, data.inputs)
        weight = nn.functional.normalize(net.weight, dim=1) if cosine else net.weight
        found = generalized_nc(features, data.labels, weight, random_draws=1)
        numbers = {k: v for k, v in found.items() if isinstance(v, float)}
        logits = collect.logits(net, test.inputs)
        numbers["test_loss"] = float(loss(logits, test.labels))
        numbers["test_accuracy"] = float((logits.argmax(1) == test.labels).double().mean())
        return numbers

    history = train.fit(
        net,
        data,
        large_class.objective(loss),
        settings,
        seed=seed,
        measure=measure,
        measure_at={*measure_at, 0, settings.epochs},
        checkpoint=checkpoint,
        label="language model",
    )
    return history.assign(head="cosine" if cosine else "linear", seed=seed), net
