"""float32 is float32 wherever it is asked for, and nothing that a stage switches outlasts it."""

import warnings

import pytest
import torch
from tiny_training import TinyTask, train
from torch.nn.modules.module import register_module_forward_pre_hook

from physion.training import engine
from physion.training.precision import arithmetic

TRAININGS = ["train-dvae", "train-steve", "train-slotformer", "train-readout-observed-0"]
BULK = ["tokenize", "extract-slots-test", "rollout-test"]
INFERENCE = [*BULK, "evaluate"]


def switches():
    """Whether products and convolutions of float32 may be computed as TF32, and the number of CPU threads."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    products, convolutions = cuda.fp32_precision == "tf32", cudnn.conv.fp32_precision == "tf32"
    # torch's older switches say the same; they raise if it has been told by way of the newer ones.
    assert (torch.get_float32_matmul_precision() != "highest", cudnn.allow_tf32) == (products, convolutions)
    return products, convolutions, torch.get_num_threads()


@pytest.fixture
def left_behind():
    """What torch is set to before a test: what a training in bf16 once left it to."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_num_threads()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.set_num_threads(2)
    yield True, True, 2
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.set_num_threads(before[2])


@pytest.fixture
def seen():
    """What the switches were in the forward passes of all modules."""
    found = set()
    handle = register_module_forward_pre_hook(lambda *_: found.add(switches()))
    yield found
    handle.remove()


def test_switches_inside_and_after(left_behind):
    torch.set_warn_always(True)  # not only once a process
    with warnings.catch_warnings(action="error"), arithmetic(torch.float32):
        assert switches() == (False, False, 2)
        for precision in (torch.bfloat16, torch.float16):
            with arithmetic(precision, threads=1):
                assert switches() == (True, True, 1)
            assert switches() == (False, False, 2)
        with pytest.raises(KeyError), arithmetic(torch.bfloat16):
            raise KeyError
        assert switches() == (False, False, 2)
    torch.set_warn_always(False)
    assert switches() == left_behind


@pytest.mark.parametrize("stage", TRAININGS + INFERENCE)
def test_every_stage_with_a_model(physion, preset, store, stage, left_behind, seen):
    """On a CPU trainings are in float32, too; on a GPU they are in bf16 unless they are told otherwise, and measure in it.

    Bulk stages have one thread: their bits do not depend on how many cores there are.
    """
    assert physion("stage", stage, "--force", "-p", preset, "-s", store).code == 0
    mixed, threads = torch.cuda.is_available() and stage in TRAININGS, 1 if stage in BULK else 2
    assert (mixed, mixed, threads) in seen
    assert mixed or seen == {(False, False, threads)}
    assert switches() == left_behind


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_training_as_on_a_gpu(tmp_path, monkeypatch, seen, precision):
    monkeypatch.setattr(engine, "_precision", lambda wanted, where: precision)
    mixed, autocast = precision == torch.bfloat16, set()
    task = TinyTask(at_step=lambda _: autocast.add(torch.is_autocast_enabled("cpu")))
    with arithmetic(torch.float32 if mixed else torch.bfloat16, threads=2):
        train(tmp_path, threads=1, task=task)
        assert switches() == (not mixed, not mixed, 2)
    assert autocast == {mixed}
    assert seen == {(mixed, mixed, 1)}
    assert not torch.is_autocast_enabled("cpu")
