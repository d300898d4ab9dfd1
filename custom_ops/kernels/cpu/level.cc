// All kernels for one instruction set: compiled once with each, KERAS_RTRL_LEVEL being its name.
#include "../cells/cells.h"
#include "simd.h"
#include "streaming.h"
#include "table.h"

#define KERAS_RTRL_JOIN_(a, b) a##b
#define KERAS_RTRL_JOIN(a, b) KERAS_RTRL_JOIN_(a, b)

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

// The interface's functions, whose arrays are void, for one cell and number type.
template <class Cell, class T>
struct Erased {
  typedef const keras_rtrl_chunk* Call;
  typedef const keras_rtrl_pool* Pool;
  typedef const void* In;
  typedef void* Out;
  typedef const void* const* Ins;

  static const T* in(In p) { return static_cast<const T*>(p); }
  static T* out(Out p) { return static_cast<T*>(p); }
  static const T* const* ins(Ins p) { return reinterpret_cast<const T* const*>(p); }

  static void forward(Call call, Pool pool, In state0, In u, Out saved, void* const* states) {
    Scans<Cell, T>::forward(call, pool, in(state0), in(u), out(saved), reinterpret_cast<T* const*>(states));
  }
  static void adjoint(Call call, Pool pool, In state0, In saved, Ins states, Ins cotangents, int instant, Out du,
                      Out d_rho, Out start, uint8_t* used) {
    Scans<Cell, T>::adjoint(call, pool, in(state0), in(saved), ins(states), ins(cotangents), instant, out(du),
                            out(d_rho), out(start), used);
  }
  static void trace(Call call, Pool pool, In x, In state0, In saved, Ins states, In S0, In r0, Out S, Out r) {
    Traces<Cell, T>::trace(call, pool, in(x), in(state0), in(saved), ins(states), in(S0), in(r0), out(S), out(r));
  }
  static void contract(Call call, Pool pool, In start, In S0, In r0, Out d_kernel, Out d_rho) {
    Traces<Cell, T>::contract(call, pool, in(start), in(S0), in(r0), out(d_kernel), out(d_rho));
  }
  static void streaming_forward(Call call, Pool pool, In x, In kernel, In state0, Out state, Out local) {
    Streaming<Cell, T>::forward(call, pool, in(x), in(kernel), in(state0), out(state), out(local));
  }
  static void streaming_update(Call call, Pool pool, int64_t K, In x, In local, In cotangents, Out S, Out r,
                               Out d_kernel, Out d_rho) {
    Streaming<Cell, T>::update(call, pool, K, in(x), in(local), in(cotangents), out(S), out(r), out(d_kernel),
                               out(d_rho));
  }

  static constexpr Kernels::Typed functions = {forward,  adjoint,           trace,
                                               contract, streaming_forward, streaming_update};
};

template <class Cell>
constexpr Kernels kernels_of() {
  return {{Cell::name, Cell::gates, Cell::stored, Cell::components, Cell::parameters},
          {Erased<Cell, float>::functions, Erased<Cell, double>::functions}};
}

#define KERAS_RTRL_KERNELS(Cell) kernels_of<Cell>(),
static constexpr Kernels kAll[] = {KERAS_RTRL_FOR_EACH_CELL(KERAS_RTRL_KERNELS)};

}  // namespace KERAS_RTRL_LEVEL

Table KERAS_RTRL_JOIN(table_, KERAS_RTRL_LEVEL)() { return {kAll, int(sizeof(kAll) / sizeof(kAll[0]))}; }

}  // namespace keras_rtrl
