// A cell of the kernels is a struct like those in this folder, listed in cells.h.
//
// V is a number on the GPU and a vector of units on the CPU; exp, sigmoid, tanh, expm1, sincos, sqrt, maximum,
// minimum and select(condition, then, else) exist for all. A cell gives:
//
//   name                                   as the Python cell's `native`
//   gates, stored, components, parameters  as in keras_rtrl_cell; the traces of the first `stored` gates are stored
//   coefficients                           how many numbers a unit step() and local() read of the parameters
//   prepare(rho, c)                        these numbers
//   step(s, c, u, next)                    next = phi(s, u); u becomes what local() needs of it
//   local(s, next, u, c, d)                J, a (of every gate) and v of the step from s to next, u as step() left it
//   expand(S, all)                         the traces of every gate from those stored
//
// There is also times(factor, value): their product, and 0 if the factor is 0, for any value. So a step that a reset or
// a cotangent of 0 has cut off contributes nothing, even if it is NaN or infinite.
#ifndef KERAS_RTRL_CELLS_CELL_H_
#define KERAS_RTRL_CELLS_CELL_H_

#ifdef __CUDACC__
#define KERAS_RTRL_FN __host__ __device__ __forceinline__
#else
#define KERAS_RTRL_FN inline __attribute__((always_inline))
#endif

// Each instruction set compiles all of this once; names must not meet at link time.
#ifndef KERAS_RTRL_LEVEL
#define KERAS_RTRL_LEVEL generic
#endif

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

// Local derivatives (rtrl-math.md, section 1): J[i][j] = d s_i / d s'_j, a[gate][i] = d s_i / d u_gate,
// v[parameter][i] = d s_i / d rho_parameter.
template <class Cell, class V>
struct Local {
  V J[Cell::components][Cell::components];
  V a[Cell::gates][Cell::components];
  V v[Cell::parameters][Cell::components];
};

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CELLS_CELL_H_
