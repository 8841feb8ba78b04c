"""The registered networks of our own: a file a family. `shared.learning.models` finds them by name.

Written from what was measured to survive export, quantization and pruning: convolution, BatchNorm with its defaults (torchao's
rewriting knows no others), then a ReLU module of its own; `+` for residuals; one value a channel before the answers.
"""
