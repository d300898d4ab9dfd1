// From the C interface's arguments, whose arrays are void, to those of a number type.
#ifndef KERAS_RTRL_TYPED_H_
#define KERAS_RTRL_TYPED_H_

#include <string.h>

#include "cells/cell.h"
#include "keras_rtrl.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

template <class T, template <class> class Arguments>
inline Arguments<T> typed(const Arguments<void>& arguments) {
  Arguments<T> copy;  // of the same fields, pointers to void being those to T
  static_assert(sizeof(copy) == sizeof(arguments), "one struct template gives both");
  memcpy(&copy, &arguments, sizeof(copy));
  return copy;
}

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_TYPED_H_
