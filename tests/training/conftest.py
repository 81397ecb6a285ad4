"""What tests of trained float models share."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from emqdeploy.data import load_dataset
from emqdeploy.models import create_model


@pytest.fixture(scope="session")
def trained_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-8 trained on the digits for a few seconds, as a file of float weights."""
    torch.manual_seed(0)
    digits = load_dataset("digits")
    images = torch.from_numpy(digits.preprocessing.normalize(digits.train.images[:]))
    labels = torch.from_numpy(digits.train.labels)
    model = create_model("resnet8", 10, 1, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(220):
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))[:64]
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("float") / "digits.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return path
