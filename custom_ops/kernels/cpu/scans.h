// The scans over time: forward, adjoint, and the suffix products of the chunk trace step. An item is a block of units
// of one stream; time goes on outside, units inside.
#ifndef KERAS_RTRL_CPU_SCANS_H_
#define KERAS_RTRL_CPU_SCANS_H_

#include <algorithm>

#include "call.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

template <class Cell, class T>
struct Scans {
  typedef Vec<T> V;
  typedef Chunk<Cell, T> Call;
  static constexpr int m = Cell::components, G = Cell::gates, P = Cell::parameters, stored = Cell::stored;
  static constexpr int C = Cell::coefficients, L = V::lanes;
  // Numbers of one value a unit of a block, with room for a whole last vector.
  static constexpr int64_t kRow = kBlock;

  static void forward(const keras_rtrl_forward_arguments<T>& p, const keras_rtrl_pool* pool) {
    const Call call(p.chunk);
    const int64_t N = call.N, blocks = ratio_up(N, kBlock);
    for_each(pool, call.B * blocks, call.time * smaller(N, kBlock) * G, [&](int64_t item) {
      const int64_t b = item / blocks, n0 = item % blocks * kBlock, count = smaller(kBlock, N - n0);
      alignas(64) T state[m * kRow], c[C * kRow];
      call.prepare(n0, count, c, kRow);
      for (int64_t j = 0; j < count; j += L) {
        V s[m];
        Interleaved<T, m>::load(p.state0 + (b * N + n0 + j) * m, smaller(L, count - j), s);
        for (int i = 0; i < m; ++i) s[i].store(state + i * kRow + j);
      }
      for (int64_t t = 0; t < call.time; ++t) {
        const int64_t row = b * call.time + t;
        const bool reset = call.resets(b, t), masked = call.masked(b, t);
        for (int64_t j = 0; j < count; j += L) {
          const int64_t live = smaller(L, count - j);
          V s[m], k[C], pre[G], next[m];
          load_rows(state + j, kRow, s);
          load_rows(p.u + row * G * N + n0 + j, N, live, pre);
          if (reset)
            for (int i = 0; i < m; ++i) s[i] = V(0);
          if (masked) {
            for (int i = 0; i < m; ++i) next[i] = s[i];
          } else {
            load_rows(c + j, kRow, k);
            Cell::step(s, k, pre, next);
          }
          for (int g = 0; g < G; ++g) pre[g].store(p.saved + (row * G + g) * N + n0 + j, live);
          for (int i = 0; i < m; ++i) {
            next[i].store(state + i * kRow + j);
            next[i].store(p.states[i] + row * N + n0 + j, live);
          }
        }
      }
    });
  }

  // The state before step t of `live` units from n on, resets applied.
  template <class Arguments>
  static KERAS_RTRL_FN void previous(const Call& call, const Arguments& p, int64_t b, int64_t t, int64_t n,
                                     int64_t live, V (&s)[m]) {
    if (call.resets(b, t)) {
      for (int i = 0; i < m; ++i) s[i] = V(0);
    } else if (t == 0) {
      Interleaved<T, m>::load(p.state0 + (b * call.N + n) * m, live, s);
    } else {
      for (int i = 0; i < m; ++i) s[i] = V::load(p.states[i] + (b * call.time + t - 1) * call.N + n, live);
    }
  }

  template <class Arguments>
  static KERAS_RTRL_FN void local(const Call& call, const Arguments& p, const T* c, int64_t b, int64_t t, int64_t n,
                                  int64_t live, Local<Cell, V>& d) {
    const int64_t row = b * call.time + t;
    V s[m], next[m], kept[G], k[C];
    previous(call, p, b, t, n, live, s);
    for (int i = 0; i < m; ++i) next[i] = V::load(p.states[i] + row * call.N + n, live);
    load_rows(p.saved + row * G * call.N + n, call.N, live, kept);
    load_rows(c, kRow, k);
    Cell::local(s, next, kept, k, d);
  }

  static void adjoint(const keras_rtrl_adjoint_arguments<T>& p, const keras_rtrl_pool* pool) {
    const Call call(p.chunk);
    const int64_t N = call.N, blocks = ratio_up(N, kBlock);
    std::fill_n(p.used, call.B * call.time, uint8_t(0));
    for_each(pool, call.B * blocks, call.time * smaller(N, kBlock) * G, [&](int64_t item) {
      const int64_t b = item / blocks, n0 = item % blocks * kBlock, count = smaller(kBlock, N - n0);
      alignas(64) T carried[m * kRow], c[C * kRow], sums[P * kRow];
      call.prepare(n0, count, c, kRow);
      memset(carried, 0, sizeof(carried));
      memset(sums, 0, sizeof(sums));
      for (int64_t t = call.time - 1; t >= 0; --t) {
        const int64_t row = b * call.time + t;
        const bool reset = call.resets(b, t), masked = call.masked(b, t);
        typename V::Mask reached = {};
        for (int64_t j = 0; j < count; j += L) {
          const int64_t n = n0 + j, live = smaller(L, count - j);
          V l[m], before[m];
          load_rows(carried + j, kRow, l);
          for (int i = 0; i < m; ++i)
            if (p.cotangents[i]) l[i] = l[i] + V::load(p.cotangents[i] + row * N + n, live);
          if (masked) {
            for (int g = 0; g < G; ++g) V(0).store(p.du + (row * G + g) * N + n, live);
            for (int i = 0; i < m; ++i) before[i] = l[i];
          } else {
            Local<Cell, V> d;
            local(call, p, c + j, b, t, n, live, d);
            for (int g = 0; g < G; ++g) dot(l, d.a[g]).store(p.du + (row * G + g) * N + n, live);
            for (int q = 0; q < P; ++q)
              (V::load(sums + q * kRow + j) + dot(l, d.v[q])).store(sums + q * kRow + j);
            for (int i = 0; i < m; ++i) {
              before[i] = times(l[0], d.J[0][i]);
              for (int k = 1; k < m; ++k) before[i] = before[i] + times(l[k], d.J[k][i]);
              reached |= l[i] != V(0);
            }
          }
          if (reset || p.instant)
            for (int i = 0; i < m; ++i) before[i] = V(0);
          for (int i = 0; i < m; ++i) before[i].store(carried + i * kRow + j);
        }
        bool any = false;
        for (int i = 0; i < L; ++i) any |= reached[i] != 0;
        if (any) __atomic_store_n(p.used + row, uint8_t(1), __ATOMIC_RELAXED);  // other blocks of the stream write it too
      }
      for (int64_t j = 0; j < count; j += L) {
        const int64_t n = n0 + j, live = smaller(L, count - j);
        V s[m];
        load_rows(carried + j, kRow, s);
        Interleaved<T, m>::store(p.start + (b * N + n) * m, live, s);
        for (int q = 0; q < P; ++q) V::load(sums + q * kRow + j).store(p.d_rho + (b * P + q) * N + n, live);
      }
    });
  }

  static KERAS_RTRL_FN V dot(const V (&factors)[m], const V (&values)[m]) {
    V sum = times(factors[0], values[0]);
    for (int i = 1; i < m; ++i) sum = sum + times(factors[i], values[i]);
    return sum;
  }

  // Suffix products over steps [t0, t1) of the units [n0, n0 + count) of stream b, backward:
  //   product, m m rows of a block: Q_1 J_1, row by row
  //   driven(t, gate, j, live, Q_t a_t): called for every vector of units, for each stored gate
  //   r, P m rows of a block: sum_t Q_t v_t
  template <class Driven>
  static KERAS_RTRL_FN void suffix(const Call& call, const keras_rtrl_trace_arguments<T>& p, const T* c, int64_t b,
                                   int64_t t0, int64_t t1, int64_t n0, int64_t count, T* product, T* r,
                                   const Driven& driven) {
    for (int64_t j = 0; j < count; j += L) {
      for (int i = 0; i < m; ++i)
        for (int k = 0; k < m; ++k) V(i == k).store(product + (i * m + k) * kRow + j);
      for (int i = 0; i < P * m; ++i) V(0).store(r + i * kRow + j);
    }
    for (int64_t t = t1 - 1; t >= t0; --t) {
      const bool reset = call.resets(b, t), masked = call.masked(b, t);
      for (int64_t j = 0; j < count; j += L) {
        const int64_t live = smaller(L, count - j);
        V Q[m][m], after[m][m];
        for (int i = 0; i < m; ++i) load_rows(product + i * m * kRow + j, kRow, Q[i]);
        V zero[m];
        for (int i = 0; i < m; ++i) zero[i] = V(0);
        if (masked) {
          for (int g = 0; g < stored; ++g) driven(t, g, j, live, zero);
          if (!reset) continue;
        } else {
          Local<Cell, V> d;
          local(call, p, c + j, b, t, n0 + j, live, d);
          for (int g = 0; g < stored; ++g) {
            V x[m];
            for (int i = 0; i < m; ++i) x[i] = dot(Q[i], d.a[g]);
            driven(t, g, j, live, x);
          }
          for (int q = 0; q < P; ++q)
            for (int i = 0; i < m; ++i) {
              T* sum = r + (q * m + i) * kRow + j;
              (V::load(sum) + dot(Q[i], d.v[q])).store(sum);
            }
          for (int i = 0; i < m; ++i)
            for (int k = 0; k < m; ++k) {
              after[i][k] = times(Q[i][0], d.J[0][k]);
              for (int l = 1; l < m; ++l) after[i][k] = after[i][k] + times(Q[i][l], d.J[l][k]);
            }
        }
        for (int i = 0; i < m; ++i)
          for (int k = 0; k < m; ++k) (reset ? V(0) : after[i][k]).store(product + (i * m + k) * kRow + j);
      }
    }
  }
};

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CPU_SCANS_H_
