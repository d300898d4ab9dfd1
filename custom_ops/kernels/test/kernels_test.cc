// The CPU kernels against RTRL step by step in double precision (rtrl-math.md, section 2), at every instruction set
// there is here: all cells, shapes with tails or empty, resets and masks anywhere, and results that repeat bit for bit.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#define KERAS_RTRL_LEVEL reference
#include "../cells/scalar.h"
// scalar.h goes before the cells.
#include "../cells/cells.h"
#include "../keras_rtrl.h"

namespace {

using namespace keras_rtrl;

int failures = 0, checks = 0;
std::string context;

void check(bool fine, const std::string& what) {
  ++checks;
  if (fine) return;
  ++failures;
  printf("FAILED %s: %s\n", context.c_str(), what.c_str());
}

template <class A, class B>
void near(const std::vector<A>& got, const std::vector<B>& wanted, const char* what) {
  const double tolerance = std::is_same<A, float>::value ? 2e-5 : 1e-12;
  double scale = 1, worst = got.size() == wanted.size() ? 0 : INFINITY;
  for (const B& value : wanted)
    if (std::isfinite(value)) scale = fmax(scale, fabs(double(value)));
  for (size_t i = 0; i < wanted.size() && worst < INFINITY; ++i) {
    if (got[i] == A(wanted[i]) || (wanted[i] != wanted[i] && got[i] != got[i])) continue;  // infinite or NaN, as it should be
    const double error = fabs(double(got[i]) - double(wanted[i])) / scale;
    worst = error >= worst ? error : error == error ? worst : INFINITY;  // not a number is as wrong as can be
  }
  check(worst <= tolerance, std::string(what) + " is off by " + std::to_string(worst / tolerance) + " tolerances");
}

template <class T>
void same(const std::vector<T>& a, const std::vector<T>& b, const char* what) {
  check(a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0),
        std::string(what) + " does not repeat bit for bit");
}

// A pool of three threads, made at each call; each takes every third item.
void run_threads(void*, int64_t items, int64_t, void (*task)(void*, int64_t, int64_t), void* argument) {
  std::vector<std::thread> threads;
  for (int64_t first = 0; first < 3; ++first)
    threads.emplace_back([=] {
      for (int64_t i = first; i < items; i += 3) task(argument, i, i + 1);
    });
  for (std::thread& thread : threads) thread.join();
}

struct Shape {
  int64_t B, T, D, N;
  bool flags;  // resets and masks
};

template <class T>
struct Arrays {
  std::vector<T> x, kernel, u, state, S, r;
  std::vector<std::vector<T>> rho, cotangents;
  std::vector<uint8_t> reset, mask;
};

template <class Cell, class T>
Arrays<T> draw(const Shape& s, unsigned seed) {
  constexpr int m = Cell::components, G = Cell::gates, P = Cell::parameters, stored = Cell::stored;
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const auto fill = [&](size_t size, double scale = 1, double shift = 0) {
    std::vector<T> values(size);
    for (T& value : values) value = T(shift + scale * normal(random));
    return values;
  };
  Arrays<T> a;
  a.x = fill(s.B * s.T * s.D);
  a.kernel = fill(s.D * G * s.N, 0.3);
  a.state = fill(s.B * s.N * m);
  a.S = fill(s.B * s.D * stored * s.N * m);
  a.r = fill(s.B * P * s.N * m);
  for (int p = 0; p < P; ++p) a.rho.push_back(fill(s.N, 0.5, -1));
  for (int i = 0; i < m; ++i) a.cotangents.push_back(fill(s.B * s.T * s.N));
  a.u.resize(s.B * s.T * G * s.N);
  for (int64_t row = 0; row < s.B * s.T; ++row)
    for (int64_t j = 0; j < G * s.N; ++j) {
      double sum = 0;
      for (int64_t d = 0; d < s.D; ++d) sum += double(a.x[row * s.D + d]) * double(a.kernel[d * G * s.N + j]);
      a.u[row * G * s.N + j] = T(sum);
    }
  if (s.flags)
    for (int64_t i = 0; i < s.B * s.T; ++i) {
      a.reset.push_back(random() % 4 == 0);
      a.mask.push_back(random() % 4 != 0);
    }
  return a;
}

template <class T>
struct Results {
  std::vector<std::vector<T>> states;
  std::vector<T> last, du, d_rho, d_kernel, S, r;
};

// Step by step: every trace is advanced at every step, and contracted there.
template <class Cell, class T>
Results<double> step_by_step(const Shape& s, const Arrays<T>& a, bool instant) {
  constexpr int m = Cell::components, G = Cell::gates, P = Cell::parameters, stored = Cell::stored;
  Results<double> out;
  out.states.assign(m, std::vector<double>(s.B * s.T * s.N));
  out.last.resize(s.B * s.N * m);
  out.d_rho.resize(P * s.N);
  out.d_kernel.resize(s.D * G * s.N);
  out.S.assign(a.S.begin(), a.S.end());
  out.r.assign(a.r.begin(), a.r.end());
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t n = 0; n < s.N; ++n) {
      double rho[P], c[Cell::coefficients], state[m];
      for (int p = 0; p < P; ++p) rho[p] = a.rho[p][n];
      Cell::prepare(rho, c);
      for (int i = 0; i < m; ++i) state[i] = a.state[(b * s.N + n) * m + i];
      for (int64_t t = 0; t < s.T; ++t) {
        const int64_t row = b * s.T + t;
        const bool reset = s.flags && a.reset[row];
        if (reset)
          for (double& value : state) value = 0;
        Local<Cell, double> d = {};
        for (int i = 0; i < m; ++i) d.J[i][i] = 1;
        if (!s.flags || a.mask[row]) {
          double u[G], next[m];
          for (int g = 0; g < G; ++g) u[g] = a.u[(row * G + g) * s.N + n];
          Cell::step(state, c, u, next);
          Cell::local(state, next, u, c, d);
          for (int i = 0; i < m; ++i) state[i] = next[i];
        }
        double e[m];
        for (int i = 0; i < m; ++i) {
          out.states[i][row * s.N + n] = state[i];
          e[i] = a.cotangents[i][row * s.N + n];
        }
        const auto advance = [&](double* trace, const double* driven, double x) {
          double next[m];
          for (int i = 0; i < m; ++i) {
            next[i] = driven[i] * x;
            for (int j = 0; j < m && !reset; ++j) next[i] += d.J[i][j] * trace[j];
          }
          for (int i = 0; i < m; ++i) trace[i] = next[i];
        };
        for (int64_t row_d = 0; row_d < s.D; ++row_d) {
          const double x = a.x[row * s.D + row_d];
          double kept[stored][m], all[G][m];
          for (int g = 0; g < stored; ++g) {
            double* trace = &out.S[(((b * s.D + row_d) * stored + g) * s.N + n) * m];
            advance(trace, d.a[g], x);
            for (int i = 0; i < m; ++i) kept[g][i] = instant ? d.a[g][i] * x : trace[i];
          }
          Cell::expand(kept, all);
          for (int g = 0; g < G; ++g)
            for (int i = 0; i < m; ++i) out.d_kernel[(row_d * G + g) * s.N + n] += times(e[i], all[g][i]);
        }
        for (int p = 0; p < P; ++p) {
          double* trace = &out.r[((b * P + p) * s.N + n) * m];
          advance(trace, d.v[p], 1);
          for (int i = 0; i < m; ++i) out.d_rho[p * s.N + n] += times(e[i], instant ? d.v[p][i] : trace[i]);
        }
      }
      for (int i = 0; i < m; ++i) out.last[(b * s.N + n) * m + i] = state[i];
    }
  return out;
}

// The interface's chunk for `a`.
template <class T>
keras_rtrl_chunk<void> chunk_of(const char* cell, const Shape& s, const Arrays<T>& a) {
  keras_rtrl_chunk<void> chunk = {};
  chunk.cell = keras_rtrl_find_cell(cell);
  chunk.dtype = std::is_same<T, float>::value ? KERAS_RTRL_FLOAT32 : KERAS_RTRL_FLOAT64;
  chunk.batch = s.B;
  chunk.time = s.T;
  chunk.inputs = s.D;
  chunk.units = s.N;
  for (size_t p = 0; p < a.rho.size(); ++p) chunk.rho[p] = a.rho[p].data();
  chunk.reset = s.flags ? a.reset.data() : nullptr;
  chunk.mask = s.flags ? a.mask.data() : nullptr;
  return chunk;
}

enum class Form { kSeparate, kInPlace, kFromZero };

template <class Cell, class T>
Results<T> chunk_at_once(const Shape& s, const Arrays<T>& a, const keras_rtrl_pool* pool, Form form, bool instant) {
  constexpr int m = Cell::components, G = Cell::gates, P = Cell::parameters;
  const keras_rtrl_chunk<void> chunk = chunk_of(Cell::name, s, a);
  Results<T> out;
  out.states.assign(m, std::vector<T>(s.B * s.T * s.N));
  const bool from_zero = form == Form::kFromZero, in_place = form == Form::kInPlace;
  std::vector<T> saved = a.u, start(s.B * s.N * m), by_stream(s.B * P * s.N);
  keras_rtrl_forward_arguments<void> forward = {};
  forward.state0 = a.state.data();
  forward.u = form == Form::kSeparate ? a.u.data() : saved.data();
  forward.chunk = chunk;
  forward.saved = saved.data();
  for (int i = 0; i < m; ++i) forward.states[i] = out.states[i].data();
  keras_rtrl_forward(&forward, pool);
  const std::vector<T> kept = saved;
  out.du.resize(saved.size());
  std::vector<uint8_t> used(s.B * s.T);
  std::vector<T>& du = form == Form::kSeparate ? out.du : saved;
  keras_rtrl_adjoint_arguments<void> adjoint = {};
  adjoint.state0 = a.state.data();
  adjoint.saved = saved.data();
  for (int i = 0; i < m; ++i) adjoint.states[i] = out.states[i].data();
  for (int i = 0; i < m; ++i) adjoint.cotangents[i] = a.cotangents[i].data();
  adjoint.chunk = chunk;
  adjoint.instant = instant;
  adjoint.du = du.data();
  adjoint.d_rho = by_stream.data();
  adjoint.start = start.data();
  adjoint.used = used.data();
  keras_rtrl_adjoint(&adjoint, pool);
  out.du = du;
  out.d_rho.assign(P * s.N, T(0));
  for (int64_t i = 0; i < s.B * P * s.N; ++i) out.d_rho[i % (P * s.N)] += by_stream[i];
  out.d_kernel.assign(s.D * G * s.N, T(0));
  for (int64_t row = 0; row < s.B * s.T; ++row)
    for (int64_t d = 0; d < s.D && used[row]; ++d)
      for (int64_t j = 0; j < G * s.N; ++j)
        out.d_kernel[d * G * s.N + j] += a.x[row * s.D + d] * out.du[row * G * s.N + j];
  out.S = a.S;
  out.r = a.r;
  keras_rtrl_contract_arguments<void> contract = {};
  contract.start = start.data();
  contract.S0 = a.S.data();
  contract.r0 = a.r.data();
  contract.chunk = chunk;
  contract.d_kernel = out.d_kernel.data();
  contract.d_rho = out.d_rho.data();
  keras_rtrl_contract(&contract, pool);
  keras_rtrl_trace_arguments<void> trace = {};
  trace.state0 = a.state.data();
  trace.x = a.x.data();
  trace.saved = kept.data();
  for (int i = 0; i < m; ++i) trace.states[i] = out.states[i].data();
  trace.S0 = from_zero ? nullptr : in_place ? out.S.data() : a.S.data();
  trace.r0 = from_zero ? nullptr : in_place ? out.r.data() : a.r.data();
  trace.chunk = chunk;
  trace.S = out.S.data();
  trace.r = out.r.data();
  keras_rtrl_trace(&trace, pool);
  return out;
}

template <class T>
void all_same(const Results<T>& a, const Results<T>& b) {
  for (size_t i = 0; i < a.states.size(); ++i) same(a.states[i], b.states[i], "states");
  same(a.d_kernel, b.d_kernel, "d_kernel");
  same(a.d_rho, b.d_rho, "d_rho");
  same(a.S, b.S, "S");
  same(a.r, b.r, "r");
}

template <class A>
void all_near(const Results<A>& got, const Results<double>& wanted) {
  for (size_t i = 0; i < wanted.states.size(); ++i) near(got.states[i], wanted.states[i], "states");
  near(got.d_kernel, wanted.d_kernel, "d_kernel");
  near(got.d_rho, wanted.d_rho, "d_rho");
  near(got.S, wanted.S, "S");
  near(got.r, wanted.r, "r");
}

// The first step of `a` in the streaming form, K times the same cotangents with other signs.
template <class Cell, class T>
void check_streaming(Shape s, Arrays<T> a, const keras_rtrl_pool* pool, int64_t K) {
  constexpr int m = Cell::components, G = Cell::gates, P = Cell::parameters, stored = Cell::stored;
  const int64_t T_given = s.T;
  const auto first = [&](auto& values, int64_t width) {
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t i = 0; i < width; ++i) values[b * width + i] = values[b * T_given * width + i];
    values.resize(s.B * width);
  };
  first(a.x, s.D);
  first(a.u, G * s.N);
  for (auto& e : a.cotangents) first(e, s.N);
  if (s.flags) {
    first(a.reset, 1);
    a.mask.assign(s.B, 1);
  }
  s.T = 1;
  const Results<double> wanted = step_by_step<Cell>(s, a, false);
  keras_rtrl_streaming_forward_arguments<void> forward = {};
  forward.chunk = chunk_of(Cell::name, s, a);
  forward.chunk.mask = nullptr;
  std::vector<T> state = a.state, local(s.B * (m * m + stored * m + P * m) * s.N), cotangents;
  forward.state0 = state.data();
  forward.x = a.x.data();
  forward.kernel = a.kernel.data();
  forward.state = state.data();
  forward.local = local.data();
  keras_rtrl_streaming_forward(&forward, pool);
  for (int64_t k = 0; k < K; ++k)
    for (int64_t i = 0; i < s.B * s.N * m; ++i) cotangents.push_back((k % 2 ? -1 : 1) * a.cotangents[i % m][i / m]);
  Results<T> got;
  got.S = a.S;
  got.r = a.r;
  std::vector<T> d_kernel(K * s.D * G * s.N), d_rho(K * P * s.N);
  keras_rtrl_streaming_update_arguments<void> update = {};
  update.S = got.S.data();
  update.r = got.r.data();
  update.x = a.x.data();
  update.local = local.data();
  update.cotangents = cotangents.data();
  update.K = K;
  update.chunk = forward.chunk;
  update.d_kernel = d_kernel.data();
  update.d_rho = d_rho.data();
  keras_rtrl_streaming_update(&update, pool);
  near(state, wanted.last, "streaming state");
  near(got.S, wanted.S, "streaming S");
  near(got.r, wanted.r, "streaming r");
  std::vector<double> kernel_wanted, rho_wanted;
  for (int64_t k = 0; k < K; ++k) {
    for (double value : wanted.d_kernel) kernel_wanted.push_back((k % 2 ? -1 : 1) * value);
    for (double value : wanted.d_rho) rho_wanted.push_back((k % 2 ? -1 : 1) * value);
  }
  near(d_kernel, kernel_wanted, "streaming d_kernel");
  near(d_rho, rho_wanted, "streaming d_rho");
}

// What was before a reset is not a number, in the carry and in the chunk, and the cotangents there are 0: nothing of it
// is left in what comes after.
template <class Cell, class T>
void check_cut(Shape s, unsigned seed) {
  s.flags = true;
  Arrays<T> a = draw<Cell, T>(s, seed);
  const auto spoil = [](T* values, int64_t count, T value) { std::fill_n(values, count, value); };
  for (int64_t b = 0; b < s.B; ++b) {
    const int64_t cut = b * 5 % s.T, row = b * s.T;
    a.reset[row + cut] = 1;
    spoil(a.x.data() + row * s.D, cut * s.D, T(NAN));
    spoil(a.u.data() + row * Cell::gates * s.N, cut * Cell::gates * s.N, T(NAN));
    for (auto& e : a.cotangents) spoil(e.data() + row * s.N, cut * s.N, T(0));
  }
  for (auto* values : {&a.state, &a.S, &a.r})
    for (size_t i = 0; i < values->size(); ++i) (*values)[i] = i % 2 ? T(INFINITY) : T(NAN);
  const Results<double> wanted = step_by_step<Cell>(s, a, false);
  const auto finite = [](const auto& values) {
    return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
  };
  check(finite(wanted.S) && finite(wanted.r) && finite(wanted.d_kernel), "the reference is not finite after a reset");
  const keras_rtrl_pool pool = {nullptr, 3, run_threads};
  for (const Form form : {Form::kSeparate, Form::kInPlace}) {
    all_near(chunk_at_once<Cell>(s, a, &pool, form, false), wanted);
    check(finite(chunk_at_once<Cell>(s, a, nullptr, form, true).d_kernel), "instant d_kernel is not finite");
  }
  Arrays<T> step = draw<Cell, T>(s, seed);
  for (int64_t b = 0; b < s.B; ++b) step.reset[b * s.T] = 1;
  step.state = a.state, step.S = a.S, step.r = a.r;
  check_streaming<Cell>(s, step, nullptr, 1);
}

template <class Cell, class T>
void check_cell(const Shape& s, unsigned seed) {
  const keras_rtrl_pool pool = {nullptr, 3, run_threads};
  const Arrays<T> a = draw<Cell, T>(s, seed);
  const Results<double> wanted = step_by_step<Cell>(s, a, false);
  const Results<T> separate = chunk_at_once<Cell>(s, a, nullptr, Form::kSeparate, false);
  all_near(separate, wanted);
  all_same(separate, chunk_at_once<Cell>(s, a, &pool, Form::kInPlace, false));
  // The guard: what lies before the chunk is in these gradients.
  Arrays<T> forgetful = a;
  for (T& value : forgetful.S) value = 0;
  for (T& value : forgetful.r) value = 0;
  const Results<T> truncated = chunk_at_once<Cell>(s, forgetful, nullptr, Form::kSeparate, false);
  const bool empty = s.B * s.T * s.D * s.N == 0;
  if (!s.flags && s.T < 10 && s.N > 1 && !empty) check(truncated.d_kernel != separate.d_kernel, "the gradient does not depend on S_0");
  all_near(chunk_at_once<Cell>(s, forgetful, &pool, Form::kFromZero, false), step_by_step<Cell>(s, forgetful, false));
  near(chunk_at_once<Cell>(s, a, nullptr, Form::kSeparate, true).d_kernel,
       step_by_step<Cell>(s, a, true).d_kernel, "instant d_kernel");
  if (s.T == 0) return;  // the streaming form takes one step
  if (s.T * s.N < 5000) check_cut<Cell, T>(s, seed);
  for (int64_t K : {0, 1, 3}) check_streaming<Cell>(s, a, K == 1 ? nullptr : &pool, K);
}

}  // namespace

int main() {
  const Shape shapes[] = {{1, 1, 1, 1, false},  {2, 5, 3, 4, false},   {3, 7, 13, 37, true}, {2, 9, 6, 300, true},
                          {1, 140, 7, 66, true}, {2, 260, 5, 17, false}, {1, 3, 12, 128, false},
                          // Nothing of one thing or the other.
                          {0, 5, 3, 4, true},   {2, 0, 3, 4, false},   {2, 0, 3, 70, true},  {2, 5, 0, 4, true},
                          {3, 2, 0, 300, false}, {2, 5, 3, 0, true},   {0, 0, 0, 0, false},  {0, 1, 40, 300, false}};
  int levels = 0;
  for (const char* level : {"baseline", "avx2", "avx512"}) {
    if (!keras_rtrl_set_simd_level(level)) {
      printf("%s: not on this machine\n", level);
      continue;
    }
    ++levels;
    unsigned seed = 0;
    for (const Shape& s : shapes) {
      ++seed;
#define CHECK(Cell)                                                                                              \
  context = std::string(level) + " " + Cell::name + " B " + std::to_string(s.B) + " T " +            \
            std::to_string(s.T) + " D " + std::to_string(s.D) + " N " + std::to_string(s.N) + " float";          \
  check_cell<Cell, float>(s, seed);                                                                  \
  context.replace(context.size() - 5, 5, "double");                                                              \
  check_cell<Cell, double>(s, seed);
      KERAS_RTRL_FOR_EACH_CELL(CHECK)
    }
    context = std::string(level) + " traces written past the caches";
    check_cell<ELSTM, float>({9, 2, 128, 1024, false}, 0);
  }
  printf("%d checks at %d instruction sets, %d failed\n", checks, levels, failures);
  return failures != 0;
}
