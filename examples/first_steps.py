"""A ResNet-50 of this package in the place of torchvision's: infer, look, freeze, train.

    python examples/first_steps.py [--device cuda] [--size 224] [--weights IMAGENET1K_V2]

Without --weights nothing is downloaded, and the network is a random one.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn.functional import cross_entropy

import fused_resnet


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--weights", help="torchvision's, by name: they are downloaded; or a file")
    options = parser.parse_args(arguments)

    model = fused_resnet.resnet50(weights=options.weights).to(options.device, memory_format=torch.channels_last)
    images = torch.randn(4, 3, options.size, options.size, device=options.device)

    model.eval()
    with torch.inference_mode():
        logits = model(images)
        print("which path each part takes, and why:", fused_resnet.explain(model, images), sep="\n")

    frozen = fused_resnet.freeze(model)  # inference only: batch norm folded, filters packed
    difference = (frozen(images) - logits).abs().max() / logits.abs().max()
    print(f"frozen, the logits differ by {difference:.1e} of the largest")

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    labels = torch.randint(1000, (len(images),), device=options.device)
    for step in range(2):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
