"""Targets: what is known parses to what it means, all else is one clear line."""

import pytest

from multimodal.errors import UserError
from multimodal.planning.targets import parse_target


@pytest.mark.parametrize(
    "text, platform, devices, topology",
    [
        ("tpu:v5e:16x16", "tpu", 256, "v5e:16x16"),
        ("TPU:v5e:16x16@2", "tpu", 512, "v5e:16x16"),
        ("tpu:v4:2x2x1", "tpu", 4, "v4:2x2x1"),
        ("tpu:v5p:8x8x8", "tpu", 512, "v5p:8x8x8"),
        ("tpu:v7x:2x2x1", "tpu", 8, "tpu7x:2x2x1"),  # two devices a chip
        ("gpu:h100:8x4", "gpu", 32, None),
        ("cpu", "cpu", 1, None),
    ],
)
def test_known_targets(text, platform, devices, topology):
    target = parse_target(text)
    assert (target.platform, target.devices) == (platform, devices)
    assert topology is None or target.topology == topology
    assert parse_target(target.name) == target


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "is no target"),
        ("tpu", "tpu:v5e:16x16"),
        ("tpu:v5e", "is no target"),
        ("tpu:v5:4x4", "did you mean v5"),
        ("tpu:h100:8x8", "no tpu 'h100'"),
        ("tpu:v5e:4x4x4", "2 axes"),
        ("tpu:v5e:0x4", "1 or more"),
        ("tpu:v5e:32x32", "@SLICES"),
        ("gpu:h100:8x8@2", "only TPUs"),
        ("gpu:h100:8", "hosts x GPUs"),
    ],
)
def test_bad_targets_name_the_known_ones(text, told):
    with pytest.raises(UserError, match=r"--plan.*") as e:
        parse_target(text)
    assert told in str(e.value) and "\n" not in str(e.value)
