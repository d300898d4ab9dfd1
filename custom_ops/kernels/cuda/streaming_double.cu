#include "streaming.cuh"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

#define KERAS_RTRL_INSTANTIATE(...) \
  template int streaming_forward<__VA_ARGS__, double>(const keras_rtrl_streaming_forward_arguments<double>&, void*);
KERAS_RTRL_FOR_EACH_CELL(KERAS_RTRL_INSTANTIATE)
#undef KERAS_RTRL_INSTANTIATE

#define KERAS_RTRL_INSTANTIATE(...)                                       \
  template int advance<__VA_ARGS__, double>(const Sweep<double>&, void*); \
  template int contract<__VA_ARGS__, double>(const Sweep<double>&, void*);
KERAS_RTRL_FOR_EACH_TRACES(KERAS_RTRL_INSTANTIATE)

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl
