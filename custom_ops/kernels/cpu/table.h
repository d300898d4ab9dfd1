// The kernels of one instruction set, by cell and number type.
#ifndef KERAS_RTRL_CPU_TABLE_H_
#define KERAS_RTRL_CPU_TABLE_H_

#include "../keras_rtrl.h"

namespace keras_rtrl {

struct Kernels {
  keras_rtrl_cell info;
  struct Typed {
    decltype(&keras_rtrl_forward) forward;
    decltype(&keras_rtrl_adjoint) adjoint;
    decltype(&keras_rtrl_trace) trace;
    decltype(&keras_rtrl_contract) contract;
    decltype(&keras_rtrl_streaming_forward) streaming_forward;
    decltype(&keras_rtrl_streaming_update) streaming_update;
  } typed[2];  // float, double
};

struct Table {
  const Kernels* cells;
  int count;
};

Table table_baseline();
Table table_avx2();
Table table_avx512();

}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CPU_TABLE_H_
