// Vectors of numbers with the functions that cells use, for one instruction set (KERAS_RTRL_LEVEL).
//
// Explicit vectors, since compilers do not vectorise loops over units whose bodies hold small arrays of gates.
#ifndef KERAS_RTRL_CPU_SIMD_H_
#define KERAS_RTRL_CPU_SIMD_H_

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "../cells/cell.h"

#if defined(__AVX512F__)
#define KERAS_RTRL_VECTOR_BYTES 64
#define KERAS_RTRL_REGISTERS 32
#elif defined(__AVX__)
#define KERAS_RTRL_VECTOR_BYTES 32
#define KERAS_RTRL_REGISTERS 16
#else
#define KERAS_RTRL_VECTOR_BYTES 16
#define KERAS_RTRL_REGISTERS 16
#endif

// For functions that gain nothing from inlining and would make the code large.
#define KERAS_RTRL_APART __attribute__((noinline))

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  typedef int32_t type;
};
template <>
struct IntegerOf<double> {
  typedef int64_t type;
};

template <class T>
struct Vec {
  static constexpr int lanes = KERAS_RTRL_VECTOR_BYTES / sizeof(T);
  typedef T Raw __attribute__((vector_size(KERAS_RTRL_VECTOR_BYTES)));
  typedef typename IntegerOf<T>::type Integer;
  typedef Integer Mask __attribute__((vector_size(KERAS_RTRL_VECTOR_BYTES)));

  Raw v;

  Vec() = default;
  KERAS_RTRL_FN Vec(Raw raw) : v(raw) {}
  KERAS_RTRL_FN explicit Vec(double x) : v(T(x) - Raw{}) {}

  static KERAS_RTRL_FN Vec load(const T* p) {
    Vec x;
    memcpy(&x.v, p, sizeof(Raw));
    return x;
  }
  // The first `count` numbers, zeros after them.
  static KERAS_RTRL_FN Vec load(const T* p, int64_t count) {
    return __builtin_expect(count >= lanes, 1) ? load(p) : load_part(p, count);
  }
  static KERAS_RTRL_APART Vec load_part(const T* p, int64_t count) {
    T part[lanes] = {};
    for (int64_t i = 0; i < count; ++i) part[i] = p[i];
    return load(part);
  }
  KERAS_RTRL_FN void store(T* p) const { memcpy(p, &v, sizeof(Raw)); }
  KERAS_RTRL_FN void store(T* p, int64_t count) const {
    if (__builtin_expect(count >= lanes, 1))
      store(p);
    else
      store_part(*this, p, count);
  }
  static KERAS_RTRL_APART void store_part(Vec x, T* p, int64_t count) {
    T part[lanes];
    x.store(part);
    for (int64_t i = 0; i < count; ++i) p[i] = part[i];
  }

  // To an aligned address, past the caches if the machine can do so; call fence() afterwards.
  KERAS_RTRL_FN void stream(float* p) const {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
#elif defined(__AVX__)
    _mm256_stream_ps(p, reinterpret_cast<__m256>(v));
#elif defined(__SSE2__)
    _mm_stream_ps(p, reinterpret_cast<__m128>(v));
#else
    store(p);
#endif
  }
  KERAS_RTRL_FN void stream(double* p) const {
    Vec<float> bits;
    memcpy(&bits.v, &v, sizeof(v));
    bits.stream(reinterpret_cast<float*>(p));
  }

  friend KERAS_RTRL_FN Vec operator+(const Vec& a, const Vec& b) { return a.v + b.v; }
  friend KERAS_RTRL_FN Vec operator-(const Vec& a, const Vec& b) { return a.v - b.v; }
  friend KERAS_RTRL_FN Vec operator*(const Vec& a, const Vec& b) { return a.v * b.v; }
  friend KERAS_RTRL_FN Vec operator/(const Vec& a, const Vec& b) { return a.v / b.v; }
  friend KERAS_RTRL_FN Vec operator-(const Vec& a) { return -a.v; }
  friend KERAS_RTRL_FN Mask operator>(const Vec& a, const Vec& b) { return a.v > b.v; }
  friend KERAS_RTRL_FN Mask operator!=(const Vec& a, const Vec& b) { return a.v != b.v; }
  friend KERAS_RTRL_FN Vec select(Mask c, const Vec& a, const Vec& b) { return c ? a.v : b.v; }
  // Both return `a` if it is NaN.
  friend KERAS_RTRL_FN Vec maximum(const Vec& a, const Vec& b) { return b.v > a.v ? b.v : a.v; }
  friend KERAS_RTRL_FN Vec minimum(const Vec& a, const Vec& b) { return b.v < a.v ? b.v : a.v; }
  // The value is selected, not the product: so the product still goes into a fused sum.
  friend KERAS_RTRL_FN Vec times(const Vec& factor, const Vec& value) {
    return factor * select(factor != Vec(0), value, Vec(0));
  }
};

KERAS_RTRL_FN void fence() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Elementary functions, within a few units in the last place.

// Constants of a type; the polynomials are those of the Cephes library.
template <class T>
struct Constants;
template <>
struct Constants<float> {
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, shift = 12582912.0f;  // 1.5 * 2^23
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float exp_low = -87.3f, exp_high = 88.3f;  // scale stays finite: 2^127 at most
  static constexpr float half_pi[3] = {1.5703125f, 4.837512969970703125e-4f, 7.54978995489188216e-8f};
  static constexpr float sincos_high = 8000.0f;
  static constexpr float exp[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  static constexpr float sin[] = {-1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f};
  static constexpr float cos[] = {2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f};
  static constexpr float tanh_p[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                                     -3.33332819422e-1f};
  static constexpr float tanh_q[] = {1.0f};
};
template <>
struct Constants<double> {
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6,
                          shift = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double exp_low = -708.3, exp_high = 709.4;
  static constexpr double half_pi[3] = {2 * 7.85398125648498535156e-1, 2 * 3.77489470793079817668e-8,
                                        2 * 2.69515142907905952645e-15};
  static constexpr double sincos_high = 1e6;
  static constexpr double exp[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                   1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                   1.0 / 120,        1.0 / 24,        1.0 / 6,        1.0 / 2};
  static constexpr double sin[] = {1.58962301576546568060e-10, -2.50507477628578072866e-8, 2.75573136213857245213e-6,
                                   -1.98412698295895385996e-4, 8.33333333332211858878e-3,  -1.66666666666666307295e-1};
  static constexpr double cos[] = {-1.13585365213876817300e-11, 2.08757008419747316778e-9, -2.75573141792967388112e-7,
                                   2.48015872888517045348e-5,   -1.38888888888730564116e-3, 4.16666666666665929218e-2};
  static constexpr double tanh_p[] = {-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3};
  static constexpr double tanh_q[] = {1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3};
};

template <class T, int n>
KERAS_RTRL_FN Vec<T> polynomial(const Vec<T>& x, const T (&c)[n]) {
  Vec<T> y(c[0]);
#pragma GCC unroll 16
  for (int i = 1; i < n; ++i) y = y * x + Vec<T>(c[i]);
  return y;
}

// e^x = scale (1 + rest).
template <class T>
KERAS_RTRL_FN void exp_parts(const Vec<T>& given, Vec<T>& scale, Vec<T>& rest) {
  typedef Constants<T> C;
  typedef typename Vec<T>::Mask Bits;
  const Vec<T> x = maximum(minimum(given, Vec<T>(C::exp_high)), Vec<T>(C::exp_low));
  const Vec<T> shifted = x * Vec<T>(1.44269504088896340736) + Vec<T>(C::shift);  // n in its lowest bits
  const Vec<T> n = shifted - Vec<T>(C::shift);
  const Vec<T> r = x - n * Vec<T>(C::ln2_high) - n * Vec<T>(C::ln2_low);
  rest = r + r * r * polynomial(r, C::exp);
  Bits bits;
  memcpy(&bits, &shifted.v, sizeof(bits));
  bits = (bits << C::mantissa) + (typename Vec<T>::Integer(C::bias) << C::mantissa);
  memcpy(&scale.v, &bits, sizeof(bits));
}

template <class T>
KERAS_RTRL_FN Vec<T> exp(const Vec<T>& x) {
  Vec<T> scale, rest;
  exp_parts(x, scale, rest);
  return scale * rest + scale;
}

template <class T>
KERAS_RTRL_FN Vec<T> expm1(const Vec<T>& x) {
  Vec<T> scale, rest;
  exp_parts(x, scale, rest);
  return scale * rest + (scale - Vec<T>(1));
}

template <class T>
KERAS_RTRL_FN Vec<T> sigmoid(const Vec<T>& x) {
  return Vec<T>(1) / (Vec<T>(1) + exp(-x));
}

template <class T>
KERAS_RTRL_FN Vec<T> tanh(const Vec<T>& x) {
  typedef Constants<T> C;
  const Vec<T> size = maximum(x, -x), square = x * x;
  const Vec<T> large = Vec<T>(1) - Vec<T>(2) / (exp(size + size) + Vec<T>(1));
  const Vec<T> part = sizeof(C::tanh_q) == sizeof(T)
                          ? polynomial(square, C::tanh_p)
                          : polynomial(square, C::tanh_p) / polynomial(square, C::tanh_q);
  const Vec<T> small = x + x * square * part;
  return select(size > Vec<T>(0.625), select(Vec<T>(0) > x, -large, large), small);
}

template <class T>
KERAS_RTRL_FN Vec<T> sqrt(const Vec<T>& x) {
  Vec<T> y;
  for (int i = 0; i < Vec<T>::lanes; ++i) y.v[i] = __builtin_sqrt(x.v[i]);
  return y;
}

template <class T>
KERAS_RTRL_FN void sincos(const Vec<T>& x, Vec<T>& sine, Vec<T>& cosine) {
  typedef Constants<T> C;
  typedef typename Vec<T>::Mask Bits;
  const Bits far = maximum(x, -x) > Vec<T>(C::sincos_high);
  bool any = false;
  for (int i = 0; i < Vec<T>::lanes; ++i) any |= far[i] != 0;
  if (__builtin_expect(any, 0)) {  // the reduction below would lose digits
    for (int i = 0; i < Vec<T>::lanes; ++i) {
      sine.v[i] = T(__builtin_sin(x.v[i]));
      cosine.v[i] = T(__builtin_cos(x.v[i]));
    }
    return;
  }
  const Vec<T> shifted = x * Vec<T>(0.63661977236758134308) + Vec<T>(C::shift);  // quarter turns in its lowest bits
  const Vec<T> n = shifted - Vec<T>(C::shift);
  const Vec<T> r = ((x - n * Vec<T>(C::half_pi[0])) - n * Vec<T>(C::half_pi[1])) - n * Vec<T>(C::half_pi[2]);
  const Vec<T> z = r * r;
  const Vec<T> s = r + r * z * polynomial(z, C::sin);
  const Vec<T> c = Vec<T>(1) - Vec<T>(0.5) * z + z * z * polynomial(z, C::cos);
  Bits quarter;
  memcpy(&quarter, &shifted.v, sizeof(quarter));
  const Bits odd = (quarter & 1) != 0;
  const Vec<T> sine_size = select(odd, c, s), cosine_size = select(odd, s, c);
  sine = select((quarter & 2) != 0, -sine_size, sine_size);
  cosine = select(((quarter + 1) & 2) != 0, -cosine_size, cosine_size);
}

// Swaps each lane with its neighbour: the two components of a unit.
template <class T>
KERAS_RTRL_FN Vec<T> swapped(const Vec<T>& x) {
  typename Vec<T>::Mask order;
  for (int i = 0; i < Vec<T>::lanes; ++i) order[i] = i ^ 1;
  return __builtin_shuffle(x.v, order);
}

// A state or trace of m components a unit, interleaved in memory, as m vectors of units.

template <class T, int m>
struct Interleaved;

template <class T>
struct Interleaved<T, 1> {
  typedef Vec<T> V;
  static KERAS_RTRL_FN void load(const T* p, int64_t count, V (&x)[1]) { x[0] = V::load(p, count); }
  static KERAS_RTRL_FN void store(T* p, int64_t count, const V (&x)[1]) { x[0].store(p, count); }
};

template <class T>
struct Interleaved<T, 2> {
  typedef Vec<T> V;
  typedef typename V::Mask Bits;
  static KERAS_RTRL_FN void load(const T* p, int64_t count, V (&x)[2]) {
    const V low = V::load(p, 2 * count), high = V::load(p + V::lanes, 2 * count - V::lanes);
    Bits even, odd;
    for (int i = 0; i < V::lanes; ++i) {
      even[i] = 2 * i;
      odd[i] = 2 * i + 1;
    }
    x[0].v = __builtin_shuffle(low.v, high.v, even);
    x[1].v = __builtin_shuffle(low.v, high.v, odd);
  }
  static KERAS_RTRL_FN void store(T* p, int64_t count, const V (&x)[2]) {
    Bits first, second;
    for (int i = 0; i < V::lanes; ++i) {
      first[i] = i / 2 + i % 2 * V::lanes;
      second[i] = first[i] + V::lanes / 2;
    }
    V(__builtin_shuffle(x[0].v, x[1].v, first)).store(p, 2 * count);
    V(__builtin_shuffle(x[0].v, x[1].v, second)).store(p + V::lanes, 2 * count - V::lanes);
  }
};

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CPU_SIMD_H_
