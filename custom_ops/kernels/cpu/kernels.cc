// The C interface on the CPU: the kernels of the best instruction set of this machine. KERAS_RTRL_X86 says that those
// for AVX2 and AVX-512 are linked.
#include <string.h>

#include <atomic>

#include "table.h"

namespace keras_rtrl {
namespace {

struct Level {
  const char* name;
  bool here;
  Table (*table)();
};

const Level* levels(int* count) {
#ifdef KERAS_RTRL_X86
  static const Level all[] = {
      {"avx512",
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"),
       table_avx512},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), table_avx2},
      {"baseline", true, table_baseline}};
#else
  static const Level all[] = {{"baseline", true, table_baseline}};
#endif
  *count = sizeof(all) / sizeof(all[0]);
  return all;
}

const Level* best() {
  int count;
  const Level* level = levels(&count);
  while (!level->here) ++level;
  return level;
}

std::atomic<const Level*>& current() {
  static std::atomic<const Level*> level(best());
  return level;
}

const Kernels::Typed& kernels(const keras_rtrl_chunk<void>& chunk) {
  return current().load(std::memory_order_relaxed)->table().cells[chunk.cell].typed[chunk.dtype];
}

}  // namespace
}  // namespace keras_rtrl

using keras_rtrl::kernels;

extern "C" {

int keras_rtrl_cells(void) { return keras_rtrl::table_baseline().count; }

const keras_rtrl_cell* keras_rtrl_cell_info(int cell) { return &keras_rtrl::table_baseline().cells[cell].info; }

int keras_rtrl_find_cell(const char* name) {
  for (int cell = 0; cell < keras_rtrl_cells(); ++cell)
    if (strcmp(keras_rtrl_cell_info(cell)->name, name) == 0) return cell;
  return -1;
}

const char* keras_rtrl_simd_level(void) { return keras_rtrl::current().load()->name; }

int keras_rtrl_set_simd_level(const char* name) {
  int count;
  const keras_rtrl::Level* all = keras_rtrl::levels(&count);
  for (int i = 0; i < count; ++i)
    if (strcmp(all[i].name, name) == 0 && all[i].here) {
      keras_rtrl::current().store(&all[i]);
      return 1;
    }
  return 0;
}

void keras_rtrl_forward(const keras_rtrl_forward_arguments<void>* arguments, const keras_rtrl_pool* pool) {
  kernels(arguments->chunk).forward(arguments, pool);
}

void keras_rtrl_adjoint(const keras_rtrl_adjoint_arguments<void>* arguments, const keras_rtrl_pool* pool) {
  kernels(arguments->chunk).adjoint(arguments, pool);
}

void keras_rtrl_trace(const keras_rtrl_trace_arguments<void>* arguments, const keras_rtrl_pool* pool) {
  kernels(arguments->chunk).trace(arguments, pool);
}

void keras_rtrl_contract(const keras_rtrl_contract_arguments<void>* arguments, const keras_rtrl_pool* pool) {
  kernels(arguments->chunk).contract(arguments, pool);
}

void keras_rtrl_streaming_forward(const keras_rtrl_streaming_forward_arguments<void>* arguments,
                                  const keras_rtrl_pool* pool) {
  kernels(arguments->chunk).streaming_forward(arguments, pool);
}

void keras_rtrl_streaming_update(const keras_rtrl_streaming_update_arguments<void>* arguments,
                                 const keras_rtrl_pool* pool) {
  kernels(arguments->chunk).streaming_update(arguments, pool);
}

}  // extern "C"
