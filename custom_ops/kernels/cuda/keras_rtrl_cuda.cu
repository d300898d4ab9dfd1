// The C interface of keras_rtrl.h for CUDA devices.
#include "pack.cuh"

#define KERAS_RTRL_STRING_OF(...) #__VA_ARGS__
#define KERAS_RTRL_STRING(...) KERAS_RTRL_STRING_OF(__VA_ARGS__)

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {
namespace {

template <class Cell_>
struct Kind {
  using Cell = Cell_;
  static_assert(Cell::components <= KERAS_RTRL_MAX_COMPONENTS && Cell::parameters <= KERAS_RTRL_MAX_PARAMETERS,
                "keras_rtrl.h has too low a maximum for this cell");
};

// Returns call(Kind<the cell>(), the arguments with their type), or `otherwise` if there is no such cell or type.
template <class Result, template <class> class Arguments, class Call>
Result dispatch(const Arguments<void>& arguments, Result otherwise, Call call) {
  const keras_rtrl_chunk<void>& chunk = arguments.chunk;
  int cell = 0;
#define KERAS_RTRL_CASE(...)                                                                           \
  if (chunk.cell == cell++) {                                                                          \
    if (chunk.dtype == KERAS_RTRL_FLOAT32) return call(Kind<__VA_ARGS__>(), typed<float>(arguments));  \
    if (chunk.dtype == KERAS_RTRL_FLOAT64) return call(Kind<__VA_ARGS__>(), typed<double>(arguments)); \
  }
  KERAS_RTRL_FOR_EACH_CELL(KERAS_RTRL_CASE)
#undef KERAS_RTRL_CASE
  return otherwise;
}

// Offsets of the arrays in a chunk's scratch memory.
struct Scratch {
  int64_t row = 0;
  size_t begin = 0, driven = 0, product = 0, bytes = 0;
};

template <class Cell, class T>
Scratch scratch_of(const keras_rtrl_chunk<T>& chunk) {
  const auto aligned = [](int64_t numbers, int64_t size = sizeof(T)) { return ceil_div(numbers * size, 256) * 256; };
  Scratch scratch;
  scratch.row = ceil_div(chunk.units * Cell::components, kPack<T>) * kPack<T>;
  scratch.driven = scratch.begin + aligned(chunk.batch, sizeof(int64_t));
  scratch.product = scratch.driven + aligned(chunk.batch * chunk.time * Cell::stored * scratch.row);
  scratch.bytes = scratch.product + aligned(chunk.batch * chunk.units * Cell::components * Cell::components);
  return scratch;
}

template <class Cell, class T>
int trace_step(const keras_rtrl_trace_arguments<T>& arguments, void* memory, void* stream) {
  const Scratch scratch = scratch_of<Cell>(arguments.chunk);
  char* const base = static_cast<char*>(memory);
  const int64_t columns = arguments.chunk.units * Cell::components;
  TraceStep<T> step = {arguments};
  step.driven = reinterpret_cast<T*>(base + scratch.driven);
  step.product = reinterpret_cast<T*>(base + scratch.product);
  step.begin = reinterpret_cast<int64_t*>(base + scratch.begin);
  step.row = scratch.row;
  step.whole = rows_are_whole(columns, step.S) && (!step.S0 || rows_are_whole(columns, step.S0));
  if (const int error = suffix<Cell, T>(step, stream)) return error;
  return trace<Traces<Cell>, T>(step, stream);
}

// start . S0 and start . r0, added to d_kernel and d_rho.
template <class Cell, class T>
int contract_step(const keras_rtrl_contract_arguments<T>& arguments, void* stream) {
  const int64_t columns = arguments.chunk.units * Cell::components;
  Sweep<T> sweep = {};
  // Not written to: this sweep advances nothing.
  sweep.S = const_cast<T*>(arguments.S0);
  sweep.r = const_cast<T*>(arguments.r0);
  sweep.cotangents = arguments.start;
  sweep.K = 1;
  sweep.chunk = arguments.chunk;
  sweep.d_kernel = arguments.d_kernel;
  sweep.d_rho = arguments.d_rho;
  sweep.whole = rows_are_whole(columns, sweep.S) && rows_are_whole(columns, sweep.r) &&
                rows_are_whole(columns, sweep.cotangents);
  return contract<Traces<Cell>, T>(sweep, stream);
}

template <class Cell, class T>
int update_step(const keras_rtrl_streaming_update_arguments<T>& arguments, void* stream) {
  const int64_t columns = arguments.chunk.units * Cell::components;
  Sweep<T> sweep = {arguments};
  sweep.whole = rows_are_whole(columns, sweep.S) && rows_are_whole(columns, sweep.r) &&
                rows_are_whole(columns, sweep.local) && rows_are_whole(columns, sweep.cotangents);
  return advance<Traces<Cell>, T>(sweep, stream);
}

}  // namespace

extern "C" {

size_t keras_rtrl_cuda_scratch(const keras_rtrl_trace_arguments<void>* arguments) {
  return dispatch(*arguments, size_t(0), [](auto kind, const auto& typed) {
    return scratch_of<typename decltype(kind)::Cell>(typed.chunk).bytes;
  });
}

int keras_rtrl_cuda_forward(const keras_rtrl_forward_arguments<void>* arguments, void* stream) {
  return dispatch(*arguments, int(cudaErrorInvalidValue), [&](auto kind, const auto& typed) {
    return forward<typename decltype(kind)::Cell>(typed, stream);
  });
}

int keras_rtrl_cuda_adjoint(const keras_rtrl_adjoint_arguments<void>* arguments, void* stream) {
  if (const size_t size = arguments->chunk.batch * arguments->chunk.time)
    if (const int error = cudaMemsetAsync(arguments->used, 0, size, static_cast<cudaStream_t>(stream))) return error;
  return dispatch(*arguments, int(cudaErrorInvalidValue), [&](auto kind, const auto& typed) {
    return adjoint<typename decltype(kind)::Cell>(typed, stream);
  });
}

int keras_rtrl_cuda_trace(const keras_rtrl_trace_arguments<void>* arguments, void* scratch, void* stream) {
  return dispatch(*arguments, int(cudaErrorInvalidValue), [&](auto kind, const auto& typed) {
    return trace_step<typename decltype(kind)::Cell>(typed, scratch, stream);
  });
}

int keras_rtrl_cuda_contract(const keras_rtrl_contract_arguments<void>* arguments, void* stream) {
  return dispatch(*arguments, int(cudaErrorInvalidValue), [&](auto kind, const auto& typed) {
    return contract_step<typename decltype(kind)::Cell>(typed, stream);
  });
}

int keras_rtrl_cuda_streaming_forward(const keras_rtrl_streaming_forward_arguments<void>* arguments, void* stream) {
  return dispatch(*arguments, int(cudaErrorInvalidValue), [&](auto kind, const auto& typed) {
    return streaming_forward<typename decltype(kind)::Cell>(typed, stream);
  });
}

int keras_rtrl_cuda_streaming_update(const keras_rtrl_streaming_update_arguments<void>* arguments, void* stream) {
  return dispatch(*arguments, int(cudaErrorInvalidValue), [&](auto kind, const auto& typed) {
    return update_step<typename decltype(kind)::Cell>(typed, stream);
  });
}

const char* keras_rtrl_cuda_architectures(void) {
#ifdef KERAS_RTRL_CUDA_ARCHITECTURES
  return KERAS_RTRL_CUDA_ARCHITECTURES;
#else
  return KERAS_RTRL_STRING(__CUDA_ARCH_LIST__);
#endif
}

int keras_rtrl_cuda_version(void) { return CUDART_VERSION; }

}  // extern "C"

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl
