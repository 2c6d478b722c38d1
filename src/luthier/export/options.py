"""What can be chosen, by name; no heavy imports, since the command line shows it."""

from typing import Literal

Onto = Literal["trained", "original"]

Combination = Literal[
    "cat",
    "svd",
    "linear",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_ties",
    "dare_linear_svd",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]

Shape = Literal["safetensors", "gguf", "ollama", "adapter-gguf"]
