// The C interface of keras_rtrl.h for CUDA devices.
#include <type_traits>

#include "pack.cuh"

#define KERAS_RTRL_STRING_OF(...) #__VA_ARGS__
#define KERAS_RTRL_STRING(...) KERAS_RTRL_STRING_OF(__VA_ARGS__)

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {
namespace {

template <class Cell_, class T_>
struct Kind {
  using Cell = Cell_;
  using T = T_;
};

// Returns call(Kind<the chunk's cell, its type>()), or `otherwise` if there is no such cell or type.
template <class Result, class Call>
Result dispatch(const keras_rtrl_chunk& chunk, Result otherwise, Call call) {
  int cell = 0;
#define KERAS_RTRL_CASE(...)                                                          \
  if (chunk.cell == cell++) {                                                         \
    if (chunk.dtype == KERAS_RTRL_FLOAT32) return call(Kind<__VA_ARGS__, float>());   \
    if (chunk.dtype == KERAS_RTRL_FLOAT64) return call(Kind<__VA_ARGS__, double>());  \
  }
  KERAS_RTRL_FOR_EACH_CELL(KERAS_RTRL_CASE)
#undef KERAS_RTRL_CASE
  return otherwise;
}

template <class T>
const T* in(const void* array) {
  return static_cast<const T*>(array);
}

template <class T>
T* out(void* array) {
  return static_cast<T*>(array);
}

template <class K>
Chunk<typename K::T> chunk_of(const keras_rtrl_chunk& from) {
  static_assert(K::Cell::components <= kMaxComponents && K::Cell::parameters <= kMaxParameters);
  Chunk<typename K::T> chunk = {from.batch, from.time, from.inputs, from.units, {}, from.reset, from.mask};
  for (int p = 0; p < K::Cell::parameters; ++p) chunk.rho[p] = in<typename K::T>(from.rho[p]);
  return chunk;
}

// Offsets of the arrays in a chunk's scratch memory.
struct Scratch {
  int64_t row = 0;
  size_t begin = 0, driven = 0, product = 0, bytes = 0;
};

template <class K>
Scratch scratch_of(const keras_rtrl_chunk& chunk) {
  using Cell = typename K::Cell;
  using T = typename K::T;
  const auto aligned = [](int64_t numbers, int64_t size = sizeof(T)) { return ceil_div(numbers * size, 256) * 256; };
  Scratch scratch;
  scratch.row = ceil_div(chunk.units * Cell::components, kPack<T>) * kPack<T>;
  scratch.driven = scratch.begin + aligned(chunk.batch, sizeof(int64_t));
  scratch.product = scratch.driven + aligned(chunk.batch * chunk.time * Cell::stored * scratch.row);
  scratch.bytes = scratch.product + aligned(chunk.batch * chunk.units * Cell::components * Cell::components);
  return scratch;
}

// The suffix scan into scratch memory, then S = product S0 + x' driven.
template <class K>
int trace_step(const keras_rtrl_chunk& from, void* stream, void* memory, const void* x, const void* state0,
               const void* saved, const void* const* states, const void* S0, const void* r0, void* S, void* r) {
  using Cell = typename K::Cell;
  using T = typename K::T;
  const Scratch scratch = scratch_of<K>(from);
  char* const base = static_cast<char*>(memory);
  T* const driven = out<T>(base + scratch.driven);
  T* const product = out<T>(base + scratch.product);
  int64_t* const begin = out<int64_t>(base + scratch.begin);
  const Chunk<T> chunk = chunk_of<K>(from);

  SuffixScan<T> scan = {chunk, in<T>(state0), in<T>(saved), {}, in<T>(r0), scratch.row, driven, product, out<T>(r),
                        begin};
  for (int i = 0; i < Cell::components; ++i) scan.states[i] = in<T>(states[i]);
  if (const int error = suffix<Cell, T>(scan, stream)) return error;

  const int64_t columns = chunk.units * Cell::components;
  const bool whole = rows_are_whole(columns, in<T>(S)) && (!S0 || rows_are_whole(columns, in<T>(S0)));
  const TraceStep<T> step = {chunk, in<T>(x), driven, product, in<T>(S0), begin, scratch.row, whole, out<T>(S)};
  return trace<Traces<Cell>, T>(step, stream);
}

// start . S0 and start . r0, added to d_kernel and d_rho.
template <class K>
int contract_step(const keras_rtrl_chunk& from, void* stream, const void* start, const void* S0, const void* r0,
                  void* d_kernel, void* d_rho) {
  using T = typename K::T;
  const int64_t columns = from.units * K::Cell::components;
  Sweep<T> sweep = {};
  sweep.chunk = chunk_of<K>(from);
  sweep.S_rows = from.inputs;
  sweep.K = 1;
  sweep.whole = rows_are_whole(columns, in<T>(S0)) && rows_are_whole(columns, in<T>(r0)) &&
                rows_are_whole(columns, in<T>(start));
  sweep.cotangents = in<T>(start);
  // Not written to: this sweep advances nothing.
  sweep.S = const_cast<T*>(in<T>(S0));
  sweep.r = const_cast<T*>(in<T>(r0));
  sweep.d_kernel = out<T>(d_kernel);
  sweep.d_rho = out<T>(d_rho);
  return contract<Traces<typename K::Cell>, T>(sweep, stream);
}

}  // namespace

extern "C" {

size_t keras_rtrl_cuda_scratch(const keras_rtrl_chunk* chunk) {
  return dispatch(*chunk, size_t(0), [&](auto kind) { return scratch_of<decltype(kind)>(*chunk).bytes; });
}

int keras_rtrl_cuda_forward(const keras_rtrl_chunk* chunk, void* stream, const void* state0, const void* u, void* saved,
                            void* const* states) {
  return dispatch(*chunk, int(cudaErrorInvalidValue), [&](auto kind) {
    using K = decltype(kind);
    using T = typename K::T;
    ForwardScan<T> scan = {chunk_of<K>(*chunk), in<T>(state0), in<T>(u), out<T>(saved), {}};
    for (int i = 0; i < K::Cell::components; ++i) scan.states[i] = out<T>(states[i]);
    return forward<typename K::Cell, T>(scan, stream);
  });
}

int keras_rtrl_cuda_adjoint(const keras_rtrl_chunk* chunk, void* stream, const void* state0, const void* saved,
                            const void* const* states, const void* const* cotangents, int instant, void* du,
                            void* d_rho, void* start, uint8_t* used) {
  if (const size_t size = chunk->batch * chunk->time)
    if (const int error = cudaMemsetAsync(used, 0, size, static_cast<cudaStream_t>(stream))) return error;
  return dispatch(*chunk, int(cudaErrorInvalidValue), [&](auto kind) {
    using K = decltype(kind);
    using T = typename K::T;
    AdjointScan<T> scan = {chunk_of<K>(*chunk), in<T>(state0), in<T>(saved), {},           {},
                           instant != 0,        out<T>(du),    out<T>(d_rho), out<T>(start), used};
    for (int i = 0; i < K::Cell::components; ++i) {
      scan.states[i] = in<T>(states[i]);
      scan.cotangents[i] = cotangents ? in<T>(cotangents[i]) : nullptr;
    }
    return adjoint<typename K::Cell, T>(scan, stream);
  });
}

int keras_rtrl_cuda_trace(const keras_rtrl_chunk* chunk, void* stream, void* scratch, const void* x, const void* state0,
                          const void* saved, const void* const* states, const void* S0, const void* r0, void* S,
                          void* r) {
  return dispatch(*chunk, int(cudaErrorInvalidValue), [&](auto kind) {
    return trace_step<decltype(kind)>(*chunk, stream, scratch, x, state0, saved, states, S0, r0, S, r);
  });
}

int keras_rtrl_cuda_contract(const keras_rtrl_chunk* chunk, void* stream, const void* start, const void* S0,
                             const void* r0, void* d_kernel, void* d_rho) {
  return dispatch(*chunk, int(cudaErrorInvalidValue), [&](auto kind) {
    return contract_step<decltype(kind)>(*chunk, stream, start, S0, r0, d_kernel, d_rho);
  });
}

int keras_rtrl_cuda_streaming_forward(const keras_rtrl_chunk* chunk, void* stream, const void* x, const void* kernel,
                                      const void* state0, void* state, void* local) {
  return dispatch(*chunk, int(cudaErrorInvalidValue), [&](auto kind) {
    using K = decltype(kind);
    using T = typename K::T;
    const StreamingStep<T> step = {chunk_of<K>(*chunk), in<T>(x), in<T>(kernel), in<T>(state0), out<T>(state),
                                   out<T>(local)};
    return streaming_forward<typename K::Cell, T>(step, stream);
  });
}

int keras_rtrl_cuda_streaming_update(const keras_rtrl_chunk* chunk, void* stream, int64_t K, const void* x,
                                     const void* local, const void* cotangents, void* S, void* r, void* d_kernel,
                                     void* d_rho) {
  return dispatch(*chunk, int(cudaErrorInvalidValue), [&](auto kind) {
    using Kind = decltype(kind);
    using T = typename Kind::T;
    const int64_t columns = chunk->units * Kind::Cell::components;
    const bool whole = rows_are_whole(columns, in<T>(local)) && rows_are_whole(columns, in<T>(cotangents)) &&
                       rows_are_whole(columns, in<T>(S)) && rows_are_whole(columns, in<T>(r));
    const Sweep<T> sweep = {chunk_of<Kind>(*chunk), chunk->inputs,     K,         whole,     in<T>(x),
                            in<T>(local),           in<T>(cotangents), out<T>(S), out<T>(r), out<T>(d_kernel),
                            out<T>(d_rho)};
    return advance<Traces<typename Kind::Cell>, T>(sweep, stream);
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
