"""The loss of distillation against its formula over all logits, and the file of a teacher's answers."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from families import MODEL_FAMILIES, make_model
from helpers import gradients, random_rows
from torch import Tensor, nn

from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.kernels import head as kernel
from luthier.kernels.head import find_head
from luthier.kernels.taught_head import Top
from luthier.objectives.choose import choose
from luthier.objectives.objective import mean_over
from luthier.objectives.teacher import Lessons, Teacher, keep_lessons
from luthier.recipe import ObjectiveGroup

FAMILIES = ("llama", "qwen3", "gemma2", "gpt2")
WORDS = 96


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces of the positions, the last of them short."""
    monkeypatch.setitem(kernel._PIECE, "cpu", 4 * WORDS * 5)


def settings(top_k: int, temperature: float, alpha: float) -> ObjectiveGroup:
    keys = {"top_k": top_k, "temperature": temperature, "alpha": alpha}
    return ObjectiveGroup(name="distill", teacher="t", **keys)  # type: ignore[arg-type]


def make_teacher(words: int = WORDS) -> nn.Module:
    torch.manual_seed(3)
    model = make_model("qwen3", words)
    with torch.no_grad():  # surer than a random model
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model.eval()


def ask(
    path: Path, teacher: nn.Module, rows: Sequence[TokenRow], chosen: ObjectiveGroup, **more: bool
) -> Lessons:
    assert chosen.top_k is not None and chosen.temperature is not None
    top = Top(chosen.top_k, WORDS, chosen.temperature)
    keep_lessons(path, Teacher(teacher, top, head=find_head(teacher), **more), rows, 2)
    return Lessons(path)


def by_formula(
    model: nn.Module, teacher: nn.Module, rows: Sequence[TokenRow], chosen: ObjectiveGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, KL and cross-entropy, token by token from all logits of each row alone."""
    t, alpha, k = chosen.temperature, chosen.alpha, chosen.top_k
    assert t is not None and alpha is not None and k is not None
    kls, hards = [], []
    for row in rows:
        ids = torch.tensor([row.input_ids])
        z = model(input_ids=ids).logits[0].float()
        with torch.no_grad():
            taught = teacher(input_ids=ids).logits[0].float()[:, :WORDS]
        for place in range(1, len(row)):
            if not row.supervised[place]:
                continue
            p, q = torch.softmax(z[place - 1] / t, 0), torch.softmax(taught[place - 1] / t, 0)
            best = q.argsort(descending=True)
            kl = (q[best[:k]] * (q[best[:k]].log() - p[best[:k]].log())).sum()
            if k < WORDS:
                rest_q, rest_p = q[best[k:]].sum(), p[best[k:]].sum()
                kl = kl + rest_q * (rest_q.log() - rest_p.log())
            kls.append(kl)
            hards.append(-torch.log_softmax(z[place - 1], 0)[row.input_ids[place]])
    kl, hard = torch.stack(kls).mean(), torch.stack(hards).mean()
    return (1 - alpha) * t**2 * kl + alpha * hard, kl, hard


@pytest.mark.parametrize(
    ("top_k", "temperature", "alpha"), [(8, 1.0, 0.1), (8, 2.0, 0.5), (WORDS, 1.0, 0.0)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_all_logits(
    family: str, top_k: int, temperature: float, alpha: float, tmp_path: Path
) -> None:
    model, teacher, rows = make_model(family, WORDS), make_teacher(), random_rows(4, seed=2)
    chosen = settings(top_k, temperature, alpha)
    lessons = ask(tmp_path / "teacher", teacher, rows, chosen)
    wanted = by_formula(model, teacher, rows, chosen)
    expected = gradients(model, wanted[0])
    most = max(grad.abs().max().item() for grad in expected.values())
    for packed, head in ((True, find_head(model)), (False, find_head(model)), (True, None)):
        objective = choose(chosen, packed, head, lessons=lessons)
        batch = objective.collate([rows[:2], rows[2:]])
        loss, parts = objective.loss(model, batch)
        count = objective.count(batch)
        assert count == sum(sum(row.supervised) for row in rows)
        found = [loss.item() / count, *(part.item() / count for part in parts.values())]
        assert found == pytest.approx([part.item() for part in wanted], rel=1e-5, abs=1e-6)
        assert list(parts) == ["kl", "cross_entropy"]
        mine = gradients(model, loss / count)
        assert mine.keys() == expected.keys()
        for name, grad in mine.items():
            scale = expected[name].abs().max().item() + 1e-3 * most
            assert (grad - expected[name]).abs().max().item() <= 2e-5 * scale, name
        means = mean_over(objective, model, rows, 3)
        assert means["loss"] == pytest.approx(wanted[0].item(), rel=1e-5)


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_a_model_that_is_its_own_teacher_has_no_divergence(family: str, tmp_path: Path) -> None:
    model, rows = make_model(family, WORDS).eval(), random_rows(3)
    chosen = settings(16, 2.0, 0.0)
    objective = choose(
        chosen, True, find_head(model), lessons=ask(tmp_path / "t", model, rows, chosen)
    )
    loss, _ = objective.loss(model, objective.collate([rows]))
    assert abs(loss.item()) < 1e-4
    assert max(grad.abs().max() for grad in gradients(model, loss).values()) < 1e-4


def test_a_bucket_never_makes_the_divergence_larger(tmp_path: Path) -> None:
    model, teacher, rows = make_model("llama", WORDS), make_teacher(), random_rows(3)
    found = []
    for top_k in (1, 4, 16, WORDS):
        chosen = settings(top_k, 1.0, 0.0)
        lessons = ask(tmp_path / str(top_k), teacher, rows, chosen)
        objective = choose(chosen, True, find_head(model), lessons=lessons)
        found.append(objective.loss(model, objective.collate([rows]))[0].item())
    assert found[0] > 0 and found == sorted(found)


def test_the_file_is_the_same_however_it_is_asked_and_holds_each_row_once(tmp_path: Path) -> None:
    chosen, rows = settings(8, 1.0, 0.1), random_rows(5)
    teacher = make_teacher()
    packed = ask(tmp_path / "a", teacher, [*rows, rows[0]], chosen)
    apart = ask(tmp_path / "b", teacher, rows, chosen, packed=False)
    size = (tmp_path / "a").stat().st_size
    assert size == (tmp_path / "b").stat().st_size
    for row in rows:
        mine, other = packed.of([row]), apart.of([row])
        assert mine.ids.shape == (sum(row.supervised), 8)
        assert torch.equal(mine.ids, other.ids)
        assert torch.allclose(mine.log_probs, other.log_probs, atol=1e-5)
        assert mine.log_probs.exp().sum(-1).tolist() == pytest.approx([1] * sum(row.supervised))
    both = packed.of(rows[:2])
    assert torch.equal(both.ids, torch.cat([packed.of([row]).ids for row in rows[:2]]))


def test_a_padded_head_of_the_teacher_teaches_no_token_that_the_student_lacks(
    tmp_path: Path,
) -> None:
    model, teacher, rows = make_model("llama", WORDS), make_teacher(128), random_rows(3)
    chosen = settings(8, 1.0, 0.1)
    lessons = ask(tmp_path / "t", teacher, rows, chosen)
    assert lessons.of(rows).ids.max() < WORDS
    objective = choose(chosen, True, find_head(model), lessons=lessons)
    batch = objective.collate([rows])
    loss = objective.loss(model, batch)[0].item() / batch.supervised
    assert loss == pytest.approx(by_formula(model, teacher, rows, chosen)[0].item(), rel=1e-5)


def test_a_file_of_other_rows_or_a_damaged_one_is_told_of(tmp_path: Path) -> None:
    chosen, rows = settings(8, 1.0, 0.1), random_rows(4)
    lessons = ask(tmp_path / "t", make_teacher(), rows[:2], chosen)
    with pytest.raises(UserError, match="other rows than those of this run"):
        lessons.of(rows)
    data = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(data[:-100])
    with pytest.raises(UserError, match="holds what the teacher finds likely"):
        Lessons(tmp_path / "t").check()
    with pytest.raises(UserError, match="cannot read"):
        Lessons(tmp_path / "gone").check()
