// What the CUDA kernels take, which is the arguments of keras_rtrl.h or more, and the functions that launch them. Each
// function returns a cudaError_t.
#ifndef KERAS_RTRL_CUDA_LAUNCH_H_
#define KERAS_RTRL_CUDA_LAUNCH_H_

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime.h>

#define KERAS_RTRL_LEVEL cuda
#include "../cells/scalar.h"
#include "../cells/cells.h"
#include "../typed.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

constexpr KERAS_RTRL_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The trace step: suffix scan, then S = product S0 + sum of driven (x) x from step `begin` of each stream on. The scan
// leaves driven [B, T, G', row] = Q_t a_t, `row` being N m rounded up to whole packs; product [B, N, m, m] = Q_1 J_1;
// begin [B], the last step with a reset, 0 if there is none; and r.
template <class T>
struct TraceStep : keras_rtrl_trace_arguments<T> {
  T *driven = nullptr, *product = nullptr;
  int64_t* begin = nullptr;
  int64_t row = 0;
  bool whole = false;  // S0 and S are read and written by packs
};

// One pass over the traces, S and r: advances them by one step or leaves them, and contracts them with the cotangents.
template <class T>
struct Sweep : keras_rtrl_streaming_update_arguments<T> {
  bool whole = false;  // all arrays of rows [N, m] are read and written by packs
};

template <class Cell, class T>
int forward(const keras_rtrl_forward_arguments<T>& scan, void* stream);
template <class Cell, class T>
int adjoint(const keras_rtrl_adjoint_arguments<T>& scan, void* stream);  // `used` is zeros at first
template <class Cell, class T>
int suffix(const TraceStep<T>& step, void* stream);
template <class Cell, class T>
int streaming_forward(const keras_rtrl_streaming_forward_arguments<T>& step, void* stream);

// What moves traces depends on their shape alone, so cells that store every gate's traces share it by that shape.
template <int G, int m, int P>
struct PlainTraces {
  static constexpr int gates = G, stored = G, components = m, parameters = P;
};
template <bool Plain, class Cell>
struct TracesOf {
  using type = Cell;
};
template <class Cell>
struct TracesOf<true, Cell> {
  using type = PlainTraces<Cell::gates, Cell::components, Cell::parameters>;
};
template <class Cell>
using Traces = typename TracesOf<Cell::stored == Cell::gates, Cell>::type;

// A cell each for the kinds of traces there are.
#define KERAS_RTRL_FOR_EACH_TRACES(DO) \
  DO(Traces<ELSTM>)                    \
  DO(Traces<LinearRTU>)                \
  DO(Traces<NonlinearRTU<Relu>>)

template <class C, class T>
int trace(const TraceStep<T>& step, void* stream);
template <class C, class T>
int advance(const Sweep<T>& sweep, void* stream);
// Adds to d_kernel and d_rho, which `advance` overwrites.
template <class C, class T>
int contract(const Sweep<T>& sweep, void* stream);

template <class Arguments>
int launch(void (*kernel)(Arguments), int64_t blocks, dim3 threads, void* stream, const Arguments& arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = threads;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CUDA_LAUNCH_H_
