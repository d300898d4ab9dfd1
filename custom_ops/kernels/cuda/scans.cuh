// The scans over time, a thread for each unit of each stream, neighbouring threads on neighbouring units.
//
// A scan waits for memory at every step if it reads as it goes. So each thread first copies the next steps' numbers
// into its own column of shared memory, with all reads under way at once, then computes these steps.
#ifndef KERAS_RTRL_CUDA_SCANS_CUH_
#define KERAS_RTRL_CUDA_SCANS_CUH_

#include "launch.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

constexpr int kScanThreads = 64;
template <class T>
constexpr int kAhead = 64 / sizeof(T);  // steps copied ahead

enum : unsigned char { kKeepState = 1, kTakeInput = 2 };  // neither a reset nor masked

template <class T>
__device__ __forceinline__ unsigned char step_flags(const Chunk<T>& chunk, int64_t step) {
  const bool reset = chunk.reset && chunk.reset[step], masked = chunk.mask && !chunk.mask[step];
  return (reset ? 0 : kKeepState) | (masked ? 0 : kTakeInput);
}

template <class Cell, class T>
__device__ __forceinline__ void unit_coefficients(const Chunk<T>& chunk, int64_t n, T (&c)[Cell::coefficients]) {
  T rho[Cell::parameters];
#pragma unroll
  for (int p = 0; p < Cell::parameters; ++p) rho[p] = chunk.rho[p][n];
  Cell::prepare(rho, c);
}

template <class Cell, class T>
__global__ void __launch_bounds__(kScanThreads) forward_kernel(const ForwardScan<T> p) {
  constexpr int G = Cell::gates, m = Cell::components, A = kAhead<T>;
  __shared__ T ahead[A][G][kScanThreads];
  __shared__ unsigned char flags[A][kScanThreads];
  const int64_t N = p.chunk.units, time = p.chunk.time;
  const int64_t item = blockIdx.x * int64_t(kScanThreads) + threadIdx.x;
  if (item >= p.chunk.batch * N) return;
  const int lane = threadIdx.x;
  const int64_t b = item / N, n = item - b * N;

  T c[Cell::coefficients], s[m];
  unit_coefficients<Cell>(p.chunk, n, c);
#pragma unroll
  for (int i = 0; i < m; ++i) s[i] = p.state0[item * m + i];

  for (int64_t t0 = 0; t0 < time; t0 += A) {
    const int64_t first = b * time + t0;
    const int steps = time - t0 < A ? int(time - t0) : A;
#pragma unroll
    for (int j = 0; j < A; ++j) {
      if (j >= steps) continue;
      flags[j][lane] = step_flags(p.chunk, first + j);
#pragma unroll
      for (int g = 0; g < G; ++g) ahead[j][g][lane] = p.u[((first + j) * G + g) * N + n];
    }
#pragma unroll 1
    for (int j = 0; j < steps; ++j) {
      T u[G];
#pragma unroll
      for (int g = 0; g < G; ++g) u[g] = ahead[j][g][lane];
      if (!(flags[j][lane] & kKeepState)) {
#pragma unroll
        for (int i = 0; i < m; ++i) s[i] = T(0);
      }
      if (flags[j][lane] & kTakeInput) {
        T next[m];
        Cell::step(s, c, u, next);
#pragma unroll
        for (int i = 0; i < m; ++i) s[i] = next[i];
      }
#pragma unroll
      for (int g = 0; g < G; ++g) p.saved[((first + j) * G + g) * N + n] = u[g];
#pragma unroll
      for (int i = 0; i < m; ++i) p.states[i][(first + j) * N + n] = s[i];
    }
  }
#pragma unroll
  for (int i = 0; i < m; ++i) p.last[item * m + i] = s[i];
}

// Calls step(t, keep_state, take_input, previous, next, u, e) for each t from the last to the first; `previous` is the
// state before step t, resets applied. `saved` may be written over at t by then.
template <class Cell, bool Cotangents, class T, class Step>
__device__ __forceinline__ void scan_backward(const Chunk<T>& chunk, int64_t item, const T* state0, const T* saved,
                                              const T* const (&states)[kMaxComponents],
                                              const T* const* cotangents, Step step) {
  constexpr int G = Cell::gates, m = Cell::components, A = kAhead<T>;
  constexpr int E = Cotangents ? m : 0;
  __shared__ T ahead[A][G + m + E][kScanThreads];
  __shared__ unsigned char flags[A][kScanThreads];
  const int64_t N = chunk.units, b = item / N, n = item - b * N, row = b * chunk.time;
  const int lane = threadIdx.x;

  T next[m];
#pragma unroll
  for (int i = 0; i < m; ++i) next[i] = states[i][(row + chunk.time - 1) * N + n];
  for (int64_t end = chunk.time; end > 0; end -= A) {
    const int steps = end < A ? int(end) : A;
#pragma unroll
    for (int j = 0; j < A; ++j) {
      if (j >= steps) continue;
      const int64_t t = end - 1 - j;
      flags[j][lane] = step_flags(chunk, row + t);
#pragma unroll
      for (int g = 0; g < G; ++g) ahead[j][g][lane] = saved[((row + t) * G + g) * N + n];
#pragma unroll
      for (int i = 0; i < m; ++i)
        ahead[j][G + i][lane] = t > 0 ? states[i][(row + t - 1) * N + n] : state0[item * m + i];
#pragma unroll
      for (int i = 0; i < E; ++i)
        ahead[j][G + m + i][lane] = cotangents[i] ? cotangents[i][(row + t) * N + n] : T(0);
    }
#pragma unroll 1
    for (int j = 0; j < steps; ++j) {
      const bool keep_state = flags[j][lane] & kKeepState, take_input = flags[j][lane] & kTakeInput;
      T u[G], before[m], previous[m], e[m];
#pragma unroll
      for (int g = 0; g < G; ++g) u[g] = ahead[j][g][lane];
#pragma unroll
      for (int i = 0; i < m; ++i) {
        before[i] = ahead[j][G + i][lane];
        previous[i] = keep_state ? before[i] : T(0);
        if constexpr (Cotangents) e[i] = ahead[j][G + m + i][lane];
        else e[i] = T(0);
      }
      step(row + end - 1 - j, keep_state, take_input, previous, next, u, e);
#pragma unroll
      for (int i = 0; i < m; ++i) next[i] = before[i];
    }
  }
}

template <class Cell, class T>
__global__ void __launch_bounds__(kScanThreads) adjoint_kernel(const AdjointScan<T> p) {
  constexpr int G = Cell::gates, m = Cell::components, P = Cell::parameters;
  const int64_t N = p.chunk.units;
  const int64_t item = blockIdx.x * int64_t(kScanThreads) + threadIdx.x;
  if (item >= p.chunk.batch * N) return;
  const int64_t b = item / N, n = item - b * N;

  T c[Cell::coefficients], carried[m] = {}, d_rho[P] = {};  // carried: J_{t+1}' l_{t+1}
  unit_coefficients<Cell>(p.chunk, n, c);
  scan_backward<Cell, true>(
      p.chunk, item, p.state0, p.saved, p.states, static_cast<const T* const*>(p.cotangents),
      [&](int64_t step, bool keep_state, bool take_input, const T(&previous)[m], const T(&next)[m], const T(&u)[G],
          const T(&e)[m]) {
        T l[m], du[G] = {};
#pragma unroll
        for (int i = 0; i < m; ++i) {
          l[i] = e[i] + carried[i];
          carried[i] = l[i];
        }
        if (take_input) {
          Local<Cell, T> d;
          Cell::local(previous, next, u, c, d);
#pragma unroll
          for (int i = 0; i < m; ++i) {
            carried[i] = T(0);
#pragma unroll
            for (int g = 0; g < G; ++g) du[g] += l[i] * d.a[g][i];
#pragma unroll
            for (int q = 0; q < P; ++q) d_rho[q] += l[i] * d.v[q][i];
#pragma unroll
            for (int j = 0; j < m; ++j) carried[i] += d.J[j][i] * l[j];
          }
        }
        if (!keep_state || p.instant) {
#pragma unroll
          for (int i = 0; i < m; ++i) carried[i] = T(0);
        }
#pragma unroll
        for (int g = 0; g < G; ++g) p.du[(step * G + g) * N + n] = du[g];
      });
#pragma unroll
  for (int i = 0; i < m; ++i) p.start[item * m + i] = carried[i];
#pragma unroll
  for (int q = 0; q < P; ++q) p.d_rho[(b * P + q) * N + n] = d_rho[q];
}

template <class Cell, class T>
__global__ void __launch_bounds__(kScanThreads) suffix_kernel(const SuffixScan<T> p) {
  constexpr int G = Cell::gates, stored = Cell::stored, m = Cell::components, P = Cell::parameters;
  const int64_t N = p.chunk.units;
  const int64_t item = blockIdx.x * int64_t(kScanThreads) + threadIdx.x;
  if (item >= p.chunk.batch * N) return;
  const int64_t b = item / N, n = item - b * N;

  T c[Cell::coefficients], Q[m][m], r[P][m] = {};
  unit_coefficients<Cell>(p.chunk, n, c);
#pragma unroll
  for (int i = 0; i < m; ++i)
#pragma unroll
    for (int j = 0; j < m; ++j) Q[i][j] = T(i == j);
  scan_backward<Cell, false>(
      p.chunk, item, p.state0, p.saved, p.states, static_cast<const T* const*>(nullptr),
      [&](int64_t step, bool keep_state, bool take_input, const T(&previous)[m], const T(&next)[m], const T(&u)[G],
          const T(&)[m]) {
        T driven[stored][m] = {};
        if (take_input) {
          Local<Cell, T> d;
          Cell::local(previous, next, u, c, d);
#pragma unroll
          for (int i = 0; i < m; ++i) {
            T row[m] = {};
#pragma unroll
            for (int j = 0; j < m; ++j) {
#pragma unroll
              for (int g = 0; g < stored; ++g) driven[g][i] += Q[i][j] * d.a[g][j];
#pragma unroll
              for (int q = 0; q < P; ++q) r[q][i] += Q[i][j] * d.v[q][j];
#pragma unroll
              for (int k = 0; k < m; ++k) row[k] += Q[i][j] * d.J[j][k];
            }
#pragma unroll
            for (int k = 0; k < m; ++k) Q[i][k] = row[k];
          }
        }
        if (!keep_state) {
#pragma unroll
          for (int i = 0; i < m; ++i)
#pragma unroll
            for (int j = 0; j < m; ++j) Q[i][j] = T(0);
        }
#pragma unroll
        for (int g = 0; g < stored; ++g)
#pragma unroll
          for (int i = 0; i < m; ++i) p.driven[(step * stored + g) * p.row + n * m + i] = driven[g][i];
      });
#pragma unroll
  for (int i = 0; i < m; ++i)
#pragma unroll
    for (int j = 0; j < m; ++j) p.product[(item * m + i) * m + j] = Q[i][j];
#pragma unroll
  for (int q = 0; q < P; ++q) {
    const int64_t at = ((b * P + q) * N + n) * m;
    if (p.r0) {
      T old[m];
#pragma unroll
      for (int j = 0; j < m; ++j) old[j] = p.r0[at + j];
#pragma unroll
      for (int i = 0; i < m; ++i)
#pragma unroll
        for (int j = 0; j < m; ++j) r[q][i] += Q[i][j] * old[j];
    }
#pragma unroll
    for (int i = 0; i < m; ++i) p.r[at + i] = r[q][i];
  }
}

template <class Cell, class T>
int forward(const ForwardScan<T>& scan, void* stream) {
  return launch(forward_kernel<Cell, T>, ceil_div(scan.chunk.batch * scan.chunk.units, kScanThreads), kScanThreads,
                stream, scan);
}

template <class Cell, class T>
int adjoint(const AdjointScan<T>& scan, void* stream) {
  return launch(adjoint_kernel<Cell, T>, ceil_div(scan.chunk.batch * scan.chunk.units, kScanThreads), kScanThreads,
                stream, scan);
}

template <class Cell, class T>
int suffix(const SuffixScan<T>& scan, void* stream) {
  return launch(suffix_kernel<Cell, T>, ceil_div(scan.chunk.batch * scan.chunk.units, kScanThreads), kScanThreads,
                stream, scan);
}

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CUDA_SCANS_CUH_
