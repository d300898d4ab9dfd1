// The cells the kernels are compiled for.
#ifndef KERAS_RTRL_CELLS_CELLS_H_
#define KERAS_RTRL_CELLS_CELLS_H_

#include "elstm.h"
#include "rtu.h"

#define KERAS_RTRL_FOR_EACH_CELL(DO) \
  DO(ELSTM)                          \
  DO(LinearRTU)                      \
  DO(NonlinearRTU<Relu>)             \
  DO(NonlinearRTU<Tanh>)             \
  DO(NonlinearRTU<Identity>)

#endif  // KERAS_RTRL_CELLS_CELLS_H_
