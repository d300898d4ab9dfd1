// The arguments of the ops and their shapes, one table an op, checked in the same way when graphs are made and when ops run.
#ifndef KERAS_RTRL_TF_ARGUMENTS_H_
#define KERAS_RTRL_TF_ARGUMENTS_H_

#include <cstdint>
#include <string>

#include "../kernels/keras_rtrl.h"
#include "absl/status/status.h"
#include "absl/types/span.h"

namespace keras_rtrl {

// How many tensors an argument has. A resource is a variable, whose tensor has the shape.
enum class Count { kOne, kOptional, kComponents, kParameters, kResource };

struct Argument {
  const char* name;
  // One letter a dimension: B streams, T steps, D inputs, N units, K cotangents, and of the cell: W = G N, g = G', m, P,
  // L = m m + G' m + P m.
  const char* dims;
  Count count = Count::kOne;
};

constexpr Argument kForwardInputs[] = {{"state", "BNm"},
                                       {"u", "BTW"},
                                       {"rho", "N", Count::kParameters},
                                       {"reset", "BT", Count::kOptional},
                                       {"mask", "BT", Count::kOptional}};
constexpr Argument kForwardOutputs[] = {{"saved", "BTW"}, {"states", "BTN", Count::kComponents}};

constexpr Argument kAdjointInputs[] = {{"state", "BNm"},
                                       {"saved", "BTW"},
                                       {"states", "BTN", Count::kComponents},
                                       {"cotangents", "BTN", Count::kComponents},
                                       {"rho", "N", Count::kParameters},
                                       {"reset", "BT", Count::kOptional},
                                       {"mask", "BT", Count::kOptional}};
constexpr Argument kAdjointOutputs[] = {{"du", "BTW"}, {"d_rho", "BPN"}, {"start", "BNm"}, {"used", "BT"}};

constexpr Argument kTraceInputs[] = {{"state", "BNm"},
                                     {"x", "BTD"},
                                     {"saved", "BTW"},
                                     {"states", "BTN", Count::kComponents},
                                     {"traces", "BDgNm", Count::kOptional},
                                     {"unit_traces", "BPNm", Count::kOptional},
                                     {"rho", "N", Count::kParameters},
                                     {"reset", "BT", Count::kOptional},
                                     {"mask", "BT", Count::kOptional}};
constexpr Argument kTraceOutputs[] = {{"new_traces", "BDgNm"}, {"new_unit_traces", "BPNm"}};

constexpr Argument kContractInputs[] = {
    {"start", "BNm"}, {"traces", "BDgNm"}, {"unit_traces", "BPNm"}, {"d_kernel", "DW"}, {"d_rho", "BPN"}};
constexpr Argument kContractOutputs[] = {{"sum_d_kernel", "DW"}, {"sum_d_rho", "PN"}};

constexpr Argument kStreamingForwardInputs[] = {
    {"state", "BNm"}, {"x", "BD"}, {"kernel", "DW"}, {"rho", "N", Count::kParameters}, {"reset", "B", Count::kOptional}};
constexpr Argument kStreamingForwardOutputs[] = {{"new_state", "BNm"}, {"local", "BLN"}};

constexpr Argument kStreamingUpdateInputs[] = {{"traces", "BDgNm", Count::kResource},
                                               {"unit_traces", "BPNm", Count::kResource},
                                               {"x", "BD"},
                                               {"local", "BLN"},
                                               {"cotangents", "KBNm"}};
constexpr Argument kStreamingUpdateOutputs[] = {{"d_kernel", "KDW"}, {"d_rho", "KPN"}};

// The values of the dimensions of one call: each is learnt from the first argument that has it, and then must agree.
class Dims {
 public:
  static constexpr int64_t kUnknown = -1;

  explicit Dims(const keras_rtrl_cell& cell);

  // Learns or compares the shape of an argument; unknown dimensions (-1) fit anything.
  absl::Status Match(const Argument& argument, absl::Span<const int64_t> shape);

  int64_t operator[](char dim) const { return values_[static_cast<unsigned char>(dim) & 127]; }
  // How many tensors `argument` has, and for an optional one may have at most.
  int CountOf(const Argument& argument) const;
  absl::Status MatchCount(const Argument& argument, int count) const;

 private:
  void Set(char dim, int64_t value) { values_[static_cast<unsigned char>(dim) & 127] = value; }
  absl::Status Mismatch(const Argument& argument, absl::Span<const int64_t> shape) const;

  const keras_rtrl_cell& cell_;
  int64_t values_[128];
};

// The cell called `name`, an error that names those there are otherwise.
absl::Status FindCell(const std::string& name, int* cell);

}  // namespace keras_rtrl

#endif  // KERAS_RTRL_TF_ARGUMENTS_H_
