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

// The common arguments of all calls on a chunk.
typedef struct {
  int cell;
  int dtype;
  int64_t batch, time, inputs, units;
  const void* const* rho;  // P per-unit parameters, [N] each
  const uint8_t* reset;    // [B, T], not 0 if a new episode starts with x_t; NULL: no resets
  const uint8_t* mask;     // [B, T], 0 if x_t contributes nothing; NULL: no masked steps
} keras_rtrl_chunk;

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

// Forward scan: all T steps of the recurrence.
//   state0 [B, N, m]; u [B, T, G, N], pre-activations
//   -> saved [B, T, G, N], the values that the other functions need of u (may be u itself); states, m arrays [B, T, N]
void keras_rtrl_forward(const keras_rtrl_chunk* chunk, const keras_rtrl_pool* pool, const void* state0, const void* u,
                        void* saved, void* const* states);

// Adjoint scan, l_t = e_t + J_{t+1}' l_{t+1} (rtrl-math.md, section 3); with `instant`, l_t = e_t.
//   cotangents, m arrays [B, T, N] or NULL for zeros
//   -> du [B, T, G, N] = l_t . a_t (may be `saved` itself); d_rho [B, P, N] = sum_t l_t . v_t;
//      start [B, N, m] = J_1' l_1, zeros with `instant`; used [B, T]: 1 if some l_t is not 0 and the step not masked.
//      du is 0 at steps that are not used: leave their x_t out of x' du, since it may be NaN.
void keras_rtrl_adjoint(const keras_rtrl_chunk* chunk, const keras_rtrl_pool* pool, const void* state0,
                        const void* saved, const void* const* states, const void* const* cotangents, int instant,
                        void* du, void* d_rho, void* start, uint8_t* used);

// Chunk trace step, S_T = (Q_1 J_1) S_0 + sum_t (Q_t a_t) (x) x_t, and r_T in the same way; S_0 is read and S_T written once.
//   x [B, T, D], numbers at masked steps too; S0 [B, D, G', N, m] and r0 [B, P, N, m], NULL for zeros -> S, r (may be S0, r0 themselves)
void keras_rtrl_trace(const keras_rtrl_chunk* chunk, const keras_rtrl_pool* pool, const void* x, const void* state0,
                      const void* saved, const void* const* states, const void* S0, const void* r0, void* S, void* r);

// The gradient from before the chunk: d_kernel += sum_b start . S_0, d_rho += sum_b start . r_0, also for rotated gates.
//   start [B, N, m]; S0 [B, D, G', N, m]; r0 [B, P, N, m] -> d_kernel [D, G, N] and d_rho [P, N], added to
void keras_rtrl_contract(const keras_rtrl_chunk* chunk, const keras_rtrl_pool* pool, const void* start, const void* S0,
                         const void* r0, void* d_kernel, void* d_rho);

// Streaming, one step (chunk->time is 1, chunk->mask NULL). `local` [B, m m + G' m + P m, N] is what the update needs:
// J (row by row), then a of each stored gate, then v of each parameter, resets applied.
//   x [B, D]; kernel [D, G, N]; state0 [B, N, m] -> state [B, N, m] (may be state0 itself) and local
void keras_rtrl_streaming_forward(const keras_rtrl_chunk* chunk, const keras_rtrl_pool* pool, const void* x,
                                  const void* kernel, const void* state0, void* state, void* local);

// Trace update and K gradients in one pass: S = J S + a (x) x, r = J r + v in place, then sum_b e . S and e . r.
//   cotangents [K, B, N, m] -> d_kernel [K, D, G, N], d_rho [K, P, N]
void keras_rtrl_streaming_update(const keras_rtrl_chunk* chunk, const keras_rtrl_pool* pool, int64_t K, const void* x,
                                 const void* local, const void* cotangents, void* S, void* r, void* d_kernel,
                                 void* d_rho);

// The same on a CUDA device, in the order of a stream (a CUstream or cudaStream_t), without synchronising. `scratch` is
// device memory of keras_rtrl_cuda_scratch(chunk) bytes, that of the chunk of the call. Each returns 0, or the
// cudaError_t of its launches.
size_t keras_rtrl_cuda_scratch(const keras_rtrl_chunk* chunk);
int keras_rtrl_cuda_forward(const keras_rtrl_chunk* chunk, void* stream, const void* state0, const void* u, void* saved,
                            void* const* states);
int keras_rtrl_cuda_adjoint(const keras_rtrl_chunk* chunk, void* stream, const void* state0, const void* saved,
                            const void* const* states, const void* const* cotangents, int instant, void* du,
                            void* d_rho, void* start, uint8_t* used);
int keras_rtrl_cuda_trace(const keras_rtrl_chunk* chunk, void* stream, void* scratch, const void* x, const void* state0,
                          const void* saved, const void* const* states, const void* S0, const void* r0, void* S,
                          void* r);
int keras_rtrl_cuda_contract(const keras_rtrl_chunk* chunk, void* stream, const void* start, const void* S0,
                             const void* r0, void* d_kernel, void* d_rho);
int keras_rtrl_cuda_streaming_forward(const keras_rtrl_chunk* chunk, void* stream, const void* x, const void* kernel,
                                      const void* state0, void* state, void* local);
int keras_rtrl_cuda_streaming_update(const keras_rtrl_chunk* chunk, void* stream, int64_t K, const void* x,
                                     const void* local, const void* cotangents, void* S, void* r, void* d_kernel,
                                     void* d_rho);
// "sm_75 ... ptx_120", the architectures compiled in.
const char* keras_rtrl_cuda_architectures(void);
// The CUDA version compiled with, 13000 for 13.0.
int keras_rtrl_cuda_version(void);

#ifdef __cplusplus
}
#endif

#endif  // KERAS_RTRL_H_
