"""XLA's options by platform, in one place: what train.py compiles with and --plan plans with."""

import dataclasses
import os


@dataclasses.dataclass(frozen=True)
class Flag:
    """One compiler option.

    Attributes:
      name, value: as XLA takes them; chips: which it is for, names of chips.py; (): all.
      why: what it is good for; source: where that is known from.
    """

    name: str
    value: str
    chips: tuple[str, ...]
    why: str
    source: str


FLAGS = {
    "tpu": (
        Flag(
            "xla_tpu_scoped_vmem_limit_kib",
            "98304",
            ("v5e", "v6e"),
            "larger tiles of fused matrix products, so fewer passes over HBM; these chips have "
            "128 MiB of VMEM",
            "MaxText, benchmarks/xla_flags_library.py, DENSE_VMEM_LIMIT_FLAG",
        ),
        Flag(
            "xla_jf_spmd_threshold_for_windowed_einsum_mib",
            "1000000",
            (),
            "weights of mesh.fsdp are gathered, then multiplied: the default cuts each product "
            "into a ring of small ones, which took 1.4 times the time of ViT-L/14's step by the "
            "compiler's own estimate, and longer to compile",
            "MaxText, benchmarks/xla_flags_library.py, DISABLE_COLLECTIVE_MATMUL",
        ),
    ),
    "gpu": (
        Flag(
            "xla_gpu_enable_latency_hiding_scheduler",
            "True",
            (),
            "exchanges between GPUs run beside computation; XLA's default is still false",
            "JAX, docs/gpu_performance_tips.md, and NVIDIA's JAX image, which sets it alone",
        ),
        Flag(
            "xla_gpu_enable_cublaslt",
            "True",
            (),
            "cuBLASLt's products add their bias themselves: else it is one more pass over memory",
            "programs compiled with and without it for an H100: docs/performance.md, On a GPU",
        ),
        Flag(
            "xla_gpu_enable_triton_gemm",
            "False",
            (),
            "products that Triton might take are cut from their bias before the autotuner gives "
            "them to cuBLAS after all, as it did nearly all of CLIP's on an H200",
            "the same, and a profile on an H200; what it gains by itself was not measured",
        ),
    ),
    "cpu": (),
}


def compiler_options(platform: str, chip: str = "") -> dict[str, str]:
    """{option: value} for jit(...).lower(...).compile(compiler_options=...).

    What the environment's XLA_FLAGS or LIBTPU_INIT_ARGS set is left to them.
    """
    words = " ".join(os.environ.get(k, "") for k in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")).split()
    own = {word.lstrip("-").split("=")[0] for word in words}
    flags = [f for f in FLAGS.get(platform, ()) if not f.chips or chip in f.chips]
    return {f.name: f.value for f in flags if f.name not in own}
