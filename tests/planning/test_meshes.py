"""Plans on meshes with more than data and fsdp, and of steps in micro-batches."""

import jax
import pytest

from multimodal.config import load_config
from multimodal.errors import UserError
from multimodal.planning import advice, memory, predict
from multimodal.planning.compiling import lower_for
from multimodal.planning.plan import make_plan, write_plan
from multimodal.planning.report import render
from multimodal.planning.targets import parse_target
from multimodal.training import flops
from multimodal.training.sharding import abstract_mesh, axes_of, check_batch
from multimodal.training.validate import validate

KERNELS = ("plain", "blockwise", "auto")
TENSOR = "mesh.rules=(('.*/mlp/up/kernel',(None,None,'tensor')),)"


def config(*overrides, spec="configs/clip.py:smoke"):
    return load_config(spec, overrides)


@pytest.mark.parametrize(
    "target, mesh",
    [
        ("gpu:h100:8x8", ("mesh.replica=2",)),
        ("gpu:h100:8x8", ("mesh.tensor=2", TENSOR)),
        ("gpu:h100:2x8", ("mesh.replica=2", "mesh.fsdp=2", "mesh.tensor=4", TENSOR)),
    ],
)
def test_any_mesh_is_planned_and_told(target, mesh):
    plan = make_plan(config("batch_size=256", *mesh), target, 1)
    head = render(plan).splitlines()[0]
    sizes = {part.partition("=")[0] for part in mesh if part[-1].isdigit()}
    assert all(f"{key.partition('.')[2]} " in head for key in sizes), head
    assert plan["time"]["bound"] > 0


def test_data_may_be_given_on_several_slices():
    target = parse_target("tpu:v5e:4x4@2")
    given = config("batch_size=256", "mesh.data=16")
    found = memory.state_bytes(given, target.devices, target.slices)
    assert found == memory.state_bytes(config("batch_size=256"), target.devices, target.slices)


@pytest.mark.parametrize(
    "target, size, more",
    [
        ("tpu:v5e:4x4", 256, ("mesh.replica=4",)),
        ("tpu:v5e:4x4@2", 256, ()),
        ("tpu:v5e:4x4", 8, ("mesh.tensor=2", TENSOR)),
        ("gpu:h100:1x8", 1000, ()),
        ("gpu:h100:1x6", 36, ("micro_batches=2",)),
        ("gpu:h100:1x1", 2187, ("micro_batches=9",)),
    ],
)
def test_every_candidate_is_a_mesh_and_divides_the_batch(target, size, more):
    c, target = config(f"batch_size={size}", *more), parse_target(target)
    found = advice.candidates(c, target)
    for change in found:
        other = advice.changed(c, change)
        mesh = abstract_mesh(target.devices, target.slices, **axes_of(other))
        check_batch(size, mesh, other.micro_batches)
    devices = target.devices // c.mesh.tensor
    if size > devices * c.micro_batches:  # down to one example of a device at a time
        assert max(x.get("micro_batches", 0) for x in found) == size // devices


def test_gradients_between_hosts_go_over_a_gpus_own_share_of_the_network():
    target = parse_target("gpu:h100:8x8")
    one = config("batch_size=256", "mesh.fsdp=8")
    reduce = predict.data_parallel_exchanges(one, target, 8e9)[-1]
    assert (reduce.kind, reduce.group, reduce.stride) == ("all-reduce", 8, 8)
    assert predict.network_seconds(target, [reduce]) == pytest.approx(
        reduce.bytes / target.chip.network
    )
    plain = predict.data_parallel_exchanges(config("batch_size=256"), target, 8e9)[-1]
    seconds = predict.network_seconds(target, [plain])
    assert seconds == pytest.approx(plain.bytes / (8 * target.chip.network))


EMOJI = pytest.param("configs/emoji.py:smoke", marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["configs/clip.py:smoke", EMOJI])
@pytest.mark.parametrize("k", [1, 64])
def test_micro_batches_keep_what_goes_in_and_out_of_them(spec, k):
    """Within a factor of what XLA allots; without it the estimate was a hundredth."""
    c = config("batch_size=1024", f"micro_batches={k}", spec=spec)
    found = memory.estimate(c, 1).kinds
    compiled = lower_for(c, jax.devices()[:1]).compile().memory_analysis().temp_size_in_bytes
    assert 0.4 < (found["activations"] + found["gradients"]) / compiled < 2.5


def test_a_linear_probe_keeps_little():
    """Of what XLA allots; without freezing it is four times as much."""
    c = config("init.freeze=True", spec="configs/esc10.py")
    compiled = lower_for(c, jax.devices()[:1]).compile().memory_analysis().temp_size_in_bytes
    kinds = memory.estimate(c, 1).kinds
    assert kinds["gradients"] == 0 and kinds["activations"] < 2 * compiled


@pytest.mark.parametrize("spec", ["configs/clip.py:smoke", EMOJI])
def test_model_flops_do_not_depend_on_the_loss_kernel(spec):
    found = {
        flops.of_step(config(f"objectives.contrastive.kernel={k}", spec=spec)) for k in KERNELS
    }
    assert len(found) == 1


def test_an_objective_of_ones_own_is_planned():
    assert make_plan(config(spec="tests/faulty.py"), "gpu:h100:1x1", 1)["fits"]


@pytest.mark.slow
def test_the_roofline_counts_every_micro_batch():
    plans = [
        make_plan(config("batch_size=1000", f"micro_batches={k}"), "gpu:h100:1x8", 1)
        for k in (1, 25)
    ]
    one, many = (p["time"]["roofline"]["memory"] for p in plans)
    assert many >= one


def test_an_attention_kernel_is_for_its_platform():
    plan = make_plan(config("model.attention_kernel=cudnn"), "gpu:h100:1x1", 1)
    assert plan["fits"]
    with pytest.raises(UserError, match="'flash' runs on a tpu, the target is gpu:h100:1x1"):
        make_plan(config("model.attention_kernel=flash"), "gpu:h100:1x1", 1)


@pytest.mark.parametrize(
    "rules, told",
    [
        ("('.*/mlp/up/kernel', ('fsdp','tensor'))", "no pair"),
        ("('a',)", "no pair"),
        ("foo", "give"),
        ("(('(', ('fsdp',)),)", "no regular expression"),
        ("(('.*/mlp/up/kernel',('model',)),)", "no axis 'model'; known: replica"),
        ("(('.*/mlp/up/kernel','fsdp'),)", "no pair"),
        ("(('.*/mlp/up/kernel',('fsdp','fsdp')),)", "twice"),
    ],
)
def test_bad_rules_are_one_line(rules, told):
    with pytest.raises(UserError, match="config.mesh.rules") as e:
        validate(config(f"mesh.rules={rules}"))
    assert told in str(e.value)


@pytest.mark.parametrize(
    "rule", ["('.*temperature',('fsdp',))", "('.*/query/kernel',(None,None,None,'fsdp'))"]
)
def test_a_rule_that_does_not_divide_its_array_is_one_line(rule):
    c = config("batch_size=512", "mesh.fsdp=64", f"mesh.rules=({rule},)")
    with pytest.raises(UserError, match="does not divide"):
        make_plan(c, "gpu:h100:8x64", 1)


def test_a_plan_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_plan({"a": 1}, tmp_path / "folder")
    with pytest.raises(UserError, match="--plan_json must lie on a local disk"):
        write_plan({"a": 1}, "gs://bucket/plan.json")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
