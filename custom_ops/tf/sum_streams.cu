// Sums over streams, in the streams' order.
#include <cstdint>

namespace keras_rtrl {
namespace {

template <class T>
__global__ void Sum(const T* by_stream, int64_t streams, int64_t size, T* total) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= size) return;
  T sum = 0;
  for (int64_t b = 0; b < streams; ++b) sum += by_stream[b * size + i];
  total[i] = sum;
}

template <class T>
int Launch(cudaStream_t stream, const T* by_stream, int64_t streams, int64_t size, T* total) {
  if (size == 0) return 0;
  Sum<<<static_cast<unsigned>((size + 255) / 256), 256, 0, stream>>>(by_stream, streams, size, total);
  return cudaGetLastError();
}

}  // namespace

int SumStreamsOnDevice(cudaStream_t stream, const float* by_stream, int64_t streams, int64_t size, float* total) {
  return Launch(stream, by_stream, streams, size, total);
}

int SumStreamsOnDevice(cudaStream_t stream, const double* by_stream, int64_t streams, int64_t size, double* total) {
  return Launch(stream, by_stream, streams, size, total);
}

}  // namespace keras_rtrl
