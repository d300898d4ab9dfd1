// Streaming: one step of the recurrence with its input product, and the trace update fused with its contraction.
#ifndef KERAS_RTRL_CPU_STREAMING_H_
#define KERAS_RTRL_CPU_STREAMING_H_

#include <algorithm>

#include "traces.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

// u [rows, kTile] = x [rows, inputs] times kTile columns of a kernel whose rows are `width` long.
template <class T>
KERAS_RTRL_APART void product(const T* x, int64_t inputs, int64_t rows, const T* kernel, int64_t width, T* u) {
  with_rows(rows, [&](auto constant) {
    constexpr int n = decltype(constant)::value;
    Vec<T> sums[n][kVectors];
    multiply<n>(x, inputs, 1, kernel, width, inputs, sums);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < kVectors; ++j) sums[i][j].store(u + i * kTile<T> + j * Vec<T>::lanes);
  });
}

template <class Cell, class T>
struct Streaming {
  typedef Vec<T> V;
  typedef Chunk<Cell, T> Call;
  static constexpr int m = Cell::components, G = Cell::gates, P = Cell::parameters, stored = Cell::stored;
  static constexpr int L = V::lanes;
  static constexpr int kTogether = 2;  // rows of S that share the loads of J, a and e
  static constexpr int kLocal = m * m + stored * m + P * m;  // rows of what forward() leaves for update()

  static void forward(const keras_rtrl_streaming_forward_arguments<T>& p, const keras_rtrl_pool* pool) {
    const Call call(p.chunk);
    const int64_t N = call.N, blocks = ratio_up(N, kTile<T>);
    for_each(pool, blocks, call.B * call.D * G * kTile<T> / 8 + kTile<T>, [&](int64_t item) {
      const int64_t n0 = item * kTile<T>, count = smaller(kTile<T>, N - n0);
      alignas(64) T c[Cell::coefficients * kTile<T>], u[G * kRows * kTile<T>];
      call.prepare(n0, count, c, kTile<T>);
      const T* columns = p.kernel + n0;
      int64_t width = N;
      if (count < kTile<T> || call.D == 0) {  // a whole tile would read past the end; without inputs there is no kernel
        T* padded = scratch<T>(call.D * G * kTile<T>);
        for (int64_t row = 0; row < call.D * G; ++row)
          for (int64_t j = 0; j < count; j += L)
            V::load(p.kernel + row * N + n0 + j, smaller(L, count - j)).store(padded + row * kTile<T> + j);
        columns = padded;
        width = kTile<T>;
      }
      for (int64_t b0 = 0; b0 < call.B; b0 += kRows) {
        const int64_t streams = smaller(kRows, call.B - b0);
        for (int g = 0; g < G; ++g)
          product(p.x + b0 * call.D, call.D, streams, columns + g * width, G * width, u + g * kRows * kTile<T>);
        for (int64_t i = 0; i < streams; ++i) step(call, p, b0 + i, n0, count, c, u + i * kTile<T>);
      }
    });
  }

  static KERAS_RTRL_FN void step(const Call& call, const keras_rtrl_streaming_forward_arguments<T>& p, int64_t b,
                                 int64_t n0, int64_t count, const T* c, const T* u) {
    const bool reset = call.resets(b, 0);
    for (int64_t j = 0; j < count; j += L) {
      const int64_t n = n0 + j, live = smaller(L, count - j), at = (b * call.N + n) * m;
      V s[m], pre[G], k[Cell::coefficients], next[m];
      Interleaved<T, m>::load(p.state0 + at, live, s);
      if (reset)
        for (int i = 0; i < m; ++i) s[i] = V(0);
      load_rows(u + j, kRows * kTile<T>, pre);
      load_rows(c + j, kTile<T>, k);
      Cell::step(s, k, pre, next);
      Local<Cell, V> d;
      Cell::local(s, next, pre, k, d);
      Interleaved<T, m>::store(p.state + at, live, next);
      T* to = p.local + b * kLocal * call.N + n;
      for (int i = 0; i < m; ++i)
        for (int l = 0; l < m; ++l, to += call.N) (reset ? V(0) : d.J[i][l]).store(to, live);
      for (int g = 0; g < stored; ++g)
        for (int i = 0; i < m; ++i, to += call.N) d.a[g][i].store(to, live);
      for (int q = 0; q < P; ++q)
        for (int i = 0; i < m; ++i, to += call.N) d.v[q][i].store(to, live);
    }
  }

  static KERAS_RTRL_FN void advance(const V (&J)[m][m], const V (&driven)[m], V (&s)[m]) {
    V next[m];
    for (int i = 0; i < m; ++i) {
      next[i] = driven[i];
      for (int k = 0; k < m; ++k) next[i] = next[i] + times(J[i][k], s[k]);
    }
    for (int i = 0; i < m; ++i) s[i] = next[i];
  }

  static void update(const keras_rtrl_streaming_update_arguments<T>& p, const keras_rtrl_pool* pool) {
    const Call call(p.chunk);
    const int64_t N = call.N, rows = Traces<Cell, T>::row_block(call, pool), items = ratio_up(call.D, rows);
    if (call.B == 0) {  // no first stream that writes
      std::fill_n(p.d_kernel, p.K * call.D * G * N, T(0));
      std::fill_n(p.d_rho, p.K * P * N, T(0));
      return;
    }
    for_each(pool, items + 1, call.B * rows * call.columns() / 4, [&](int64_t item) {
      for (int64_t b = 0; b < call.B; ++b) {
        if (item == items) {
          for (int64_t n = 0; n < N; n += L) update_r(call, p, b, n);
          continue;
        }
        const int64_t d0 = item * rows, d1 = smaller(d0 + rows, call.D);
        int64_t d = d0;
        for (; d + kTogether <= d1; d += kTogether) {
          const int64_t ahead = kTogether + (d + 2 * kTogether <= d1 ? 0 : call.D - (d1 - d0));
          update_rows<kTogether>(call, p, b, d, ahead * call.columns());
        }
        for (; d < d1; ++d) update_rows<1>(call, p, b, d, call.columns());
      }
    });
  }

  // Rows [d, d + rows) of stream b; `ahead`: how far behind them in S those lie that come next.
  template <int rows>
  static KERAS_RTRL_APART void update_rows(const Call& call, const keras_rtrl_streaming_update_arguments<T>& p,
                                           int64_t b, int64_t d, int64_t ahead) {
    const int64_t N = call.N, K = p.K, columns = call.columns();
    const T* const from = p.local + b * kLocal * N;
    const T* const cotangents = p.cotangents;  // here, not in the loops, where each store would have p read again
    T* const traces = p.S + (b * call.D + d) * columns;
    T* const d_kernel = p.d_kernel;
    V input[rows];
    for (int i = 0; i < rows; ++i) input[i] = V(p.x[b * call.D + d + i]);
    for (int64_t n = 0; n < N; n += L) {
      const int64_t live = smaller(L, N - n);
      V J[m][m], a[stored][m], kept[rows][stored][m];
      for (int i = 0; i < m; ++i) load_rows(from + i * m * N + n, N, live, J[i]);
      for (int g = 0; g < stored; ++g) load_rows(from + (m * m + g * m) * N + n, N, live, a[g]);
      for (int i = 0; i < rows; ++i)
        for (int g = 0; g < stored; ++g) {
          T* const to = traces + i * columns + (g * N + n) * m;
          for (int c = 0; c < m; ++c) __builtin_prefetch(to + ahead + c * L, 1, 2);
          V driven[m];
          for (int c = 0; c < m; ++c) driven[c] = input[i] * a[g][c];
          Interleaved<T, m>::load(to, live, kept[i][g]);
          advance(J, driven, kept[i][g]);
          Interleaved<T, m>::store(to, live, kept[i][g]);
        }
      for (int64_t k = 0; k < K; ++k) {
        V e[m];
        Interleaved<T, m>::load(cotangents + ((k * call.B + b) * N + n) * m, live, e);
        for (int i = 0; i < rows; ++i) {
          V all[G][m];
          Cell::expand(kept[i], all);
          T* const to = d_kernel + (k * call.D + d + i) * G * N + n;
          for (int g = 0; g < G; ++g) add(b, Traces<Cell, T>::Scan::dot(e, all[g]), to + g * N, live);
        }
      }
    }
  }

  // The first stream writes, the others add.
  static KERAS_RTRL_FN void add(int64_t b, const V& value, T* to, int64_t live) {
    (b ? V::load(to, live) + value : value).store(to, live);
  }

  static KERAS_RTRL_APART void update_r(const Call& call, const keras_rtrl_streaming_update_arguments<T>& p, int64_t b,
                                        int64_t n) {
    const int64_t N = call.N, K = p.K, live = smaller(L, N - n);
    const T* const from = p.local + b * kLocal * N + n;
    const T* const cotangents = p.cotangents;  // here, not in the loops, where each store would have p read again
    T* const d_rho = p.d_rho;
    V J[m][m];
    for (int i = 0; i < m; ++i) load_rows(from + i * m * N, N, live, J[i]);
    for (int q = 0; q < P; ++q) {
      T* const to = p.r + ((b * P + q) * N + n) * m;
      V driven[m], trace[m], e[m];
      load_rows(from + (m * m + stored * m + q * m) * N, N, live, driven);
      Interleaved<T, m>::load(to, live, trace);
      advance(J, driven, trace);
      Interleaved<T, m>::store(to, live, trace);
      for (int64_t k = 0; k < K; ++k) {
        Interleaved<T, m>::load(cotangents + ((k * call.B + b) * N + n) * m, live, e);
        add(b, Traces<Cell, T>::Scan::dot(e, trace), d_rho + (k * P + q) * N + n, live);
      }
    }
  }
};

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CPU_STREAMING_H_
