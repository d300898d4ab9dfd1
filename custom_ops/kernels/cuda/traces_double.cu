#include "trace.cuh"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

#define KERAS_RTRL_INSTANTIATE(...) template int trace<__VA_ARGS__, double>(const TraceStep<double>&, void*);
KERAS_RTRL_FOR_EACH_TRACES(KERAS_RTRL_INSTANTIATE)

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl
