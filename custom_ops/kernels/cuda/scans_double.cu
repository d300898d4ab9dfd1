#include "scans.cuh"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

#define KERAS_RTRL_INSTANTIATE(...)                                                              \
  template int forward<__VA_ARGS__, double>(const keras_rtrl_forward_arguments<double>&, void*); \
  template int adjoint<__VA_ARGS__, double>(const keras_rtrl_adjoint_arguments<double>&, void*); \
  template int suffix<__VA_ARGS__, double>(const TraceStep<double>&, void*);
KERAS_RTRL_FOR_EACH_CELL(KERAS_RTRL_INSTANTIATE)

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl
