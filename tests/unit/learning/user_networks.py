"""Networks as users write them, each with one line that does not become an int8 graph. The tests name those lines by their code."""

import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.change(self.first(x).mean((2, 3))))
        return logits

    def change(self, y: torch.Tensor) -> torch.Tensor:
        return y


class Branching(Plain):
    def change(self, y: torch.Tensor) -> torch.Tensor:
        if y.sum() > 0:
            y = y * 2
        return y


class Refusing(Plain):
    def change(self, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y, y[:, :, None]])


class Inverse(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return torch.erfinv(0.5 * torch.tanh(y))


class Fourier(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = super().forward(x)
        spectrum: torch.Tensor = torch.fft.fft(y).abs()
        return spectrum
