// The scans over time, a thread for each unit of each stream, neighbouring threads on neighbouring units.
//
// A scan that reads as it goes waits for memory at every step. So each thread copies the numbers of the next steps into
// its own column of shared memory while it computes these.
#ifndef KERAS_RTRL_CUDA_SCANS_CUH_
#define KERAS_RTRL_CUDA_SCANS_CUH_

#include <cuda_pipeline.h>

#include "launch.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

constexpr int kScanThreads = 64;
template <class T>
constexpr int kAhead = 32 / sizeof(T);  // steps copied at a time

enum : unsigned char { kKeepState = 1, kTakeInput = 2 };  // neither a reset nor masked

template <class T>
__device__ __forceinline__ unsigned char step_flags(const keras_rtrl_chunk<T>& chunk, int64_t step) {
  const bool reset = chunk.reset && chunk.reset[step], masked = chunk.mask && !chunk.mask[step];
  return (reset ? 0 : kKeepState) | (masked ? 0 : kTakeInput);
}

template <class Cell, class T>
__device__ __forceinline__ void unit_coefficients(const keras_rtrl_chunk<T>& chunk, int64_t n,
                                                  T (&c)[Cell::coefficients]) {
  T rho[Cell::parameters];
#pragma unroll
  for (int p = 0; p < Cell::parameters; ++p) rho[p] = chunk.rho[p][n];
  Cell::prepare(rho, c);
}

// Calls compute(step, keep_state, take_input, numbers) for each t of stream b in order, or from the last to the first,
// step = b T + t. numbers[f] is the number at source(t, f), or 0 if that is NULL. It is read at some time before the
// call and may be overwritten after that.
template <bool Backward, int Fields, class T, class Source, class Compute>
__device__ __forceinline__ void scan_steps(const keras_rtrl_chunk<T>& chunk, int64_t b, Source source,
                                           Compute compute) {
  constexpr int A = kAhead<T>;
  __shared__ T numbers[2][A][Fields][kScanThreads];
  __shared__ unsigned char flags[2][A][kScanThreads];
  const int lane = threadIdx.x;
  const int64_t time = chunk.time;

  unsigned char next_flags[A] = {};
  const auto fetch = [&](int64_t first, int buffer) {
#pragma unroll
    for (int j = 0; j < A; ++j) {
      if (first + j >= time) continue;
      const int64_t t = Backward ? time - 1 - first - j : first + j;
      next_flags[j] = step_flags(chunk, b * time + t);
#pragma unroll
      for (int f = 0; f < Fields; ++f) {
        T* const to = &numbers[buffer][j][f][lane];
        if (const T* const from = source(t, f))
          __pipeline_memcpy_async(to, from, sizeof(T));
        else
          *to = T(0);
      }
    }
  };
  const auto put_flags = [&](int buffer) {
#pragma unroll
    for (int j = 0; j < A; ++j) flags[buffer][j][lane] = next_flags[j];
  };

  fetch(0, 0);
  __pipeline_commit();
  put_flags(0);
  int buffer = 0;
  for (int64_t first = 0; first < time; first += A) {
    fetch(first + A, buffer ^ 1);
    __pipeline_commit();
    __pipeline_wait_prior(1);  // for all but the last commit
    const int steps = time - first < A ? int(time - first) : A;
#pragma unroll 1
    for (int j = 0; j < steps; ++j) {
      const int64_t t = Backward ? time - 1 - first - j : first + j;
      T now[Fields];
#pragma unroll
      for (int f = 0; f < Fields; ++f) now[f] = numbers[buffer][j][f][lane];
      compute(b * time + t, bool(flags[buffer][j][lane] & kKeepState), bool(flags[buffer][j][lane] & kTakeInput), now);
    }
    buffer ^= 1;
    put_flags(buffer);
  }
}

template <class Cell, class T>
__global__ void __launch_bounds__(kScanThreads) forward_kernel(const keras_rtrl_forward_arguments<T> p) {
  constexpr int G = Cell::gates, m = Cell::components;
  const int64_t N = p.chunk.units, time = p.chunk.time;
  const int64_t item = blockIdx.x * int64_t(kScanThreads) + threadIdx.x;
  if (item >= p.chunk.batch * N) return;
  const int64_t b = item / N, n = item - b * N;

  T c[Cell::coefficients], s[m];
  unit_coefficients<Cell>(p.chunk, n, c);
#pragma unroll
  for (int i = 0; i < m; ++i) s[i] = p.state0[item * m + i];
  scan_steps<false, G>(
      p.chunk, b, [&](int64_t t, int g) { return p.u + ((b * time + t) * G + g) * N + n; },
      [&](int64_t step, bool keep_state, bool take_input, T(&u)[G]) {
        if (!keep_state) {
#pragma unroll
          for (int i = 0; i < m; ++i) s[i] = T(0);
        }
        if (take_input) {
          T next[m];
          Cell::step(s, c, u, next);
#pragma unroll
          for (int i = 0; i < m; ++i) s[i] = next[i];
        }
#pragma unroll
        for (int g = 0; g < G; ++g) p.saved[(step * G + g) * N + n] = u[g];
#pragma unroll
        for (int i = 0; i < m; ++i) p.states[i][step * N + n] = s[i];
      });
}

// Calls compute(step, keep_state, take_input, previous, next, u, e) for each t from the last to the first; `previous`
// is the state before step t, resets applied, and e is zero without Cotangents.
template <class Cell, bool Cotangents, class T, class Scan, class Compute>
__device__ __forceinline__ void scan_backward(const Scan& p, const T* const* cotangents, int64_t item,
                                              Compute compute) {
  constexpr int G = Cell::gates, m = Cell::components;
  const int64_t N = p.chunk.units, time = p.chunk.time, b = item / N, n = item - b * N;
  T next[m];
#pragma unroll
  for (int i = 0; i < m; ++i) next[i] = time > 0 ? p.states[i][(b * time + time - 1) * N + n] : T(0);
  scan_steps<true, G + m + (Cotangents ? m : 0)>(
      p.chunk, b,
      [&](int64_t t, int f) -> const T* {
        const int64_t step = b * time + t;
        if (f < G) return p.saved + (step * G + f) * N + n;
        if (f < G + m) return t > 0 ? p.states[f - G] + (step - 1) * N + n : p.state0 + item * m + f - G;
        return cotangents[f - G - m] ? cotangents[f - G - m] + step * N + n : nullptr;
      },
      [&](int64_t step, bool keep_state, bool take_input, auto& now) {
        T u[G], previous[m], e[m];
#pragma unroll
        for (int g = 0; g < G; ++g) u[g] = now[g];
#pragma unroll
        for (int i = 0; i < m; ++i) {
          previous[i] = keep_state ? now[G + i] : T(0);
          if constexpr (Cotangents)
            e[i] = now[G + m + i];
          else
            e[i] = T(0);
        }
        compute(step, keep_state, take_input, previous, next, u, e);
#pragma unroll
        for (int i = 0; i < m; ++i) next[i] = now[G + i];
      });
}

template <class Cell, class T>
__global__ void __launch_bounds__(kScanThreads) adjoint_kernel(const keras_rtrl_adjoint_arguments<T> p) {
  constexpr int G = Cell::gates, m = Cell::components, P = Cell::parameters;
  const int64_t N = p.chunk.units;
  const int64_t item = blockIdx.x * int64_t(kScanThreads) + threadIdx.x;
  if (item >= p.chunk.batch * N) return;
  const int64_t b = item / N, n = item - b * N;

  T c[Cell::coefficients], carried[m] = {}, d_rho[P] = {};  // carried: J_{t+1}' l_{t+1}
  unit_coefficients<Cell>(p.chunk, n, c);
  scan_backward<Cell, true, T>(
      p, p.cotangents, item,
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
            for (int g = 0; g < G; ++g) du[g] += times(l[i], d.a[g][i]);
#pragma unroll
            for (int q = 0; q < P; ++q) d_rho[q] += times(l[i], d.v[q][i]);
#pragma unroll
            for (int j = 0; j < m; ++j) carried[i] += times(l[j], d.J[j][i]);
            if (l[i] != T(0)) p.used[step] = 1;  // whichever unit's thread comes last writes the same
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
__global__ void __launch_bounds__(kScanThreads) suffix_kernel(const TraceStep<T> p) {
  constexpr int G = Cell::gates, stored = Cell::stored, m = Cell::components, P = Cell::parameters;
  const int64_t N = p.chunk.units;
  const int64_t item = blockIdx.x * int64_t(kScanThreads) + threadIdx.x;
  if (item >= p.chunk.batch * N) return;
  const int64_t b = item / N, n = item - b * N;

  T c[Cell::coefficients], Q[m][m], r[P][m] = {};
  int64_t begin = -1;
  unit_coefficients<Cell>(p.chunk, n, c);
#pragma unroll
  for (int i = 0; i < m; ++i)
#pragma unroll
    for (int j = 0; j < m; ++j) Q[i][j] = T(i == j);
  scan_backward<Cell, false, T>(
      p, nullptr, item,
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
              for (int g = 0; g < stored; ++g) driven[g][i] += times(Q[i][j], d.a[g][j]);
#pragma unroll
              for (int q = 0; q < P; ++q) r[q][i] += times(Q[i][j], d.v[q][j]);
#pragma unroll
              for (int k = 0; k < m; ++k) row[k] += times(Q[i][j], d.J[j][k]);
            }
#pragma unroll
            for (int k = 0; k < m; ++k) Q[i][k] = row[k];
          }
        }
        if (!keep_state) {
          if (begin < 0) begin = step - b * p.chunk.time;
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
  if (n == 0) p.begin[b] = begin < 0 ? 0 : begin;
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
        for (int j = 0; j < m; ++j) r[q][i] += times(Q[i][j], old[j]);
    }
#pragma unroll
    for (int i = 0; i < m; ++i) p.r[at + i] = r[q][i];
  }
}

template <class Cell, class T>
int forward(const keras_rtrl_forward_arguments<T>& scan, void* stream) {
  return launch(forward_kernel<Cell, T>, ceil_div(scan.chunk.batch * scan.chunk.units, kScanThreads), kScanThreads,
                stream, scan);
}

template <class Cell, class T>
int adjoint(const keras_rtrl_adjoint_arguments<T>& scan, void* stream) {
  return launch(adjoint_kernel<Cell, T>, ceil_div(scan.chunk.batch * scan.chunk.units, kScanThreads), kScanThreads,
                stream, scan);
}

template <class Cell, class T>
int suffix(const TraceStep<T>& scan, void* stream) {
  return launch(suffix_kernel<Cell, T>, ceil_div(scan.chunk.batch * scan.chunk.units, kScanThreads), kScanThreads,
                stream, scan);
}

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CUDA_SCANS_CUH_
