// The cells' functions for plain numbers, on the host and on the device. Included before the cells: a call on float or
// double is looked up at the definition of a cell, not at its use.
#ifndef KERAS_RTRL_CELLS_SCALAR_H_
#define KERAS_RTRL_CELLS_SCALAR_H_

#include <math.h>

#include "cell.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

KERAS_RTRL_FN float exp(float x) { return ::expf(x); }
KERAS_RTRL_FN double exp(double x) { return ::exp(x); }
KERAS_RTRL_FN float expm1(float x) { return ::expm1f(x); }
KERAS_RTRL_FN double expm1(double x) { return ::expm1(x); }
KERAS_RTRL_FN float tanh(float x) { return ::tanhf(x); }
KERAS_RTRL_FN double tanh(double x) { return ::tanh(x); }
KERAS_RTRL_FN float sqrt(float x) { return ::sqrtf(x); }
KERAS_RTRL_FN double sqrt(double x) { return ::sqrt(x); }
KERAS_RTRL_FN void sincos(float x, float& sine, float& cosine) { ::sincosf(x, &sine, &cosine); }
KERAS_RTRL_FN void sincos(double x, double& sine, double& cosine) { ::sincos(x, &sine, &cosine); }
KERAS_RTRL_FN float sigmoid(float x) { return 1.0f / (1.0f + ::expf(-x)); }
KERAS_RTRL_FN double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }

// A NaN in `a` passes through.
KERAS_RTRL_FN float maximum(float a, float b) { return b > a ? b : a; }
KERAS_RTRL_FN double maximum(double a, double b) { return b > a ? b : a; }
KERAS_RTRL_FN float minimum(float a, float b) { return b < a ? b : a; }
KERAS_RTRL_FN double minimum(double a, double b) { return b < a ? b : a; }

KERAS_RTRL_FN float select(bool condition, float then, float otherwise) { return condition ? then : otherwise; }
KERAS_RTRL_FN double select(bool condition, double then, double otherwise) { return condition ? then : otherwise; }

KERAS_RTRL_FN float times(float factor, float value) { return factor * select(factor != 0, value, 0.0f); }
KERAS_RTRL_FN double times(double factor, double value) { return factor * select(factor != 0, value, 0.0); }

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CELLS_SCALAR_H_
