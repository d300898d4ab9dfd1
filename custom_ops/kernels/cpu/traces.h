// The chunk trace step and the contraction of the traces.
//
// S_T = (Q_1 J_1) S_0 + x' (Q a) is a GEMM a stream with S read and written in its epilogue. An item is a block of
// units of one stream: its suffix products are made first, as panels of kTile columns that stay in the cache; then the
// tiles of S are computed, rows outside, panels inside.
#ifndef KERAS_RTRL_CPU_TRACES_H_
#define KERAS_RTRL_CPU_TRACES_H_

#include "gemm.h"
#include "scans.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

constexpr int64_t kSteps = 128;  // longer chunks are composed of such: the panels stay in the cache
constexpr int64_t kStreamed = 8 << 20;  // bytes of traces from which new ones are written past the caches

// One tile, S = diagonal S0 + cross (S0 with each unit's components swapped) + x' panel: `rows` rows of `stride` numbers
// from S on, `live` columns of each; the same of S0, which may be NULL for zeros.
template <int m, class T>
KERAS_RTRL_APART void tile(const T* x, int64_t inputs, int64_t steps, const T* panel, const T* diagonal, const T* cross,
                           int64_t stride, int64_t rows, int64_t live, const T* S0, T* S, bool streamed) {
  typedef Vec<T> V;
  with_rows(rows, [&](auto constant) {
    constexpr int n = decltype(constant)::value;
    if (S0)
      for (int i = 0; i < n; ++i)
        for (int64_t j = 0; j < live; j += 64 / sizeof(T)) __builtin_prefetch(S0 + i * stride + j);
    V sums[n][kVectors];
    multiply<n>(x, 1, inputs, panel, kTile<T>, steps, sums);
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        const int64_t column = j * V::lanes, left = live - column;
        if (left <= 0) continue;
        V value = sums[i][j];
        if (S0) {
          const V old = V::load(S0 + i * stride + column, left);
          value = value + times(V::load(diagonal + column), old);
          if (m == 2) value = value + times(V::load(cross + column), swapped(old));
        }
        T* const to = S + i * stride + column;
        if (streamed)
          value.stream(to);
        else
          value.store(to, left);
      }
  });
}

template <class Cell, class T>
struct Traces {
  typedef Vec<T> V;
  typedef Chunk<Cell, T> Call;
  typedef Scans<Cell, T> Scan;
  static constexpr int m = Cell::components, G = Cell::gates, P = Cell::parameters, stored = Cell::stored;
  static constexpr int L = V::lanes;
  static constexpr int64_t kRow = Scan::kRow;
  static constexpr int64_t kPanels = kBlock * m / kTile<T>;  // of one gate of a block

  // What the suffix scan of one block leaves for the tiles, for at most kSteps steps.
  struct Block {
    alignas(64) T c[Cell::coefficients * kRow];
    alignas(64) T product[m * m * kRow];
    alignas(64) T r[P * m * kRow];
    alignas(64) T diagonal[m * kRow], cross[m * kRow];  // of the product, interleaved as S is
    alignas(64) T panels[stored * kPanels * kSteps * kTile<T>];
  };

  static KERAS_RTRL_FN T* panel(Block& block, int gate, int64_t index, int64_t steps) {
    return block.panels + (gate * kPanels + index) * steps * kTile<T>;
  }

  static void make_block(const Call& call, const keras_rtrl_trace_arguments<T>& p, int64_t b, int64_t t0, int64_t t1,
                         int64_t n0, int64_t count, Block& block) {
    const int64_t steps = t1 - t0;
    Scan::suffix(call, p, block.c, b, t0, t1, n0, count, block.product, block.r,
                 [&](int64_t t, int gate, int64_t j, int64_t, const V(&x)[m]) {
                   const int64_t column = j * m;
                   T* to = panel(block, gate, column / kTile<T>, steps) + (t - t0) * kTile<T> + column % kTile<T>;
                   Interleaved<T, m>::store(to, L, x);
                 });
    for (int64_t j = 0; j < count; j += L) {
      V diagonal[m], cross[m];
      for (int i = 0; i < m; ++i) {
        diagonal[i] = V::load(block.product + (i * m + i) * kRow + j);
        cross[i] = V::load(block.product + (i * m + (m - 1 - i)) * kRow + j);
      }
      Interleaved<T, m>::store(block.diagonal + j * m, L, diagonal);
      Interleaved<T, m>::store(block.cross + j * m, L, cross);
    }
  }

  // Rows [d, d + rows) of S for the columns of a block, from those of S0 (may be NULL: zeros, or S itself); `streamed`:
  // past the caches, rows of whole, aligned vectors.
  static void tiles(const Call& call, Block& block, const T* x, int64_t steps, int64_t n0, int64_t count, int64_t d,
                    int64_t rows, const T* S0, T* S, bool streamed = false) {
    const int64_t width = count * m;
    for (int gate = 0; gate < stored; ++gate) {
      for (int64_t index = 0; index * kTile<T> < width; ++index) {
        const int64_t first = index * kTile<T>, at = d * call.columns() + (gate * call.N + n0) * m + first;
        tile<m, T>(x + d, call.D, steps, panel(block, gate, index, steps), block.diagonal + first, block.cross + first,
                   call.columns(), rows, smaller(kTile<T>, width - first), S0 ? S0 + at : nullptr, S + at, streamed);
      }
    }
  }

  // r of one block of stream b after the steps of its suffix products; r0 NULL: zeros.
  static KERAS_RTRL_APART void advance_r(const Call& call, Block& block, int64_t b, int64_t n0, int64_t count,
                                      const T* r0, T* r) {
    for (int p = 0; p < P; ++p)
      for (int64_t j = 0; j < count; j += L) {
        const int64_t live = smaller(L, count - j), at = ((b * P + p) * call.N + n0 + j) * m;
        V sum[m], old[m];
        load_rows(block.r + p * m * kRow + j, kRow, sum);
        if (r0) {
          Interleaved<T, m>::load(r0 + at, live, old);
          for (int i = 0; i < m; ++i)
            for (int k = 0; k < m; ++k) sum[i] = sum[i] + times(V::load(block.product + (i * m + k) * kRow + j), old[k]);
        }
        Interleaved<T, m>::store(r + at, live, sum);
      }
  }

  // The least number of parts to cut the work into, if it is already cut into `others`; 1 without a pool.
  static int64_t parts_for(const keras_rtrl_pool* pool, int64_t others) {
    return pool ? ratio_up(2 * pool->threads, larger(others, 1)) : 1;
  }

  // Units an item takes along: as many as kBlock allows, but work for every thread. At least 1.
  static int64_t block_units(const Call& call, const keras_rtrl_pool* pool, int64_t others) {
    const int64_t grain = kTile<T> / m, wanted = larger(call.N, 1);
    return smaller(kBlock, ratio_up(ratio_up(wanted, parts_for(pool, others)), grain) * grain);
  }

  static void trace(const keras_rtrl_trace_arguments<T>& p, const keras_rtrl_pool* pool) {
    const Call call(p.chunk);
    const int64_t units = block_units(call, pool, call.B), blocks = ratio_up(call.N, units);
    const int64_t cost = call.time * units * m * stored * call.D / 32;
    const int64_t bytes = call.B * call.D * call.columns() * sizeof(T);
    const bool streamed = p.S0 != p.S && bytes >= kStreamed && call.N * m % L == 0 &&
                          reinterpret_cast<uintptr_t>(p.S) % KERAS_RTRL_VECTOR_BYTES == 0;
    for_each(pool, call.B * blocks, cost, [&](int64_t item) {
      const int64_t b = item / blocks, n0 = item % blocks * units, count = smaller(units, call.N - n0);
      const int64_t stream = b * call.D * call.columns();
      Block& block = *scratch<Block>(1);
      call.prepare(n0, count, block.c, kRow);
      int64_t t0 = 0;
      do {  // once for no steps: the traces pass through
        const int64_t t1 = smaller(t0 + kSteps, call.time);
        const T* const S_before = t0 ? p.S + stream : p.S0 ? p.S0 + stream : nullptr;
        const int64_t begin = call.begin(b, t0, t1);
        make_block(call, p, b, begin, t1, n0, count, block);
        for (int64_t d = 0; d < call.D; d += kRows)
          tiles(call, block, p.x + (b * call.time + begin) * call.D, t1 - begin, n0, count, d,
                smaller(kRows, call.D - d), S_before, p.S + stream, streamed && t1 == call.time);
        advance_r(call, block, b, n0, count, t0 ? p.r : p.r0, p.r);
      } while ((t0 += kSteps) < call.time);
      if (streamed) fence();
    });
  }

  // Rows of S that an item takes of each stream, if it sums over streams. They are many enough that the jumps between
  // streams, which the hardware cannot predict, are few, and few enough that the sums stay in the cache.
  static int64_t row_block(const Call& call, const keras_rtrl_pool* pool) {
    return smaller(32, 2 * ratio_up(larger(call.D, 1), pool ? 4 * pool->threads : 2));
  }

  // Adds start . S0 of stream b and row d, all gates, to d_kernel's row. `ahead`: how far behind the row that lies that
  // comes next.
  static KERAS_RTRL_APART void contract_row(const Call& call, const keras_rtrl_contract_arguments<T>& p, int64_t b,
                                            int64_t d, int64_t ahead) {
    const int64_t N = call.N;
    const T* const start = p.start + b * N * m;
    const T* const S = p.S0 + (b * call.D + d) * call.columns();
    T* const d_kernel = p.d_kernel + d * G * N;
    for (int64_t n = 0; n < N; n += L) {
      const int64_t live = smaller(L, N - n);
      V e[m], kept[stored][m], all[G][m];
      Interleaved<T, m>::load(start + n * m, live, e);
      for (int g = 0; g < stored; ++g) {
        const T* const from = S + (g * N + n) * m;
        for (int i = 0; i < m; ++i) __builtin_prefetch(from + ahead + i * L, 0, 2);
        Interleaved<T, m>::load(from, live, kept[g]);
      }
      Cell::expand(kept, all);
      for (int g = 0; g < G; ++g) {
        T* to = d_kernel + g * N + n;
        (V::load(to, live) + Scan::dot(e, all[g])).store(to, live);
      }
    }
  }

  static KERAS_RTRL_APART void contract_r(const Call& call, const keras_rtrl_contract_arguments<T>& p, int64_t b) {
    for (int q = 0; q < P; ++q)
      for (int64_t n = 0; n < call.N; n += L) {
        const int64_t live = smaller(L, call.N - n);
        V e[m], trace[m];
        Interleaved<T, m>::load(p.start + (b * call.N + n) * m, live, e);
        Interleaved<T, m>::load(p.r0 + ((b * P + q) * call.N + n) * m, live, trace);
        T* to = p.d_rho + q * call.N + n;
        (V::load(to, live) + Scan::dot(e, trace)).store(to, live);
      }
  }

  static void contract(const keras_rtrl_contract_arguments<T>& p, const keras_rtrl_pool* pool) {
    const Call call(p.chunk);
    const int64_t rows = row_block(call, pool), items = ratio_up(call.D, rows), columns = call.columns();
    for_each(pool, items + 1, call.B * rows * columns / 4, [&](int64_t item) {
      for (int64_t b = 0; b < call.B; ++b) {
        if (item == items) {
          contract_r(call, p, b);
          continue;
        }
        const int64_t d0 = item * rows, d1 = smaller(d0 + rows, call.D);
        for (int64_t d = d0; d < d1; ++d)
          contract_row(call, p, b, d, (2 + (d + 2 < d1 ? 0 : call.D - (d1 - d0))) * columns);
      }
    });
  }
};

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CPU_TRACES_H_
