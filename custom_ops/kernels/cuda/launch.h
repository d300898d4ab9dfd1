// What the CUDA kernels take, one struct a kernel, and the functions that launch them. Names and shapes as in
// keras_rtrl.h. Each function returns a cudaError_t.
#ifndef KERAS_RTRL_CUDA_LAUNCH_H_
#define KERAS_RTRL_CUDA_LAUNCH_H_

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime.h>

#define KERAS_RTRL_LEVEL cuda
#include "../cells/scalar.h"
#include "../cells/cells.h"
#include "../keras_rtrl.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

constexpr int kMaxComponents = 2, kMaxParameters = 4;

constexpr KERAS_RTRL_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// keras_rtrl_chunk as a kernel can take it.
template <class T>
struct Chunk {
  int64_t batch, time, inputs, units;
  const T* rho[kMaxParameters];
  const uint8_t *reset, *mask;
};

template <class T>
struct ForwardScan {
  Chunk<T> chunk;
  const T *state0, *u;
  T* saved;
  T* states[kMaxComponents];
};

template <class T>
struct AdjointScan {
  Chunk<T> chunk;
  const T *state0, *saved;
  const T* states[kMaxComponents];
  const T* cotangents[kMaxComponents];
  bool instant;
  T *du, *d_rho, *start;
  uint8_t* used;  // zeros at first
};

// The suffix scan of the trace step: driven [B, T, G', row] = Q_t a_t, `row` being N m rounded up to whole packs;
// product [B, N, m, m] = Q_1 J_1; r; and begin [B], the last step with a reset, 0 if there is none.
template <class T>
struct SuffixScan {
  Chunk<T> chunk;
  const T *state0, *saved;
  const T* states[kMaxComponents];
  const T* r0;
  int64_t row;
  T *driven, *product, *r;
  int64_t* begin;
};

// S = product S0 + sum of driven (x) x from step `begin` of each stream on.
template <class T>
struct TraceStep {
  Chunk<T> chunk;
  const T *x, *driven, *product, *S0;
  const int64_t* begin;
  int64_t row;
  bool whole;  // S0 and S are read and written by packs
  T* S;
};

// One pass over the traces, S and r: advances them by one step or leaves them, and contracts them with K cotangents
// [K, B, N, m] to d_kernel [K, D, G, N] and d_rho [K, P, N]. `S_rows` is D, or 0 to pass over r alone.
template <class T>
struct Sweep {
  Chunk<T> chunk;
  int64_t S_rows, K;
  bool whole;
  const T *x, *local, *cotangents;
  T *S, *r, *d_kernel, *d_rho;
};

template <class T>
struct StreamingStep {
  Chunk<T> chunk;
  const T *x, *kernel, *state0;
  T *state, *local;
};

template <class Cell, class T>
int forward(const ForwardScan<T>& scan, void* stream);
template <class Cell, class T>
int adjoint(const AdjointScan<T>& scan, void* stream);
template <class Cell, class T>
int suffix(const SuffixScan<T>& scan, void* stream);
template <class Cell, class T>
int streaming_forward(const StreamingStep<T>& step, void* stream);

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
