// eLSTM (rtrl-math.md, section 4). Gates f, z; parameters w_f, w_z, b_f, b_z.
#ifndef KERAS_RTRL_CELLS_ELSTM_H_
#define KERAS_RTRL_CELLS_ELSTM_H_

#include "cell.h"

namespace keras_rtrl {
inline namespace KERAS_RTRL_LEVEL {

struct ELSTM {
  static constexpr const char* name = "elstm";
  static constexpr int gates = 2, stored = 2, components = 1, parameters = 4, coefficients = 4;

  template <class V>
  static KERAS_RTRL_FN void prepare(const V (&rho)[4], V (&c)[4]) {
    for (int i = 0; i < 4; ++i) c[i] = rho[i];
  }

  template <class V>
  static KERAS_RTRL_FN void step(const V (&s)[1], const V (&c)[4], V (&u)[2], V (&next)[1]) {
    const V f = sigmoid(u[0] + c[0] * s[0] + c[2]);
    const V z = tanh(u[1] + c[1] * s[0] + c[3]);
    next[0] = f * s[0] + (V(1) - f) * z;
    u[0] = f;
    u[1] = z;
  }

  template <class V>
  static KERAS_RTRL_FN void local(const V (&s)[1], const V (&)[1], const V (&u)[2], const V (&c)[4],
                                  Local<ELSTM, V>& d) {
    const V f = u[0], z = u[1];
    const V a_z = (V(1) - f) * (V(1) - z * z);
    const V a_f = (s[0] - z) * (f * (V(1) - f));
    d.J[0][0] = f + c[1] * a_z + c[0] * a_f;
    d.a[0][0] = a_f;
    d.a[1][0] = a_z;
    d.v[0][0] = a_f * s[0];
    d.v[1][0] = a_z * s[0];
    d.v[2][0] = a_f;
    d.v[3][0] = a_z;
  }

  template <class V>
  static KERAS_RTRL_FN void expand(const V (&S)[2][1], V (&all)[2][1]) {
    all[0][0] = S[0][0];
    all[1][0] = S[1][0];
  }
};

}  // namespace KERAS_RTRL_LEVEL
}  // namespace keras_rtrl

#endif  // KERAS_RTRL_CELLS_ELSTM_H_
