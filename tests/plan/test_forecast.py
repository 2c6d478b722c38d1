"""What is said of memory before weights are fetched, and which card a machine has."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from luthier.errors import UserError
from luthier.events import Note
from luthier.plan import forecast
from luthier.plan.catalogues import Accelerator, card_named
from luthier.recipe import model_recipe, parse_overrides
from luthier.run import Run
from luthier.runs import train_run


@pytest.fixture
def on_the_hub(narrow_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The narrow model as one of the hub, planned for on a card of some GiB."""

    def check(memory: float, *overrides: str) -> None:
        monkeypatch.setattr(forecast, "is_on_hub", lambda source: True)
        monkeypatch.setattr(forecast, "this_machine", lambda: Accelerator("a card", memory))
        given = parse_overrides(["data.max_length=64", "model.dtype=bfloat16", *overrides])
        forecast.refuse_what_cannot_fit(model_recipe(str(narrow_model), **given), said.append)

    said: list[Any] = []
    check.said = said  # type: ignore[attr-defined]
    return check


def test_what_cannot_fit_is_refused_with_what_would(on_the_hub: Any) -> None:
    on_the_hub(2.0, "method.name=full")
    with pytest.raises(UserError) as refused:
        on_the_hub(1.05, "method.name=full")
    said = str(refused.value)
    assert "does not fit, so its weights were not fetched: training it by full" in said
    assert "a card has 1.0 GiB" in said
    assert (
        "lora instead of full would (method.name=lora train.optim=adamw_torch_fused: at least 0."
        in said
    )
    on_the_hub(1.05, "method.name=lora")
    assert on_the_hub.said == []


def test_what_fits_nowhere(on_the_hub: Any) -> None:
    with pytest.raises(UserError, match=r"; take a smaller model$"):
        on_the_hub(0.5, "method.name=lora")


def test_a_model_that_cannot_be_planned_is_let_through(
    on_the_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise UserError("experts in float32")

    monkeypatch.setattr(forecast, "job_of_shape", fails)
    on_the_hub(1.0)
    (note,) = on_the_hub.said
    assert isinstance(note, Note)
    assert note.text == "whether the model fits could not be planned: experts in float32"


def test_nothing_is_asked_of_a_folder_here(
    narrow_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "this_machine", lambda: pytest.fail("planned"))
    forecast.refuse_what_cannot_fit(model_recipe(str(narrow_model)), lambda _: None)


def test_a_run_asks_before_it_resolves_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("too large")

    monkeypatch.setattr("luthier.runs.refuse_what_cannot_fit", refuse)
    monkeypatch.setattr("luthier.runs.fit", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(UserError, match="too large"):
        train_run(model_recipe("owner/huge"), Run(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "memory", "key"),
    [
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX 4090"),
        ("NVIDIA GeForce RTX 3090", 23.7, "RTX 3090"),
        ("NVIDIA GeForce RTX 3090 Ti", 23.7, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, None),
        ("NVIDIA RTX A6000", 47.5, None),
        ("NVIDIA RTX 6000 Ada Generation", 47.5, "RTX 6000 Ada"),
        ("NVIDIA A10", 22.1, "A10"),
        ("NVIDIA A10G", 22.1, None),
        ("Tesla T4", 14.6, "T4 (float16 only)"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", 79.2, "H100 SXM"),
        ("NVIDIA H100 PCIe", 79.2, None),
        ("NVIDIA H200", 139.8, "H200 SXM"),
        ("NVIDIA L40S", 44.5, None),
    ],
)
def test_cards_are_known_by_all_words_of_their_name(
    name: str, memory: float, key: str | None
) -> None:
    found = card_named(name, memory)
    assert (found.name if found else None) == key


def test_what_the_hub_does_not_give_is_said_by_what_fetches_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise UserError("the hub does not answer")

    monkeypatch.setattr(forecast, "find_config", offline)
    forecast.refuse_what_cannot_fit(model_recipe("owner/name"), lambda _: None)


def test_weights_quantised_for_inference_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4})
    monkeypatch.setattr(forecast, "find_config", lambda *_: config)
    with pytest.raises(UserError, match="owner/name are quantised already"):
        forecast.refuse_what_cannot_fit(model_recipe("owner/name"), lambda _: None)
