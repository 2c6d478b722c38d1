"""GGUF files as a source of weights: dequantised into an ordinary Transformers folder."""

from pathlib import Path

from luthier.errors import UserError
from luthier.extras import need


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF ``file`` to ``folder`` in float32.

    Raises:
        UserError: the file is not a GGUF file that Transformers can read, or the extra is not installed.
    """
    need("gguf", extra="export", what="a GGUF file as a model")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luthier.models.gguf_header import check_header

    check_header(file)
    try:
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name)
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except Exception as error:  # of what a strange file holds, the libraries raise anything
        raise UserError(f"cannot read {file} as a GGUF model: {error}") from error
    # The weights are plain float32 now; the marks of the quantizer would forbid saving them.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
