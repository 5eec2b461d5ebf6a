"""Checkpoints: what is restored is what was saved, and one clear line for a file that can't be used."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from for_model.errors import UsageError
from for_model.training.checkpoint import read_model, restore_checkpoint, save_checkpoint


def made(seed: int, **options: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    plain, decayed = [p for p in model.parameters() if p.ndim < 2], [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain}]  # not in the model's order
    return model, torch.optim.AdamW(groups, lr=0.1, **options)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"amsgrad": True}], ids=str)
def test_a_restored_training_goes_on_bit_by_bit(tmp_path: Path, options: dict[str, bool]) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model, optimizer = made(0, **options)
    steps(model, optimizer, range(3))
    progress = {"step": 3, "sums": {"loss": 0.1 + 0.2}}
    save_checkpoint(path, model.state_dict(keep_vars=True), optimizer, progress)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    steps(model, optimizer, range(3, 6))
    again, its_optimizer = made(1, **options)
    assert restore_checkpoint(path, again.state_dict(keep_vars=True), its_optimizer) == progress
    steps(again, its_optimizer, range(3, 6))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert read_model(path).keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in read_model(path).items())


def test_files_that_are_no_checkpoint_of_this_training(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model, optimizer = made(0)
    state = model.state_dict(keep_vars=True)
    assert restore_checkpoint(path, state, optimizer) is None
    save_checkpoint(path, state, optimizer, {})
    whole, tensors = path.read_bytes(), load_file(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(UsageError, match=r"is damaged .*: delete it to train from the start"):
        restore_checkpoint(path, state, optimizer)
    save_file(tensors, path, {"step": "3", "sums": "{}"})  # as FOR wrote them before they had a format
    with pytest.raises(UsageError, match="of the format None, expected 'for-checkpoint/1': delete it"):
        restore_checkpoint(path, state, optimizer)
    path.write_bytes(whole)
    before = {name: value.detach().clone() for name, value in state.items()}
    other = nn.Sequential(nn.Linear(3, 5))
    with pytest.raises(UsageError, match="of another model: delete it"):
        restore_checkpoint(path, other.state_dict(keep_vars=True), torch.optim.Adam(other.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in state.items())
