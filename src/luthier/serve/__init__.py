"""The OpenAI-compatible server: one worker batches all clients' answers, token by token."""
