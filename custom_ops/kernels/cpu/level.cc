// All kernels for one instruction set: compiled once with each, KERAS_RTRL_LEVEL being its name.
#include "../cells/cells.h"
#include "simd.h"
#include "streaming.h"
#include "table.h"

#define KERAS_RTRL_JOIN_(a, b) a##b
#define KERAS_RTRL_JOIN(a, b) KERAS_RTRL_JOIN_(a, b)

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

// One of the interface's functions for one cell and number type.
template <template <class> class Arguments, class T, void (*function)(const Arguments<T>&, const keras_rtrl_pool*)>
void untyped(const Arguments<void>* arguments, const keras_rtrl_pool* pool) {
  function(typed<T>(*arguments), pool);
}

template <class Cell, class T>
constexpr Kernels::Typed functions_of() {
  return {untyped<keras_rtrl_forward_arguments, T, Scans<Cell, T>::forward>,
          untyped<keras_rtrl_adjoint_arguments, T, Scans<Cell, T>::adjoint>,
          untyped<keras_rtrl_trace_arguments, T, Traces<Cell, T>::trace>,
          untyped<keras_rtrl_contract_arguments, T, Traces<Cell, T>::contract>,
          untyped<keras_rtrl_streaming_forward_arguments, T, Streaming<Cell, T>::forward>,
          untyped<keras_rtrl_streaming_update_arguments, T, Streaming<Cell, T>::update>};
}

template <class Cell>
constexpr Kernels kernels_of() {
  static_assert(Cell::components <= KERAS_RTRL_MAX_COMPONENTS && Cell::parameters <= KERAS_RTRL_MAX_PARAMETERS,
                "keras_rtrl.h has too low a maximum for this cell");
  return {{Cell::name, Cell::gates, Cell::stored, Cell::components, Cell::parameters},
          {functions_of<Cell, float>(), functions_of<Cell, double>()}};
}

#define KERAS_RTRL_KERNELS(Cell) kernels_of<Cell>(),
static constexpr Kernels kAll[] = {KERAS_RTRL_FOR_EACH_CELL(KERAS_RTRL_KERNELS)};

}  // namespace KERAS_RTRL_LEVEL

Table KERAS_RTRL_JOIN(table_, KERAS_RTRL_LEVEL)() { return {kAll, int(sizeof(kAll) / sizeof(kAll[0]))}; }

}  // namespace keras_rtrl
