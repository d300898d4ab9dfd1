"""Builds the CUDA kernels, checks them against float64 numpy and times them on the GPU present.

Needs numpy, a CUDA driver, and nvcc or a library built elsewhere, but no TensorFlow. Uses cuBLAS and JAX if found.

    python -m benchmarks.gpu --out gpu.json
"""

import argparse
import os
import platform
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, write_json
from benchmarks.gpu import jax_steps, timings
from custom_ops.kernels.test import checks
from custom_ops.kernels.test.device import CudaDevice
from custom_ops.kernels.test.kernels import BuildError, HostMemory, Kernels, build_cpu, build_cuda

BUILD = ROOT / "build" / "gpu"


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="kernels built elsewhere; default: build them, in build/gpu")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    parser.add_argument("--cpu", action="store_true", help="check the CPU kernels instead, and time nothing")
    options = parser.parse_args()
    if options.library and not options.library.is_file():
        parser.error(f"argument --library: there is no file {options.library}")

    # cuBLAS in plain float32, for any environment variables.
    os.environ.update(NVIDIA_TF32_OVERRIDE="0", CUBLAS_EMULATE_SINGLE_PRECISION="0")
    try:
        kernels, results = load(options)
    except (OSError, BuildError) as error:
        raise SystemExit(f"error: {error}") from None

    try:
        passed = checks.run(kernels, results.setdefault("checks", []))
        if not options.cpu:
            run_timings(kernels, results)
    finally:  # keeps the results so far, also after an error
        if options.out:
            write_json(options.out, results)
    return not passed


def load(options):
    """The kernels to check, and what is known of them and of the machine."""
    results = {"numpy": np.__version__, "machine": platform.machine()}
    if options.cpu:
        library = options.library or build_cpu(BUILD)
        return Kernels(library.resolve(), HostMemory(), cuda=False), results
    device = CudaDevice()
    library = options.library or build_cuda(BUILD, device.capability)
    kernels = Kernels(library.resolve(), device, cuda=True)
    results["device"] = device.describe()
    results["kernels"] = {"architectures": kernels.architectures(), "cuda_version": kernels.cuda_version()}
    print("{name}, compute capability {compute_capability}".format(**results["device"]))
    print(f"kernels for {kernels.architectures()}, CUDA {kernels.cuda_version()}")
    return kernels, results


def run_timings(kernels, results):
    """Times everything; JAX last."""
    results["chunk"] = timings.chunk(kernels)
    results["streaming"] = timings.streaming(kernels)
    print_timings(results)
    jax = jax_steps.load()
    if jax is None:
        results["jax"] = {"missing": "no JAX with a GPU"}
        print("\nno JAX with a GPU to compare with")
        return
    results["jax"] = found = timings.jax_step_by_step(jax)
    print(f"\nJAX {found['version']}, step by step; median us")
    for name, label in (("chunk", "chunk"), ("streaming", "streaming step")):
        print(f"  {label:20}{found[name]['median'] * 1e6:10.1f}")


def print_timings(results):
    chunk = results["chunk"]
    print(f"\nChunk, {chunk['cell']}, {chunk['shape']}, traces of {chunk['trace_bytes'] / 1e6:.1f} MB; median us")
    for name, value in chunk.items():
        if isinstance(value, dict) and "median" in value:
            print(f"  {name:20}{value['median'] * 1e6:10.1f}")
    for name, ratio in chunk.get("over_product_and_copy", {}).items():
        print(f"  {name} / (cuBLAS + one read and one write of S): {ratio:.2f}")
    print("\nStreaming update: rate as 2 |S| bytes, compared with copying |S|")
    for stream in results["streaming"]:
        shape = ", ".join(f"{name} {value}" for name, value in stream["shape"].items())
        rates = f"{stream['bytes_per_second'] / 1e9:8.0f} GB/s of {stream['copy']['bytes_per_second'] / 1e9:.0f}"
        size = f"{stream['trace_bytes'] / 2**20:6.0f} MiB"
        text = f"  {stream['cell']:12}{shape:32}{size}{rates}: {stream['share_of_copy']:.0%}"
        times = f"update {stream['update']['median'] * 1e6:.1f} us, forward {stream['forward']['median'] * 1e6:.1f} us"
        print(f"{text}; {times}")


if __name__ == "__main__":
    sys.exit(main())
