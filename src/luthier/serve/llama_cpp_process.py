"""llama.cpp's server in a process of its own, so that a fault there is not ours.

Run as a script, with no other module of ours. Reads one line of JSON on stdin (``Settings`` of
``llama_cpp.py``), prints the address as `READY http://…`, and ends when stdin does.
"""

import json
import os
import sys
from typing import Any


def start(asked: dict[str, Any]) -> Any:
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = asked["model"]
    params.n_ctx = asked["context"] * asked["slots"]
    params.n_parallel = asked["slots"]
    params.kv_unified = False
    params.fit_params = False
    params.warmup = False
    # Its memory of earlier prompts does not know by which adapter they were read.
    params.cache_ram_mib = 0
    params.endpoint_slots = False  # which would show the prompts of others
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [asked["key"]]
    # The text of special tokens too, from which answers are told apart from thoughts.
    params.special = True
    if asked["precise"]:  # keys and values as exact as float32 weights
        params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked["threads"]
    if asked["adapters"]:
        params.lora_adapters = [
            llama.CommonAdapterLoraInfo(adapter, 0.0) for adapter in asked["adapters"]
        ]
    return llama.Server(params)


def main() -> None:
    server = start(json.loads(sys.stdin.readline()))
    print(f"READY {server.listening_address}", flush=True)
    sys.stdin.read()
    os._exit(0)  # its threads would keep the process


if __name__ == "__main__":
    main()
