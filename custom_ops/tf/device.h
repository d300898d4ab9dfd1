// The devices of the kernels: the same calls on TensorFlow's worker threads, or in the order of its CUDA stream.
#ifndef KERAS_RTRL_TF_DEVICE_H_
#define KERAS_RTRL_TF_DEVICE_H_

#include <cstring>

#include "../kernels/keras_rtrl.h"
#include "tensorflow/core/framework/op_kernel.h"

#ifdef KERAS_RTRL_CUDA
#include <cuda_runtime_api.h>

#include "xla/stream_executor/stream.h"
#endif

namespace keras_rtrl {

class Cpu {
 public:
  explicit Cpu(tensorflow::OpKernelContext* ctx) {
    const auto* workers = ctx->device()->tensorflow_cpu_worker_threads();
    pool_ = {workers->workers, workers->num_threads, Run};
  }

  absl::Status status() const { return absl::OkStatus(); }

  void Copy(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }

  // total[i] = sum over streams of by_stream[stream, i], in the streams' order.
  template <class T>
  void SumStreams(const T* by_stream, int64_t streams, int64_t size, T* total) {
    std::fill_n(total, size, T(0));
    for (int64_t b = 0; b < streams; ++b) {
      for (int64_t i = 0; i < size; ++i) total[i] += by_stream[b * size + i];
    }
  }

#define KERAS_RTRL_CALL(NAME, FUNCTION)                                 \
  void NAME(const keras_rtrl_##FUNCTION##_arguments<void>& arguments) { \
    keras_rtrl_##FUNCTION(&arguments, &pool_);                          \
  }
  KERAS_RTRL_CALL(Forward, forward)
  KERAS_RTRL_CALL(Adjoint, adjoint)
  KERAS_RTRL_CALL(Trace, trace)
  KERAS_RTRL_CALL(Contract, contract)
  KERAS_RTRL_CALL(StreamingForward, streaming_forward)
  KERAS_RTRL_CALL(StreamingUpdate, streaming_update)
#undef KERAS_RTRL_CALL

 private:
  static void Run(void* workers, int64_t items, int64_t cost, void (*task)(void*, int64_t, int64_t), void* argument) {
    if (items * cost < kWorthThreads) return task(argument, 0, items);
    // One by one: TensorFlow's own choice of blocks leaves few items unevenly shared out.
    static_cast<tensorflow::thread::ThreadPool*>(workers)->ParallelFor(
        items, tensorflow::thread::ThreadPool::SchedulingParams::Fixed(1),
        [task, argument](int64_t begin, int64_t end) { task(argument, begin, end); });
  }

  static constexpr int64_t kWorthThreads = 30000;  // nanoseconds, several times what it takes to wake a thread

  keras_rtrl_pool pool_;
};

#ifdef KERAS_RTRL_CUDA

// sum_streams.cu
int SumStreamsOnDevice(cudaStream_t stream, const float* by_stream, int64_t streams, int64_t size, float* total);
int SumStreamsOnDevice(cudaStream_t stream, const double* by_stream, int64_t streams, int64_t size, double* total);

class Gpu {
 public:
  explicit Gpu(tensorflow::OpKernelContext* ctx)
      : ctx_(ctx),
        stream_(static_cast<cudaStream_t>(ctx->op_device_context()->stream()->platform_specific_handle().stream)) {}

  absl::Status status() const { return status_; }

  void Copy(void* to, const void* from, size_t bytes) {
    if (bytes > 0) Keep(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
  }

  template <class T>
  void SumStreams(const T* by_stream, int64_t streams, int64_t size, T* total) {
    Keep(SumStreamsOnDevice(stream_, by_stream, streams, size, total));
  }

#define KERAS_RTRL_CALL(NAME, FUNCTION)                                 \
  void NAME(const keras_rtrl_##FUNCTION##_arguments<void>& arguments) { \
    Keep(keras_rtrl_cuda_##FUNCTION(&arguments, stream_));              \
  }
  KERAS_RTRL_CALL(Forward, forward)
  KERAS_RTRL_CALL(Adjoint, adjoint)
  KERAS_RTRL_CALL(Contract, contract)
  KERAS_RTRL_CALL(StreamingForward, streaming_forward)
  KERAS_RTRL_CALL(StreamingUpdate, streaming_update)
#undef KERAS_RTRL_CALL

  void Trace(const keras_rtrl_trace_arguments<void>& arguments) {
    tensorflow::Tensor scratch;
    const tensorflow::TensorShape bytes({static_cast<int64_t>(keras_rtrl_cuda_scratch(&arguments))});
    status_.Update(ctx_->allocate_temp(tensorflow::DT_UINT8, bytes, &scratch));
    if (status_.ok()) Keep(keras_rtrl_cuda_trace(&arguments, scratch.data(), stream_));
  }

 private:
  void Keep(int error) {
    if (error == 0) return;
    const auto* text = cudaGetErrorString(static_cast<cudaError_t>(error));
    status_.Update(absl::InternalError(absl::StrCat("CUDA error ", error, ": ", text)));
  }

  tensorflow::OpKernelContext* ctx_;
  cudaStream_t stream_;
  absl::Status status_;
};

#endif  // KERAS_RTRL_CUDA

}  // namespace keras_rtrl

#endif  // KERAS_RTRL_TF_DEVICE_H_
