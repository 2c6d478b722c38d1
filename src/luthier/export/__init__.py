"""From a run folder to what is deployed: merged weights, GGUF, Ollama, a model card."""
