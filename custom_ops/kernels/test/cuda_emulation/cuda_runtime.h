// A stand-in for CUDA's header: the CUDA sources compiled as C++ run on the CPU, in host memory.
//
// It shows the kernels' logic (indices, tails, barriers, orders of sums), not the hardware: nothing of timing, memory
// alignment, the device's arithmetic or races between warps. Blocks run one after another. The threads of a block run
// as coroutines, from barrier to barrier, in ascending order or, after cuda_emulation_reverse(1), in descending order:
// a missing barrier gives another result in one of the two. Asynchronous copies are made when they are waited for.
#ifndef KERAS_RTRL_TEST_CUDA_EMULATION_H_
#define KERAS_RTRL_TEST_CUDA_EMULATION_H_

#include <stdint.h>
#include <string.h>

#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Blocks run one at a time, so one copy is enough.
#define __shared__ static
#define CUDART_VERSION 0
#define __CUDA_ARCH_LIST__ emulation

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct float4 {
  float x, y, z, w;
};
struct double2 {
  double x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
template <class T>
void __stwb(T* to, T value) {
  memcpy(to, &value, sizeof(T));  // `to` points to an array of numbers, not to a T
}

extern dim3 gridDim, blockDim, blockIdx, threadIdx;
void __syncthreads();

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t) {
  memset(to, value, size);
  return cudaSuccess;
}

cudaError_t cuda_emulation_launch(const cudaLaunchConfig_t& config, const std::function<void()>& thread);
extern "C" void cuda_emulation_reverse(int on);

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  return cuda_emulation_launch(*config, [&] { kernel(arguments...); });
}

#endif  // KERAS_RTRL_TEST_CUDA_EMULATION_H_
