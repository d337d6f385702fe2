import pytest

from cbm.data.store import IN_MEMORY
from cbm.errors import UserError
from cbm.kernels import choose_plan
from cbm.methods.planning import HARDWARE, Hardware, Job, plan, read_job

SLOW = Hardware("slow", 1e9, 1e9, 1e9, 8e9, "made up")


def test_the_sizes_of_imagenet_by_hand():
    encode, features, select, moments, train, evaluate = plan(
        Job(1_281_167, 50_000, D=512, C=1000, candidates=100_000, passes=3), SLOW
    )
    assert encode.disk == 1_281_167 * 512 * 2
    assert features.memory == 0  # mapped: 2.6 GB of float32 are over the limit
    assert features.disk == 1_281_167 * 512 * 2
    assert select.flop == 2 * 100_000 * 1000 * 512 + 1000 * 101**2 * 512 * 2
    assert moments.flop == 2 * 512**2 * (1_281_167 + 50_000)
    assert "237 steps of 16,384, reassociated, Adam in tiles" in train.how
    assert train.flop == 237 * 4 * 512 * 1000 * (16_384 + 50_000)
    assert train.seconds == pytest.approx(train.flop / 1e9)
    assert train.memory == 12 * 50_000 * 1000 + 12 * 16_384 * 1000 + 4 * 50_000 * 512
    assert evaluate.memory < 1e9


def test_small_runs_stay_in_memory_and_follow_the_cost_model():
    _, features, *_, train, _ = plan(Job(2000, 100, D=512, C=100, passes=1), SLOW)
    assert features.memory == 2000 * 512 * 4 <= IN_MEMORY
    assert choose_plan(2000, 100, 512, 100) in train.how
    assert "Adam in tiles" not in train.how
    few = plan(Job(1_281_167, 50_000, shots=16), SLOW)
    assert "16,000 pictures in memory" in few[1].how
    assert few[0].flop == plan(Job(1_281_167, 50_000), SLOW)[0].flop  # every picture is encoded, once


def test_what_is_typed():
    assert read_job(["N=1_000", "K=50", "shots=all", "hardware=h200"]) == (Job(1000, 50), "h200")
    assert "h200" in HARDWARE
    for typed, message in (
        (["N=10", "K=5", "clases=3"], "'clases=3': expected NAME=NUMBER"),
        (["N=10", "K=many"], "K=many: expected a whole number"),
        (["N=10"], "'K' is needed"),
        (["N=10", "K=5", "hardware=h300"], "hardware=h300: did you mean"),
        (["N=10", "K=5", "encoder=vit_b31"], "encoder=vit_b31: did you mean"),
    ):
        with pytest.raises(UserError, match=message):
            read_job(typed)


def test_the_command(module):
    status, printed, errors = module("plan", "N=1281167", "K=50000", "hardware=h200")
    assert status == 0, errors
    assert "train the head" in printed
    assert "128.1 GB in half precision, are never made" in " ".join(printed.split())
    status, printed, _ = module("plan", "N=1000", "K=100", "C=10")
    assert status == 0
    assert "measured now" in printed
    status, _, errors = module("plan", "N=1000000", "K=9000000", "C=21000", "hardware=a100")
    assert status == 2
    assert "this needs" in errors


def test_a_dictionary():
    encode, features, train, codes, head, _ = plan(
        Job(1_281_167, 6144, D=768, method="discovered", k=32, encoder="vit_l14"), SLOW
    )
    steps = -(-1_281_167 // 4096) * 50
    assert f"{steps:,} steps of 4,096, 32 units an image" in train.how
    assert train.flop >= 2 * steps * 2 * 4096 * 6144 * 768
    assert train.flop < 1.5 * 2 * steps * 2 * 4096 * 6144 * 768  # what touches few units is little
    assert 2 * 150e6 < train.memory < 1e9  # two dictionaries; the features stay on disk
    assert codes.memory == 12 * 1_281_167 * 32
    assert head.memory < 1e9
    assert encode.flop > 0
    assert features.disk == 1_281_167 * 768 * 2
    once = plan(Job(1_281_167, 6144, D=768, method="discovered", k=32, seeds=1), SLOW)[2]
    assert once.flop == train.flop / 2


def test_a_dictionary_by_command(module):
    status, printed, _ = module("plan", "N=100000", "K=4096", "method=discovered", "k=32", "hardware=h100")
    assert status == 0
    assert "train 2 dictionaries" in printed
    status, _, errors = module("plan", "N=1000", "K=100", "method=discover")
    assert status != 0
    assert "method=discover: did you mean 'discovered'" in errors
