"""Ask a real llama.cpp, in a Python that has the package `xllamacpp` (`make llama-cpp`).

Reads {"model", "lora"?, "texts": [str], "chats": [[turn]], "prompts": [[id]], "new": int, "top": int}
as JSON on stdin; prints the tokens of each text, the chat template, the prompt that it renders of each
chat and, for each prompt, the log-probabilities of the `top` likeliest next tokens and the greedy
continuation with its text. Needs nothing of ours, since
it runs in another environment; its server listens on loopback and ends with the process.
"""

import json
import sys
import urllib.request
from typing import Any

import xllamacpp as llama


def serve(asked: dict[str, Any]) -> Any:
    params = llama.CommonParams()
    params.model.path = asked["model"]
    params.n_ctx = 1024
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 2
    params.warmup = False
    # Float32 keys and values, so that all rounding is the weights'.
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.fit_params = False
    if "lora" in asked:
        adapter = llama.CommonAdapterLoraInfo(asked["lora"], 1.0)
        params.lora_adapters = [adapter]
    return llama.Server(params)


def ask(address: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=100) as reply:
        return json.load(reply)


def main() -> None:
    asked = json.load(sys.stdin)
    server = serve(asked)
    address = server.listening_address
    answer: dict[str, Any] = {
        "tokens": [
            ask(address, "/tokenize", {"content": t, "add_special": True, "parse_special": True})[
                "tokens"
            ]
            for t in asked.get("texts", [])
        ],
        "template": ask(address, "/props").get("chat_template"),
        "rendered": [
            ask(address, "/apply-template", {"messages": chat})["prompt"]
            for chat in asked.get("chats", [])
        ],
        "top": [],
        "greedy": [],
        "text": [],
    }
    for prompt in asked.get("prompts", []):
        body = {"prompt": prompt, "top_k": 1, "samplers": ["top_k"], "cache_prompt": False}
        first = ask(
            address, "/completion", {**body, "n_predict": 1, "n_probs": asked.get("top", 1)}
        )
        # Of a prompt that is answered by its end at once, the server tells no probabilities.
        found = first.get("completion_probabilities") or [{"top_logprobs": []}]
        answer["top"].append({e["id"]: e["logprob"] for e in found[0]["top_logprobs"]})
        done = ask(
            address, "/completion", {**body, "n_predict": asked["new"], "return_tokens": True}
        )
        answer["greedy"].append(done["tokens"])
        answer["text"].append(done["content"])
    print("ANSWER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
