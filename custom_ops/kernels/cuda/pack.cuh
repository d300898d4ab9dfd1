// Sixteen bytes of numbers, moved at once if they are aligned.
#ifndef KERAS_RTRL_CUDA_PACK_CUH_
#define KERAS_RTRL_CUDA_PACK_CUH_

#include "launch.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

template <class T>
constexpr int kPack = 16 / sizeof(T);

template <class T, int W>
struct alignas(W * sizeof(T)) Pack {
  T v[W];
};

// Whole: the address is aligned to the pack.
template <int W, bool Whole, class T>
__device__ __forceinline__ Pack<T, W> read(const T* from) {
  Pack<T, W> pack;
  if constexpr (Whole) {
    pack = *reinterpret_cast<const Pack<T, W>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < W; ++i) pack.v[i] = from[i];
  }
  return pack;
}

// To global memory. The stores are explicit, since the compiler would split the assignment of a pack.
__device__ __forceinline__ void store_pack(float* to, const Pack<float, 4>& pack) {
  __stwb(reinterpret_cast<float4*>(to), make_float4(pack.v[0], pack.v[1], pack.v[2], pack.v[3]));
}
__device__ __forceinline__ void store_pack(double* to, const Pack<double, 2>& pack) {
  __stwb(reinterpret_cast<double2*>(to), make_double2(pack.v[0], pack.v[1]));
}

template <bool Whole, int W, class T>
__device__ __forceinline__ void write(T* to, const Pack<T, W>& pack) {
  if constexpr (Whole) {
    store_pack(to, pack);
  } else {
#pragma unroll
    for (int i = 0; i < W; ++i) to[i] = pack.v[i];
  }
}

// `whole`: the address is aligned and all W numbers are there; else those beyond `left` are not, and read as zeros.
template <int W, class T>
__device__ __forceinline__ Pack<T, W> load(const T* from, int64_t left, bool whole) {
  if (whole) return read<W, true>(from);
  Pack<T, W> pack;
#pragma unroll
  for (int i = 0; i < W; ++i) pack.v[i] = i < left ? from[i] : T(0);
  return pack;
}

template <int W, class T>
__device__ __forceinline__ void store(T* to, const Pack<T, W>& pack, int64_t left, bool whole) {
  if (whole) return write<true>(to, pack);
#pragma unroll
  for (int i = 0; i < W; ++i)
    if (i < left) to[i] = pack.v[i];
}

// Whether every row of N m numbers from `array` on is made of aligned packs.
template <class T>
bool rows_are_whole(int64_t row, const T* array) {
  return row % kPack<T> == 0 && reinterpret_cast<uintptr_t>(array) % 16 == 0;
}

// How many gates' traces come of those of one stored gate.
template <class C>
constexpr int kOutputs = C::stored == C::gates ? 1 : C::gates;

// sums[output] += e . S for a unit's traces S [m] of one stored gate.
template <class C, class T>
__device__ __forceinline__ void add_contraction(const T (&e)[C::components], const T (&S)[C::components],
                                                T (&sums)[kOutputs<C>]) {
  static_assert(C::stored == C::gates || C::stored == 1, "rotations of several stored gates are not provided for");
  if constexpr (C::stored == C::gates) {
#pragma unroll
    for (int i = 0; i < C::components; ++i) sums[0] += times(e[i], S[i]);
  } else {
    T stored[1][C::components], all[C::gates][C::components];
#pragma unroll
    for (int i = 0; i < C::components; ++i) stored[0][i] = S[i];
    C::expand(stored, all);
#pragma unroll
    for (int g = 0; g < C::gates; ++g)
#pragma unroll
      for (int i = 0; i < C::components; ++i) sums[g] += times(e[i], all[g][i]);
  }
}

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CUDA_PACK_CUH_
