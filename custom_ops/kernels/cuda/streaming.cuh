// Streaming: a step of the recurrence with its input product, and the pass over the traces.
#ifndef KERAS_RTRL_CUDA_STREAMING_CUH_
#define KERAS_RTRL_CUDA_STREAMING_CUH_

#include "pack.cuh"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

// A block of 32 units and kStepStreams streams; its warps share out the inputs and add up in a fixed order. W is read
// once for kStepStreams streams.
constexpr int kStepWarps = 16, kStepStreams = 4;

template <class Cell, class T>
__global__ void __launch_bounds__(32 * kStepWarps) streaming_kernel(const keras_rtrl_streaming_forward_arguments<T> p) {
  constexpr int G = Cell::gates, m = Cell::components, P = Cell::parameters;
  __shared__ T sums[kStepWarps][kStepStreams][G][32];
  const int64_t B = p.chunk.batch, D = p.chunk.inputs, N = p.chunk.units, across = ceil_div(N, 32);
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int64_t n = blockIdx.x % across * 32 + lane, b0 = blockIdx.x / across * kStepStreams;

  T sum[kStepStreams][G] = {};
  if (n < N) {
#pragma unroll 8
    for (int64_t d = warp; d < D; d += kStepWarps) {
      T w[G];
#pragma unroll
      for (int g = 0; g < G; ++g) w[g] = p.kernel[(d * G + g) * N + n];
#pragma unroll
      for (int s = 0; s < kStepStreams; ++s) {
        const T x = b0 + s < B ? p.x[(b0 + s) * D + d] : T(0);
#pragma unroll
        for (int g = 0; g < G; ++g) sum[s][g] += x * w[g];
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kStepStreams; ++s)
#pragma unroll
    for (int g = 0; g < G; ++g) sums[warp][s][g][lane] = sum[s][g];
  __syncthreads();

  const int64_t b = b0 + warp;
  if (warp >= kStepStreams || b >= B || n >= N) return;
  T rho[P], c[Cell::coefficients], u[G] = {}, s[m], next[m];
#pragma unroll
  for (int q = 0; q < P; ++q) rho[q] = p.chunk.rho[q][n];
  Cell::prepare(rho, c);
#pragma unroll
  for (int w = 0; w < kStepWarps; ++w)
#pragma unroll
    for (int g = 0; g < G; ++g) u[g] += sums[w][warp][g][lane];
  const bool reset = p.chunk.reset && p.chunk.reset[b];
#pragma unroll
  for (int i = 0; i < m; ++i) s[i] = reset ? T(0) : p.state0[(b * N + n) * m + i];
  Cell::step(s, c, u, next);
  Local<Cell, T> d;
  Cell::local(s, next, u, c, d);
  T* to = p.local + b * (m * m + Cell::stored * m + P * m) * N + n;
#pragma unroll
  for (int i = 0; i < m; ++i) {
    p.state[(b * N + n) * m + i] = next[i];
#pragma unroll
    for (int j = 0; j < m; ++j) to[(i * m + j) * N] = reset ? T(0) : d.J[i][j];
#pragma unroll
    for (int g = 0; g < Cell::stored; ++g) to[(m * m + g * m + i) * N] = d.a[g][i];
#pragma unroll
    for (int q = 0; q < P; ++q) to[(m * m + (Cell::stored + q) * m + i) * N] = d.v[q][i];
  }
}

template <class Cell, class T>
int streaming_forward(const keras_rtrl_streaming_forward_arguments<T>& step, void* stream) {
  return launch(streaming_kernel<Cell, T>, ceil_div(step.chunk.units, 32) * ceil_div(step.chunk.batch, kStepStreams),
                dim3(32, kStepWarps), stream, step);
}

// The pass over the traces. A block owns kSweepRows rows (inputs, or parameters for r) times 32 pieces of one stored
// gate, and loops over the streams: the local derivatives of a stream are read once for all rows, and its warps, which
// share out the streams, add their sums up in a fixed order at the end.
constexpr int kSweepRows = 4, kSweepWarps = 8;

// Whole: a piece is an aligned pack, read and written at once; else it is one unit's m numbers.
template <class C, class T, bool Whole>
constexpr int kPiece = Whole ? kPack<T> : C::components;

// Sums of a block's warps, for K cotangents.
template <class C, class T, int K, bool Whole>
struct SweepSums {
  static constexpr int numbers = kPiece<C, T, Whole> / C::components * kOutputs<C>;  // for one cotangent and row
  T v[(K ? K : 1) * kSweepRows][kSweepWarps][numbers][32];
};

// K is the number of cotangents, or 0 for any: the sums are then kept in d_kernel itself by the one warp there is.
// Unit: the rows are those of r, whose drive is v, instead of those of S, whose drive is a times x.
template <class C, class T, int K, bool Advance, bool Whole, bool Unit>
__device__ __forceinline__ void sweep_rows(const Sweep<T>& p, int64_t row0, int gate, int64_t c,
                                           SweepSums<C, T, K, Whole>& shared) {
  constexpr int W = kPiece<C, T, Whole>, m = C::components, U = W / m, R = kSweepRows, P = C::parameters;
  constexpr int outputs = Unit ? 1 : kOutputs<C>, L = m * m + C::stored * m + P * m;
  constexpr int kHeld = K ? K : 1;
  const int64_t B = p.chunk.batch, D = p.chunk.inputs, N = p.chunk.units, columns = N * m;
  const int64_t n = c / m, stride = Unit ? columns : C::stored * columns;  // from row to row
  const int64_t all_rows = Unit ? P : D;
  const int rows = all_rows - row0 < R ? int(all_rows - row0) : R;
  // Beyond the last row its numbers are read again, and nothing is written: reads without conditions go out at once.
  const auto held = [&](int r) { return r < rows ? r : rows - 1; };
  T* const traces = (Unit ? p.r + c : p.S + gate * columns + c) + row0 * stride;
  T* const out = Unit ? p.d_rho : p.d_kernel;
  const bool present = c < columns;

  // Of cotangent k, row, output and this thread's first unit in `out`.
  const auto index = [&](int64_t k, int r, int o) {
    if constexpr (Unit) return (k * P + row0 + r) * N + n;
    return ((k * D + row0 + r) * C::gates + (outputs == 1 ? gate : o)) * N + n;
  };

  if constexpr (K == 0) {  // without a stream that writes
    for (int64_t k = 0; k < p.K && B == 0 && present; ++k)
      for (int r = 0; r < rows; ++r)
        for (int u = 0; u < U; ++u)
          for (int o = 0; o < outputs; ++o) out[index(k, r, o) + u] = T(0);
  }
  T sums[kHeld][R][U][outputs] = {};
  for (int64_t b = threadIdx.y; b < B && present; b += blockDim.y) {
    // All reads first: the compiler may not move them over the writes to come.
    T* const from = traces + b * all_rows * stride;
    Pack<T, W> S[R], e[kHeld];
    Pack<T, U> J[m][m], a[Unit ? R : 1][m];
    T x[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      S[r] = read<W, Whole>(from + held(r) * stride);
      x[r] = T(1);
      if constexpr (Advance && !Unit) x[r] = p.x[b * D + row0 + held(r)];
    }
    if constexpr (Advance) {
      const T* const local = p.local + b * L * N + n;
      const auto local_row = [&](int64_t i) { return read<U, Whole>(local + i * N); };
#pragma unroll
      for (int i = 0; i < m; ++i) {
#pragma unroll
        for (int j = 0; j < m; ++j) J[i][j] = local_row(i * m + j);
        if constexpr (Unit) {
#pragma unroll
          for (int r = 0; r < R; ++r) a[r][i] = local_row(m * m + (C::stored + row0 + held(r)) * m + i);
        } else {
          a[0][i] = local_row(m * m + gate * m + i);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < K; ++k) e[k] = read<W, Whole>(p.cotangents + (k * B + b) * columns + c);

    if constexpr (Advance) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r >= rows) continue;
        Pack<T, W> next;
#pragma unroll
        for (int u = 0; u < U; ++u)
#pragma unroll
          for (int i = 0; i < m; ++i) {
            next.v[u * m + i] = a[Unit ? r : 0][i].v[u] * x[r];
#pragma unroll
            for (int j = 0; j < m; ++j) next.v[u * m + i] += times(J[i][j].v[u], S[r].v[u * m + j]);
          }
        S[r] = next;
        write<Whole>(from + r * stride, next);
      }
    }
    const auto add = [&](const Pack<T, W>& e, int r, int u, T(&sum)[outputs]) {
      T unit_e[m], unit_S[m];
#pragma unroll
      for (int i = 0; i < m; ++i) unit_e[i] = e.v[u * m + i], unit_S[i] = S[r].v[u * m + i];
      if constexpr (Unit) {
#pragma unroll
        for (int i = 0; i < m; ++i) sum[0] += times(unit_e[i], unit_S[i]);
      } else {
        add_contraction<C>(unit_e, unit_S, sum);
      }
    };
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k)
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int u = 0; u < U; ++u) add(e[k], r, u, sums[k][r][u]);
    } else {
#pragma unroll 1
      for (int64_t k = 0; k < p.K; ++k) {
        e[0] = read<W, Whole>(p.cotangents + (k * B + b) * columns + c);
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int u = 0; u < U; ++u) {
            if (r >= rows) continue;
            T sum[outputs];
#pragma unroll
            for (int o = 0; o < outputs; ++o) sum[o] = b == 0 ? T(0) : out[index(k, r, o) + u];
            add(e[0], r, u, sum);
#pragma unroll
            for (int o = 0; o < outputs; ++o) out[index(k, r, o) + u] = sum[o];
          }
      }
    }
  }
  if constexpr (K > 0) {
    const int lane = threadIdx.x;
#pragma unroll
    for (int i = 0; i < K * R; ++i)
#pragma unroll
      for (int j = 0; j < U * outputs; ++j)
        shared.v[i][threadIdx.y][j][lane] = sums[i / R][i % R][j / outputs][j % outputs];
    __syncthreads();
    for (int i = threadIdx.y; i < K * R; i += blockDim.y) {
      const int k = i / R, r = i % R;
      if (r >= rows || !present) continue;
#pragma unroll
      for (int j = 0; j < U * outputs; ++j) {
        T& to = out[index(k, r, j % outputs) + j / outputs];
        T sum = Advance ? T(0) : to;
        for (unsigned warp = 0; warp < blockDim.y; ++warp) sum += shared.v[i][warp][j][lane];
        to = sum;
      }
    }
  }
}

template <class C, class T, int K, bool Advance, bool Whole>
__global__ void __launch_bounds__(32 * kSweepWarps) sweep_kernel(const Sweep<T> p) {
  __shared__ SweepSums<C, T, K, Whole> shared;
  constexpr int W = kPiece<C, T, Whole>;
  // There are fewer than 2^31 blocks, and divisions of 64 bits are slow.
  const unsigned across = unsigned(ceil_div(p.chunk.units * C::components, 32 * W));
  const unsigned of_S = unsigned(ceil_div(p.chunk.inputs, kSweepRows)) * C::stored * across;
  if (blockIdx.x < of_S) {
    const unsigned row = blockIdx.x / (C::stored * across), strip = blockIdx.x % (C::stored * across);
    const int64_t c = (strip % across * int64_t(32) + threadIdx.x) * W;
    sweep_rows<C, T, K, Advance, Whole, false>(p, row * int64_t(kSweepRows), int(strip / across), c, shared);
  } else {
    const unsigned row = (blockIdx.x - of_S) / across, strip = (blockIdx.x - of_S) % across;
    const int64_t c = (strip * int64_t(32) + threadIdx.x) * W;
    sweep_rows<C, T, K, Advance, Whole, true>(p, row * int64_t(kSweepRows), 0, c, shared);
  }
}

template <class C, class T, int K, bool Advance, bool Whole>
int sweep(const Sweep<T>& sweep, void* stream) {
  const int64_t across = ceil_div(sweep.chunk.units * C::components, 32 * kPiece<C, T, Whole>);
  const int64_t down = ceil_div(sweep.chunk.inputs, kSweepRows) * C::stored + ceil_div(C::parameters, kSweepRows);
  const int64_t streams = sweep.chunk.batch > 0 ? sweep.chunk.batch : 1;  // without any, one warp writes the sums
  const int64_t warps = K == 0 ? 1 : streams < kSweepWarps ? streams : kSweepWarps;
  return launch(sweep_kernel<C, T, K, Advance, Whole>, down * across, dim3(32, unsigned(warps)), stream, sweep);
}

template <class C, class T>
int advance(const Sweep<T>& step, void* stream) {
  if (step.K == 1)
    return step.whole ? sweep<C, T, 1, true, true>(step, stream) : sweep<C, T, 1, true, false>(step, stream);
  if (step.K == 2 && step.whole) return sweep<C, T, 2, true, true>(step, stream);
  return sweep<C, T, 0, true, false>(step, stream);
}

template <class C, class T>
int contract(const Sweep<T>& step, void* stream) {
  return step.whole ? sweep<C, T, 1, false, true>(step, stream) : sweep<C, T, 1, false, false>(step, stream);
}

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CUDA_STREAMING_CUH_
