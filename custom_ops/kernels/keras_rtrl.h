// The kernels' C interface: exact RTRL of an element-wise cell over chunks, and step by step. No TensorFlow in here.
//
// B streams, T steps, D inputs, N units; a cell has G gates (G' of them with stored traces), m state components a unit
// and P per-unit parameters. All arrays are dense and row-major, float or double as `dtype` says, on the host for the
// functions that take a pool and on the device for those that take a CUDA stream. Sums over streams and steps run in a
// fixed order: results repeat bit for bit, for any number of threads. B, T, D, N and the number of cotangents may be 0:
// arrays without elements are neither read nor written and may be NULL, and empty sums are 0. Other arguments are not
// checked.
//
// A step before a reset contributes nothing, nor does a factor of an adjoint that is 0, even if it is NaN or infinite.
#ifndef KERAS_RTRL_H_
#define KERAS_RTRL_H_

#include <stddef.h>
#include <stdint.h>

// The arguments of a function are one struct, filled by name. The order of its fields is that of the op's inputs and
// then of its outputs; the chunk holds the last inputs: rho, reset and mask. The functions take structs of pointers
// to void, and `dtype` says to what. C++ has them as templates: behind this interface (typed.h) arrays are typed.
#ifdef __cplusplus
#define KERAS_RTRL_STRUCT template <class Number> struct
#define KERAS_RTRL_OF(TYPE) <TYPE>
#else
#define KERAS_RTRL_STRUCT struct
#define KERAS_RTRL_OF(TYPE)
#define Number void
#endif

enum { KERAS_RTRL_MAX_COMPONENTS = 2, KERAS_RTRL_MAX_PARAMETERS = 4 };  // of all cells

// What all calls on a chunk have in common.
KERAS_RTRL_STRUCT keras_rtrl_chunk {
  int cell;
  int dtype;
  int64_t batch, time, inputs, units;
  const Number* rho[KERAS_RTRL_MAX_PARAMETERS];  // P per-unit parameters, [N] each
  const uint8_t* reset;                          // [B, T], not 0 if a new episode starts with x_t; NULL: no resets
  const uint8_t* mask;                           // [B, T], 0 if x_t contributes nothing; NULL: no masked steps
};

// Forward scan: all T steps of the recurrence.
KERAS_RTRL_STRUCT keras_rtrl_forward_arguments {
  const Number* state0;  // [B, N, m]
  const Number* u;       // [B, T, G, N], pre-activations
  struct keras_rtrl_chunk KERAS_RTRL_OF(Number) chunk;
  Number* saved;                              // [B, T, G, N], what the other functions need of u; may be u itself
  Number* states[KERAS_RTRL_MAX_COMPONENTS];  // m arrays [B, T, N]
};

// Adjoint scan, l_t = e_t + J_{t+1}' l_{t+1} (rtrl-math.md, section 3).
KERAS_RTRL_STRUCT keras_rtrl_adjoint_arguments {
  const Number* state0;                                 // [B, N, m]
  const Number* saved;                                  // [B, T, G, N]
  const Number* states[KERAS_RTRL_MAX_COMPONENTS];      // m arrays [B, T, N]
  const Number* cotangents[KERAS_RTRL_MAX_COMPONENTS];  // m arrays [B, T, N] or NULL for zeros
  struct keras_rtrl_chunk KERAS_RTRL_OF(Number) chunk;
  int instant;    // not 0: l_t = e_t
  Number* du;     // [B, T, G, N] = l_t . a_t; may be `saved` itself
  Number* d_rho;  // [B, P, N] = sum_t l_t . v_t
  Number* start;  // [B, N, m] = J_1' l_1, zeros if `instant`
  uint8_t* used;  // [B, T]: 1 if some l_t is not 0 and the step is not masked. Else du is 0: leave its x_t out of
                  // x' du, since it may be NaN.
};

// Chunk trace step, S_T = (Q_1 J_1) S_0 + sum_t (Q_t a_t) (x) x_t, and r_T in the same way. S_0 is read and S_T written
// once.
KERAS_RTRL_STRUCT keras_rtrl_trace_arguments {
  const Number* state0;                             // [B, N, m]
  const Number* x;                                  // [B, T, D], numbers at masked steps too
  const Number* saved;                              // [B, T, G, N]
  const Number* states[KERAS_RTRL_MAX_COMPONENTS];  // m arrays [B, T, N]
  const Number* S0;                                 // [B, D, G', N, m], NULL for zeros
  const Number* r0;                                 // [B, P, N, m], NULL for zeros
  struct keras_rtrl_chunk KERAS_RTRL_OF(Number) chunk;
  Number* S;  // as S0, may be S0 itself
  Number* r;  // as r0, may be r0 itself
};

// The gradient from before the chunk, for rotated gates too: d_kernel += sum_b start . S_0, d_rho += sum_b start . r_0.
KERAS_RTRL_STRUCT keras_rtrl_contract_arguments {
  const Number* start;  // [B, N, m]
  const Number* S0;     // [B, D, G', N, m]
  const Number* r0;     // [B, P, N, m]
  struct keras_rtrl_chunk KERAS_RTRL_OF(Number) chunk;
  Number* d_kernel;  // [D, G, N], added to
  Number* d_rho;     // [P, N], added to
};

// Streaming, one step (chunk.time is 1, chunk.mask NULL).
KERAS_RTRL_STRUCT keras_rtrl_streaming_forward_arguments {
  const Number* state0;  // [B, N, m]
  const Number* x;       // [B, D]
  const Number* kernel;  // [D, G, N]
  struct keras_rtrl_chunk KERAS_RTRL_OF(Number) chunk;
  Number* state;  // [B, N, m], may be state0 itself
  Number* local;  // [B, m m + G' m + P m, N]: J (row by row), then a of each stored gate, then v of each parameter,
                  // resets applied
};

// Trace update and K gradients in one pass: S = J S + a (x) x, r = J r + v in place, then sum_b e . S and e . r.
KERAS_RTRL_STRUCT keras_rtrl_streaming_update_arguments {
  Number* S;                 // [B, D, G', N, m]
  Number* r;                 // [B, P, N, m]
  const Number* x;           // [B, D]
  const Number* local;       // as streaming_forward leaves it
  const Number* cotangents;  // [K, B, N, m]
  int64_t K;
  struct keras_rtrl_chunk KERAS_RTRL_OF(Number) chunk;
  Number* d_kernel;  // [K, D, G, N]
  Number* d_rho;     // [K, P, N]
};

#undef KERAS_RTRL_STRUCT
#ifndef __cplusplus
#undef Number
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { KERAS_RTRL_FLOAT32 = 0, KERAS_RTRL_FLOAT64 = 1 };

typedef struct {
  const char* name;
  int gates;       // G
  int stored;      // G': the traces of the first G' gates are stored, the others are rotations of them
  int components;  // m
  int parameters;  // P
} keras_rtrl_cell;

// The number of cells, one cell, and a cell's number by its name, -1 if there is none.
int keras_rtrl_cells(void);
const keras_rtrl_cell* keras_rtrl_cell_info(int cell);
int keras_rtrl_find_cell(const char* name);

// A thread pool to borrow: `run` calls task(argument, begin, end) over ranges that cover [0, items) once, and returns
// when all are done; `cost` estimates one item in nanoseconds. A NULL pool runs everything on the calling thread.
typedef struct {
  void* handle;
  int threads;
  void (*run)(void* handle, int64_t items, int64_t cost, void (*task)(void*, int64_t, int64_t), void* argument);
} keras_rtrl_pool;

// "baseline", "avx2" or "avx512": the instructions that the CPU kernels use here.
const char* keras_rtrl_simd_level(void);
// Uses another level from now on; returns 0 if this machine or build does not have it. For tests.
int keras_rtrl_set_simd_level(const char* level);

void keras_rtrl_forward(const struct keras_rtrl_forward_arguments KERAS_RTRL_OF(void)* arguments,
                        const keras_rtrl_pool* pool);
void keras_rtrl_adjoint(const struct keras_rtrl_adjoint_arguments KERAS_RTRL_OF(void)* arguments,
                        const keras_rtrl_pool* pool);
void keras_rtrl_trace(const struct keras_rtrl_trace_arguments KERAS_RTRL_OF(void)* arguments,
                      const keras_rtrl_pool* pool);
void keras_rtrl_contract(const struct keras_rtrl_contract_arguments KERAS_RTRL_OF(void)* arguments,
                         const keras_rtrl_pool* pool);
void keras_rtrl_streaming_forward(const struct keras_rtrl_streaming_forward_arguments KERAS_RTRL_OF(void)* arguments,
                                  const keras_rtrl_pool* pool);
void keras_rtrl_streaming_update(const struct keras_rtrl_streaming_update_arguments KERAS_RTRL_OF(void)* arguments,
                                 const keras_rtrl_pool* pool);

// The same on a CUDA device, in the order of a stream (a CUstream or cudaStream_t), without synchronising. `scratch` is
// device memory of keras_rtrl_cuda_scratch(arguments) bytes. Each returns 0, or the cudaError_t of its launches.
size_t keras_rtrl_cuda_scratch(const struct keras_rtrl_trace_arguments KERAS_RTRL_OF(void)* arguments);
int keras_rtrl_cuda_forward(const struct keras_rtrl_forward_arguments KERAS_RTRL_OF(void)* arguments, void* stream);
int keras_rtrl_cuda_adjoint(const struct keras_rtrl_adjoint_arguments KERAS_RTRL_OF(void)* arguments, void* stream);
int keras_rtrl_cuda_trace(const struct keras_rtrl_trace_arguments KERAS_RTRL_OF(void)* arguments, void* scratch,
                          void* stream);
int keras_rtrl_cuda_contract(const struct keras_rtrl_contract_arguments KERAS_RTRL_OF(void)* arguments, void* stream);
int keras_rtrl_cuda_streaming_forward(
    const struct keras_rtrl_streaming_forward_arguments KERAS_RTRL_OF(void)* arguments, void* stream);
int keras_rtrl_cuda_streaming_update(const struct keras_rtrl_streaming_update_arguments KERAS_RTRL_OF(void)* arguments,
                                     void* stream);
// "sm_75 ... ptx_120", the architectures compiled in.
const char* keras_rtrl_cuda_architectures(void);
// The CUDA version compiled with, 13000 for 13.0.
int keras_rtrl_cuda_version(void);

#ifdef __cplusplus
}
#endif

#endif  // KERAS_RTRL_H_
