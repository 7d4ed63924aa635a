from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from typing import Literal

import pytest
import torch
from torch import nn

from gapssg.core.runtime import Runtime, computes_bf16_natively, to_uint8, to_unit_range
from gapssg.errors import InputError
from gapssg.models.frozen import frozen
from gapssg.settings.parts import RuntimeSettings


def test_streams_depend_only_on_seed_name_and_index(runtime):
    def draw(seed, *key):
        each = Runtime(torch.device("cpu"), "fp32", False, seed)
        return torch.rand(4, generator=each.random_stream(*key)).tolist()

    first = draw(0, "latent", 3)
    torch.rand(7)
    assert draw(0, "latent", 3) == first
    others = [draw(1, "latent", 3), draw(0, "targets", 3), draw(0, "latent", 4), draw(0, "latent", 3, 0)]
    assert all(other != first for other in others)


def test_seeding_modules_restores_torchs_global_state(runtime):
    before = torch.random.get_rng_state()
    with runtime.seeded_globals("modules", 0):
        first = torch.rand(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    with runtime.seeded_globals("modules", 0):
        assert torch.equal(torch.rand(2), first)


def test_auto_precision_is_bf16_where_the_processor_computes_in_it():
    auto = Runtime.from_settings(RuntimeSettings(device="cpu"), 0)
    assert auto.precision == ("bf16" if computes_bf16_natively(torch.device("cpu")) else "fp32")
    for precision in ("fp32", "bf16"):
        assert Runtime.from_settings(RuntimeSettings(device="cpu", precision=precision), 0).precision == precision


def test_networks_are_computed_in_the_precision_of_the_run():
    layer = nn.Linear(2, 2)
    cases: list[tuple[Literal["fp32", "bf16"], torch.dtype]] = [("fp32", torch.float32), ("bf16", torch.bfloat16)]
    for precision, dtype in cases:
        with Runtime(torch.device("cpu"), precision, False, 0).autocast():
            assert layer(torch.ones(1, 2)).dtype == dtype


def test_networks_are_placed_in_channels_last_layout_unless_a_tensor_has_five_dimensions(runtime):
    network = nn.Conv2d(3, 4, 3)
    assert runtime.place(network).weight.is_contiguous(memory_format=torch.channels_last)
    network.register_buffer("mask", torch.zeros(1, 2, 1, 3, 3))
    assert runtime.place(network).mask.shape == (1, 2, 1, 3, 3)


def test_long_runs_are_compiled_and_short_ones_are_not_with_a_reason(runtime, monkeypatch):
    monkeypatch.setattr("gapssg.core.runtime.obstacle_to_compiling", lambda _: None)
    long, sentence = runtime.decide_compilation("auto", 1e18)
    assert long.compiled
    assert sentence.startswith("compiled, because the run is long: about 1,000,000 TFLOP")
    short, sentence = runtime.decide_compilation("auto", 1e12)
    assert not short.compiled
    assert sentence == "not compiled, because the run is short: about 1 TFLOP"
    assert runtime.decide_compilation("auto", 9e11)[1] == "not compiled, because the run is short: below 1 TFLOP"
    # No clock is read: equal runs decide alike.
    assert runtime.decide_compilation("auto", 1e18) == (long, runtime.decide_compilation("auto", 1e18)[1])


def test_a_long_run_without_a_compiler_is_not_compiled_and_says_so(runtime, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    same, sentence = runtime.decide_compilation("auto", 1e18)
    assert not same.compiled
    assert "although the run is long" in sentence
    assert "compiling needs the C++ compiler no-such-compiler, which is not installed" in sentence


def test_compile_without_a_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        InputError,
        match=r"compiling needs the C[+][+] compiler no-such-compiler, which is not installed; use --no-compile",
    ):
        Runtime.from_settings(RuntimeSettings(device="cpu", compile=True), 0)
    assert not Runtime.from_settings(RuntimeSettings(device="cpu"), 0).compiled


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_without_a_device_is_one_sentence_with_a_hint(name):
    with pytest.raises(InputError, match=f"--device {name}: no CUDA device is available here; use --device cpu"):
        Runtime.from_settings(RuntimeSettings(device=name), 0)


def test_converting_images_to_the_unit_range_and_back_is_lossless():
    images = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit_range(images)), images)
    assert to_uint8(torch.tensor([-1.0, 2.0])).tolist() == [0, 255]


def test_freezing_a_network_restores_every_part():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    network.train()
    network[1].eval()
    network[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="inside"), frozen(network):
        assert not any(part.training for part in network.modules())
        assert not any(p.requires_grad for p in network.parameters())
        raise ValueError("inside")
    assert [part.training for part in network] == [True, False, True]
    assert [p.requires_grad for p in network.parameters()] == [True, False, True, True]


def test_one_process_uses_nothing_of_torch_distributed(runtime):
    batch = torch.arange(6.0).view(3, 2)
    assert runtime.share(batch) is batch
    assert [each is batch for each in runtime.whole(batch, batch)] == [True, True]
    assert runtime.own_rows(batch) is batch
    assert runtime.all_rows(batch, 3) is batch
    assert [each is batch for each in runtime.whole_moments(batch, batch)] == [True, True]
    assert isinstance(runtime.whole_batch_layers(), nullcontext)
    check = "import sys; import gapssg.training.distill, gapssg.training.pretrain_teacher, gapssg.evaluation.evaluate; "
    check += "sys.exit('gapssg.core.processes' in sys.modules or sys.modules['torch'].distributed.is_initialized())"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
