// The register tile of a small GEMM: sums[i][j] = sum_k A[i, k] B[k, j], for a few rows and kTile columns.
#ifndef KERAS_RTRL_CPU_GEMM_H_
#define KERAS_RTRL_CPU_GEMM_H_

#include "call.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

// 24 or 12 sums, kVectors of B and one number of A fill the 32 or 16 registers.
constexpr int kRows = 6;
constexpr int kVectors = KERAS_RTRL_REGISTERS == 32 ? 4 : 2;
template <class T>
constexpr int64_t kTile = kVectors * Vec<T>::lanes;

// A[i, k] is at A + i * row + k * step; row k of B is kTile<T> numbers at B + k * width.
template <int rows, class T>
KERAS_RTRL_FN void multiply(const T* A, int64_t row, int64_t step, const T* B, int64_t width, int64_t steps,
                            Vec<T> (&sums)[rows][kVectors]) {
  typedef Vec<T> V;
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) sums[i][j] = V(0);
  for (int64_t k = 0; k < steps; ++k) {
    V b[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) b[j] = V::load(B + k * width + j * V::lanes);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const V a(A[i * row + k * step]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sums[i][j] = sums[i][j] + a * b[j];
    }
  }
}

template <int n>
struct Rows {
  static constexpr int value = n;
};

// Calls f with the number of rows, at most kRows, as a constant.
template <class F>
KERAS_RTRL_FN void with_rows(int64_t rows, const F& f) {
  switch (rows) {
    case 1: return f(Rows<1>());
    case 2: return f(Rows<2>());
    case 3: return f(Rows<3>());
    case 4: return f(Rows<4>());
    case 5: return f(Rows<5>());
    default: return f(Rows<6>());
  }
}

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CPU_GEMM_H_
