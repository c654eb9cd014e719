"""A plain-torch script: words that stand together get like vectors (skip-gram with negatives).

Nothing in it knows of shoal. docs/concepts/placement.md shows the two lines that make its table a
unified tensor, and the test suite applies them: the losses stay the same.

    python examples/embedding.py
"""

import torch
from torch import nn
from torch.nn import functional

WORDS, TOPICS, BATCH, STEPS = 2000, 20, 256, 60


def main() -> list[float]:
    generator = torch.Generator().manual_seed(0)
    words = nn.Embedding(WORDS, 32)
    nn.init.normal_(words.weight, std=0.3, generator=generator)
    optimizer = torch.optim.Adam(words.parameters(), lr=0.05)
    losses = []
    for _ in range(STEPS):
        center = torch.randint(WORDS, (BATCH,), generator=generator)
        near = (center + TOPICS * torch.randint(1, 9, (BATCH,), generator=generator)) % WORDS
        far = torch.randint(WORDS, (BATCH,), generator=generator)
        a, b, c = words(center), words(near), words(far)
        scores = torch.cat([(a * b).sum(1), -(a * c).sum(1)])
        loss = -functional.logsigmoid(scores).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
