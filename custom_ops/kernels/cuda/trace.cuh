// The chunk trace step, S = (Q_1 J_1) S0 + x' (Q a): for each stream a product of x' [D, T] and driven [T, G' N m], in
// plain arithmetic of the traces' type, that starts from the old traces times their factor instead of zeros.
//
// A block of four warps makes a tile of S. A thread holds kRows x (2 packs) of it; x and driven go through shared
// memory kDepth steps at a time, the next ones on their way while these are used. A warp whose rows all lie beyond D
// computes nothing: D is often one or two more than a power of two.
#ifndef KERAS_RTRL_CUDA_TRACE_CUH_
#define KERAS_RTRL_CUDA_TRACE_CUH_

#include "pack.cuh"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

constexpr int kTraceThreads = 128, kDepth = 8;

// A tile: 4 warps x 2 half-warps x Rows rows, 16 threads x 2 packs columns of one stored gate.
template <class T, int Rows>
struct Tile {
  static constexpr int rows = 8 * Rows, columns = 32 * kPack<T>;
};
constexpr int kTraceRows = 8;

template <class C, class T, int Rows>
int64_t tiles(int64_t inputs, int64_t units) {
  using Tile = Tile<T, Rows>;
  return ceil_div(inputs, Tile::rows) * C::stored * ceil_div(units * C::components, Tile::columns);
}

__device__ __forceinline__ int64_t smaller(int64_t a, int64_t b) { return b < a ? b : a; }

template <class C, class T, int Rows>
__global__ void __launch_bounds__(kTraceThreads, sizeof(T) == 4 ? 3 : 2) trace_kernel(const TraceStep<T> p) {
  using Tile = Tile<T, Rows>;
  constexpr int W = kPack<T>, m = C::components, U = W / m;
  // Reads of a thread for kDepth steps; one read of all threads covers kDepth / kLoads steps.
  constexpr int kLoadsX = kDepth * Tile::rows / kTraceThreads, kLoadsDriven = kDepth * 32 / kTraceThreads;
  alignas(16) __shared__ T x_tile[2][kDepth][Tile::rows];
  alignas(16) __shared__ T driven_tile[2][kDepth][Tile::columns];

  const int64_t D = p.chunk.inputs, N = p.chunk.units, time = p.chunk.time, columns = N * m;
  // There are fewer than 2^31 blocks, and divisions of 64 bits are slow.
  const unsigned across = unsigned(ceil_div(columns, Tile::columns)), down = unsigned(ceil_div(D, Tile::rows));
  const unsigned tile = blockIdx.x / (C::stored * across), strip = blockIdx.x % (C::stored * across);
  const int64_t b = tile / down, d0 = tile % down * int64_t(Tile::rows);
  const int64_t gate = strip / across, c0 = strip % across * int64_t(Tile::columns);

  const int thread = threadIdx.x, warp = thread / 32, tx = thread % 16;
  const int row = (warp * 2 + thread % 32 / 16) * Rows;  // of the tile, this thread's first
  const bool active = d0 + warp * 2 * Rows < D;

  // Of the next steps' x and driven. Reads beyond an end are of the last one there, so that none has a condition;
  // steps beyond the end count as zeros.
  const int64_t begin = p.begin[b];  // what was before is cut off
  T x_next[kLoadsX];
  Pack<T, W> driven_next[kLoadsDriven];
  const int x_step = thread / Tile::rows, driven_step = thread / 32;
  const T* const x_from = p.x + b * time * D + smaller(d0 + thread % Tile::rows, D - 1);
  const T* const driven_from =
      p.driven + (b * time * C::stored + gate) * p.row + smaller(c0 + thread % 32 * W, p.row - W);
  const auto fetch = [&](int64_t t0) {
    if (time == 0) return;
#pragma unroll
    for (int i = 0; i < kLoadsX; ++i)
      x_next[i] = x_from[smaller(t0 + x_step + i * (kDepth / kLoadsX), time - 1) * D];
#pragma unroll
    for (int i = 0; i < kLoadsDriven; ++i)
      driven_next[i] = read<W, true>(
          driven_from + smaller(t0 + driven_step + i * (kDepth / kLoadsDriven), time - 1) * C::stored * p.row);
  };
  const auto put = [&](int64_t t0, int buffer) {
#pragma unroll
    for (int i = 0; i < kLoadsX; ++i)
      (&x_tile[buffer][0][0])[thread + i * kTraceThreads] =
          t0 + x_step + i * (kDepth / kLoadsX) < time ? x_next[i] : T(0);
#pragma unroll
    for (int i = 0; i < kLoadsDriven; ++i)
      reinterpret_cast<Pack<T, W>*>(&driven_tile[buffer][0][0])[thread + i * kTraceThreads] =
          t0 + driven_step + i * (kDepth / kLoadsDriven) < time ? driven_next[i] : Pack<T, W>{};
  };
  fetch(begin);

  // The old traces, multiplied by their factor. Half a tile's reads go out at once.
  Pack<T, W> tile_sum[Rows][2] = {};
  const T* const from = p.S0 + (b * D * C::stored + gate) * columns;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t c = c0 + (h * 16 + tx) * W, left = columns - c;
    if (!p.S0 || left <= 0) continue;
#pragma unroll
    for (int r = 0; r < Rows; ++r)
      tile_sum[r][h] = load<W>(from + smaller(d0 + row + r, D - 1) * C::stored * columns + c, left, p.whole);
    // Its U = W / m units have W m factors.
    T factor[U][m][m];
#pragma unroll
    for (int i = 0; i < m; ++i) {
      const Pack<T, W> pack = load<W>(p.product + (b * columns + c) * m + i * W, left * m - i * W, p.whole);
#pragma unroll
      for (int j = 0; j < W; ++j) factor[(i * W + j) / (m * m)][(i * W + j) / m % m][j % m] = pack.v[j];
    }
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const Pack<T, W> old = tile_sum[r][h];
#pragma unroll
      for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int i = 0; i < m; ++i) {
          T sum = T(0);
#pragma unroll
          for (int j = 0; j < m; ++j) sum += times(factor[u][i][j], old.v[u * m + j]);
          tile_sum[r][h].v[u * m + i] = sum;
        }
      }
    }
  }

  put(begin, 0);
  __syncthreads();
  int buffer = 0;
  for (int64_t t0 = begin; t0 < time; t0 += kDepth) {
    const bool more = t0 + kDepth < time;
    if (more) fetch(t0 + kDepth);
    if (active) {
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
        Pack<T, W> x_k[Rows / W], driven_k[2];
#pragma unroll
        for (int i = 0; i < Rows / W; ++i) x_k[i] = read<W, true>(&x_tile[buffer][k][row + i * W]);
#pragma unroll
        for (int h = 0; h < 2; ++h) driven_k[h] = read<W, true>(&driven_tile[buffer][k][(h * 16 + tx) * W]);
#pragma unroll
        for (int r = 0; r < Rows; ++r)
#pragma unroll
          for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int i = 0; i < W; ++i) tile_sum[r][h].v[i] += x_k[r / W].v[r % W] * driven_k[h].v[i];
      }
    }
    if (more) put(t0 + kDepth, buffer ^ 1);
    __syncthreads();
    buffer ^= 1;
  }

#pragma unroll
  for (int r = 0; r < Rows; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t d = d0 + row + r, c = c0 + (h * 16 + tx) * W;
      if (d >= D || c >= columns) continue;
      store<W>(p.S + ((b * D + d) * C::stored + gate) * columns + c, tile_sum[r][h], columns - c, p.whole);
    }
}

template <class C, class T>
int trace(const TraceStep<T>& step, void* stream) {
  const int64_t blocks = tiles<C, T, kTraceRows>(step.chunk.inputs, step.chunk.units) * step.chunk.batch;
  return launch(trace_kernel<C, T, kTraceRows>, blocks, kTraceThreads, stream, step);
}

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CUDA_TRACE_CUH_
