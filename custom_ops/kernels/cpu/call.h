// What the kernels of one instruction set share: views of a chunk, unit blocks, scratch memory, loops over a pool.
#ifndef KERAS_RTRL_CPU_CALL_H_
#define KERAS_RTRL_CPU_CALL_H_

#include <stdlib.h>

#include "../typed.h"
#include "simd.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

constexpr int64_t kBlock = 256;  // units of one stream that a scan takes along together: their state stays in L1

KERAS_RTRL_FN int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
KERAS_RTRL_FN int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
KERAS_RTRL_FN int64_t ratio_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A chunk with its cell known.
template <class Cell, class T>
struct Chunk {
  typedef Vec<T> V;
  static constexpr int m = Cell::components, G = Cell::gates, P = Cell::parameters, stored = Cell::stored;

  int64_t B, time, D, N;
  const T* const* rho;
  const uint8_t *reset, *mask;

  explicit Chunk(const keras_rtrl_chunk<T>& c)
      : B(c.batch), time(c.time), D(c.inputs), N(c.units), rho(c.rho), reset(c.reset), mask(c.mask) {}

  bool resets(int64_t b, int64_t t) const { return reset && reset[b * time + t]; }
  // The last step of [t0, t1) that is a reset, t0 if none is: what was before it is cut off.
  int64_t begin(int64_t b, int64_t t0, int64_t t1) const {
    if (!reset) return t0;
    while (t1 > t0 + 1 && !resets(b, t1 - 1)) --t1;
    return larger(t1 - 1, t0);
  }
  bool masked(int64_t b, int64_t t) const { return mask && !mask[b * time + t]; }
  // Length of a row of S: its columns are [stored gate, unit, component].
  int64_t columns() const { return stored * N * m; }

  // The coefficients of units n0 + j, in vectors: c[i * stride + j].
  void prepare(int64_t n0, int64_t count, T* c, int64_t stride) const {
    for (int64_t j = 0; j < count; j += V::lanes) {
      V parameters[P], coefficients[Cell::coefficients];
      for (int p = 0; p < P; ++p) parameters[p] = V::load(rho[p] + n0 + j, smaller(V::lanes, count - j));
      Cell::prepare(parameters, coefficients);
      for (int i = 0; i < Cell::coefficients; ++i) coefficients[i].store(c + i * stride + j);
    }
  }
};

// Vectors [rows] of a block's units, row i at p + i * stride.
template <class V, class T, int rows>
KERAS_RTRL_FN void load_rows(const T* p, int64_t stride, V (&x)[rows]) {
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) x[i] = V::load(p + i * stride);
}

template <class V, class T, int rows>
KERAS_RTRL_FN void load_rows(const T* p, int64_t stride, int64_t count, V (&x)[rows]) {
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) x[i] = V::load(p + i * stride, count);
}

// Scratch memory of this thread, kept for its next call. Its contents are not kept.
template <class T>
T* scratch(int64_t count) {
  struct Memory {
    void* data = nullptr;
    size_t size = 0;
    ~Memory() { free(data); }
  };
  static thread_local Memory memory;
  const size_t size = (size_t(larger(count, 1)) * sizeof(T) + 4095) / 4096 * 4096;
  if (memory.size < size) {
    free(memory.data);
    memory.size = 0;
    memory.data = aligned_alloc(4096, size);
    if (!memory.data) abort();
    memory.size = size;
  }
  return static_cast<T*>(memory.data);
}

// Calls f(item) for every item, in parallel if there is a pool.
template <class F>
void for_each(const keras_rtrl_pool* pool, int64_t items, int64_t cost, const F& f) {
  struct Range {
    static void run(void* argument, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) (*static_cast<const F*>(argument))(i);
    }
  };
  void* argument = const_cast<F*>(&f);
  if (pool && items > 1)
    pool->run(pool->handle, items, cost, Range::run, argument);
  else
    Range::run(argument, 0, items);
}

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CPU_CALL_H_
