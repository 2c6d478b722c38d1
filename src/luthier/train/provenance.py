"""What a run depends on besides its settings, kept in its provenance.json."""

import platform
from importlib.metadata import version

from transformers import PreTrainedTokenizerBase

from luthier import __version__
from luthier.data.pins import pinned_day
from luthier.data.prepare import Prepared
from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.models.load import template_hash
from luthier.models.source import ResolvedModel
from luthier.records import Provenance
from luthier.train.setup import Setup


def provenance_of(
    resolved: ResolvedModel,
    setup: Setup,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    data: Prepared,
) -> Provenance:
    """Everything that a run depends on besides its recipe."""
    return Provenance(
        versions=_versions(),
        device=setup.device_name,
        dtype=setup.dtype_name,
        substitutes=setup.substitutes,
        model=resolved.origin,
        template=template,
        template_sha256=template_hash(tokenizer),
        template_date=pinned_day(tokenizer.chat_template or ""),
        data_sha256={each.file: each.sha256 for each in data.report.sources if each.sha256},
    )


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers")
    return {
        "luthier": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def note_changed_versions(
    begun: Provenance, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent
) -> None:
    """Say which packages differ from when the run was started.

    Raises:
        UserError: the chat template differs, which would change what is learned.
    """
    if begun.template_sha256 != template_hash(tokenizer):
        raise UserError(
            "the model's chat template differs from the one this run was started with; "
            "choose another run.name to start over"
        )
    now, then = _versions(), begun.versions
    changed = [
        f"{name} {then.get(name)} -> {now[name]}" for name in now if now[name] != then.get(name)
    ]
    if changed:
        on_event(
            Note(
                "resuming with other package versions, so the results may not be bit-identical: "
                + ", ".join(changed),
                warning=True,
            )
        )
