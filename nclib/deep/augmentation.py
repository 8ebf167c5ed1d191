"""Batched augmentation on the device of the data, drawn from an explicit generator."""

import torch


def crop_and_flip(inputs, generator, *, pad=4):
    """Random crop after zero-padding by ``pad`` pixels, and horizontal flip: ``(B, C, H, W)``."""
    B, C, H, W = inputs.shape
    draw = lambda high, size: torch.randint(high, size, generator=generator)
    down, right = draw(2 * pad + 1, (B,)), draw(2 * pad + 1, (B,))
    flip = draw(2, (B,)).bool()
    padded = torch.nn.functional.pad(inputs, (pad, pad, pad, pad))
    rows = (down[:, None] + torch.arange(H)).to(inputs.device)
    columns = right[:, None] + torch.arange(W)
    columns = torch.where(flip[:, None], columns.flip(1), columns).to(inputs.device)
    batch = torch.arange(B, device=inputs.device)
    # One gather: padded[b, :, rows[b], columns[b]] for every sample.
    picked = padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
