"""Every plot test draws in the project's look and leaves no figure open."""

import matplotlib.pyplot as plt
import pytest

from nclib.plots import style


@pytest.fixture(autouse=True)
def look():
    style.use()
    yield
    plt.close("all")


@pytest.fixture
def render():
    """Lay a figure out and draw it (warnings are errors in the test run); returns the figure."""

    def draw(figure):
        figure.canvas.draw()
        return figure

    return draw
