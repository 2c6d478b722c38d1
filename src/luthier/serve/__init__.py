"""The OpenAI-compatible server: one worker batches all clients' answers, token by token."""

from luthier.extras import need

need(
    *("fastapi", "llguidance", "prometheus_client", "uvicorn"), extra="serve", what="luthier serve"
)
